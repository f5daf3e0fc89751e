"""Which layers matter: IA2 aligned at a single layer, at the first or last few, at every k-th."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ia2.capture import layer_numbers
from ia2.comparison import Cell
from ia2.data import Example
from ia2.models import LanguageModel
from ia2.progress import say, step
from ia2.run import Run
from ia2.summary import difference, summarise

METHOD, ALL = "ia2", "all"
METRICS = ("accuracy", "ece", "nll", "similarity")
N_SINGLE = 8


def layer_choices(n_layers: int) -> list[str]:
    """All layers; at most eight single ones; first and last 1/4, 1/2, 3/4; every second and fourth; no two alike."""
    n_single = min(N_SINGLE, n_layers)
    single = [str(round(i * (n_layers - 1) / max(n_single - 1, 1))) for i in range(n_single)]
    parts = sorted({n_layers * quarters // 4 for quarters in (1, 2, 3)} - {0})
    every = [k for k in (2, 4) if k < n_layers]
    choices = [*single, *(f"{end}:{k}" for end in ("first", "last") for k in parts), *(f"every:{k}" for k in every)]
    different = {frozenset(range(n_layers)): ALL}
    for choice in choices:
        different.setdefault(layer_numbers(choice, n_layers) or frozenset(), choice)
    return list(different.values())


def layer_study(
    run: Run, test: Sequence[Example], folder: Path, lm: LanguageModel, choices: Sequence[str] | None = None
) -> dict[str, Any]:
    """Train `ia2` on the rows of a run, aligned at each choice of layers; what is trained already is not trained again.

    Args:
        run: its rows and options, but for the method and the layers.
        test: labelled rows.
        folder: a cell is kept in it for each choice.
        lm: the base.
        choices: as the option `layers` has them; `layer_choices` by default.

    Returns:
        `methods`: zero-shot and ICL; `layers`: for each choice accuracy, ECE, NLL and similarity (to ICL's attention
        outputs, over all layers), each with its interval; `differences` in these from the first choice, paired.
    """
    options = run.config.model_dump(exclude={"method", "seed", "layers"})
    options["dtype"] = str(lm.base.dtype).removeprefix("torch.")
    found: dict[str, Any] = {"methods": {}, "layers": {}, "differences": {}}
    choices, reference = choices or layer_choices(len(lm.anatomy.layers)), None
    with step("layers", len(choices)) as advance:
        for choice in choices:
            place = folder / choice.replace(":", "-")
            cell = Cell(
                "layers", run.config.seed, {**options, "layers": choice}, run.data, {"test": test}, place, "", False
            )
            rows = cell.results(lm, [METHOD])[0]["test"]
            of = {name: [p for p in rows if p.variant == name] for name in ("zero-shot", "icl", METHOD)}
            summary = {name: summarise(predictions) for name, predictions in of.items()}
            short = {name: {metric: values[metric] for metric in METRICS} for name, values in summary.items()}
            found["layers"][choice] = short.pop(METHOD)
            found["methods"] = short
            reference = reference or of[METHOD]
            if of[METHOD] is not reference:
                found["differences"][f"{choice} - {choices[0]}"] = difference(of[METHOD], reference)
            say(f"layers {choice}: accuracy {found['layers'][choice]['accuracy']['value']:.2f}")
            advance()
    return found
