"""How numbers and their intervals read: rounded, scaled, with a true minus."""

from collections.abc import Mapping
from dataclasses import dataclass

Interval = Mapping[str, float]  # value, low, high


@dataclass(frozen=True)
class Form:
    """How numbers of one kind are written. `sign` is "+" where a positive number shows its sign too.

    `unit` and `ticks` (d3's format of an axis) are of figures.
    """

    digits: int
    scale: float = 1.0
    unit: str = ""
    ticks: str = ""

    def number(self, value: float, sign: str = "") -> str:
        """0.0 where it would be -0.0."""
        return f"{round(value * self.scale, self.digits) + 0.0:{sign}.{self.digits}f}".replace("-", "−")

    def bounds(self, interval: Interval, sign: str = "") -> str:
        """Of an interval, without its value."""
        return f"[{self.number(interval['low'], sign)}, {self.number(interval['high'], sign)}]"

    def interval(self, interval: Interval, sign: str = "") -> str:
        """A value and its bounds."""
        return f"{self.number(interval['value'], sign)} {self.bounds(interval, sign)}"

    def size(self, interval: Interval, unit: str = "") -> str:
        """How far a value and its bounds are from 0, whichever side."""
        low, high = sorted(abs(interval[key]) for key in ("low", "high"))
        return f"{self.number(abs(interval['value']))}{unit} {self.bounds({'low': low, 'high': high})}"


PERCENT = Form(1, 100.0, "%", ".0%")
SCORE = Form(3)
SHORT = Form(2)
WHOLE = Form(0)
MILLISECONDS = Form(1, 1e3)  # from seconds


def side(interval: Interval) -> int:
    """1 or -1 if the whole interval is above or below 0, else 0."""
    return (interval["low"] > 0) - (interval["high"] < 0)


def p_text(p: float) -> str:
    """`p = 0.012`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def p_value(p: float) -> str:
    """The same as HTML, in one piece."""
    return p_text(p).replace("<", "&lt;").replace(" ", "\u00a0")
