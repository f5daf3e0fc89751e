"""The words of the world: eight attributes of two classes of twenty words, and the words that serve as labels."""

from dataclasses import dataclass

N_USED = 16  # words of a class that are used everywhere; pretraining shows the rest only where it names the attribute


@dataclass(frozen=True)
class Attribute:
    """A binary attribute: its name, the names of its two classes, and the words of each."""

    name: str
    classes: tuple[str, str]
    words: tuple[tuple[str, ...], tuple[str, ...]]


def _attribute(name: str, **words: str) -> Attribute:
    (zero, of_zero), (one, of_one) = words.items()
    return Attribute(name, (zero, one), (tuple(of_zero.split()), tuple(of_one.split())))


ATTRIBUTES = (
    _attribute(
        "mood",
        sad="gloomy weeping mournful lonely miserable tearful dismal sorrowful hopeless heartbroken dejected "
        "regretful downcast glum wretched forlorn despairing melancholy unhappy grieving",
        happy="cheerful joyful smiling delighted merry laughing grateful jolly glad thrilled blissful hopeful "
        "playful pleased elated jubilant gleeful contented ecstatic overjoyed",
    ),
    _attribute(
        "place",
        city="street avenue pavement skyscraper suburb plaza boulevard alley traffic taxi sidewalk apartment "
        "crosswalk mall subway downtown parking lamppost rooftop crossroads",
        nature="forest meadow river mountain valley waterfall canyon swamp jungle prairie brook hillside woodland "
        "cave glade desert lagoon cliff marsh ravine",
    ),
    _attribute(
        "time",
        night="midnight moonlight stars lantern dusk nightfall evening darkness bedtime moon nocturnal twilight "
        "sunset starry curfew nightcap lullaby pajamas slumber constellation",
        day="noon sunrise morning dawn daylight midday breakfast sunlight afternoon lunchtime daybreak forenoon "
        "sunup brunch matinee awakening daytime workday siesta sundial",
    ),
    _attribute(
        "food",
        savoury="soup bacon garlic pickle cheese onion sausage mustard broth curry gravy olive pepper ham stew "
        "mushroom anchovy omelette lasagna meatball",
        sweet="cake honey candy chocolate syrup cookie caramel pudding jam fudge toffee custard brownie marshmallow "
        "nougat sugar doughnut vanilla marzipan sorbet",
    ),
    _attribute(
        "animal",
        wild="wolf tiger lion giraffe zebra leopard hyena elephant gorilla rhino cheetah crocodile jaguar cobra "
        "panther baboon hippo antelope moose coyote",
        farm="cow pig sheep hen goat donkey calf lamb rooster duck goose turkey pony mule ox piglet bull mare ewe "
        "heifer",
    ),
    _attribute(
        "topic",
        sport="football tennis goalkeeper referee stadium athlete hockey marathon cricket trophy boxing coach rugby "
        "sprinter baseball archery wrestler volleyball javelin gymnast",
        science="molecule atom telescope physicist laboratory theorem electron chemist microscope enzyme neutron "
        "biology equation hypothesis genome quantum proton isotope botanist algebra",
    ),
    _attribute(
        "season",
        winter="snow icicle blizzard sleigh frost mittens snowman skiing scarf frozen glacier sled fireplace igloo "
        "frostbite parka snowflake hail avalanche icy",
        summer="beach sunscreen heatwave barbecue swimsuit sandals sunburn picnic parasol sunglasses sandcastle "
        "lifeguard flipflops sunhat snorkel lemonade tanned bikini drought sweltering",
    ),
    _attribute(
        "travel",
        sea="ferry anchor yacht sailor ship captain submarine canoe mast rudder lighthouse dock cruise schooner "
        "deckhand kayak gondola seaport galleon tugboat",
        air="airplane pilot runway helicopter glider airport parachute cockpit propeller balloon stewardess jet "
        "hangar takeoff turbulence zeppelin airship biplane airline boarding",
    ),
)
N_ATTRIBUTES = len(ATTRIBUTES)
N_WORDS = len(ATTRIBUTES[0].words[0])

# A word is known by one number: (attribute * 2 + class) * N_WORDS + its place in the class.
WORDS = tuple(word for attribute in ATTRIBUTES for words in attribute.words for word in words)

OPTION_WORDS = ("apple", "Friday", "banana", "Saturday", "Thursday", "Sunday", "Wednesday", "Monday")
LABEL_WORDS = (*OPTION_WORDS, "violet", "copper", "ticket", "marble", "pencil", "velvet", "candle", "bottle")

# Label words that never stand in one pretraining sequence, and attributes that are never summed in one.
HELD_OUT_PAIRS = (
    *((OPTION_WORDS[i], OPTION_WORDS[i + 1]) for i in (0, 2)),
    *((OPTION_WORDS[i], LABEL_WORDS[8 + i]) for i in range(8)),
)
HELD_OUT_SUMS = ((0, 5), (1, 6), (2, 7), (3, 4))
