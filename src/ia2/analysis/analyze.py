"""`ia2 analyze`: every analysis of a run or of a cell on the same test rows, as numbers and as a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ia2.adapters import loaded_adapters
from ia2.analysis.activations import Activations, read_activations
from ia2.analysis.context import reads_context
from ia2.analysis.distances import distances
from ia2.analysis.layers import layer_study
from ia2.analysis.patching import patch_curve
from ia2.analysis.subject import Subject
from ia2.analysis.units import describe, find_units, halves
from ia2.analysis.weights import weights
from ia2.capture import SITES, Site, places
from ia2.data import Example
from ia2.errors import IA2Error
from ia2.evaluation import Variant
from ia2.files import write_json
from ia2.models import LanguageModel
from ia2.progress import say
from ia2.report import write_analysis
from ia2.task import Task


def analyze(
    folder: str | Path, test: Sequence[Example], output: Path | None = None, layers: bool = False
) -> dict[str, Any]:
    """Analyse a run, or all runs of a cell: analysis.json and analysis.html.

    Args:
        folder: of a run of `ia2 train`, or of a cell of `ia2 compare`.
        test: labelled rows, at least 16.
        output: where to write; `folder` if None.
        layers: whether to train `ia2` at several choices of layers too, in `layers/` of the output.

    Returns:
        What analysis.json holds: `distances`, `weights`, `units`, `patching`, `context` and `layers`, as the functions
        of the same names return them, and `skipped`, what could not be done, with the reason.
    """
    subject = Subject.open(folder)
    output, task, lm = output or Path(folder), subject.run.task(), subject.load_model()
    zero, icl, *adapters = subject.variants(lm)
    found: dict[str, Any] = {
        "model": subject.run.config.model,
        "n_train": len(subject.run.data.train),
        "n_test": len(test),
        "skipped": {},
    }
    sites = _sites(lm, found["skipped"])
    with loaded_adapters(lm, subject.adapters):
        acts = read_activations(lm, task, test, [zero, icl, *adapters], sites)
        found["distances"] = distances(acts)
        found |= _units(lm, task, test, acts, [zero, *adapters], icl)
        found["context"] = reads_context(lm, task, test, adapters, icl)
    try:
        found["weights"] = weights(subject.adapters)
    except IA2Error as error:
        _skip(found["skipped"], "weights", error)
    if layers:
        found["layers"] = layer_study(subject.run, test, output / "layers", lm)
    write_json(output / "analysis.json", found)
    write_analysis(output / "analysis.html", found)
    return found


def _sites(lm: LanguageModel, skipped: dict[str, str]) -> list[Site]:
    """The sites of activations that the model has."""
    found: list[Site] = []
    for site in SITES:
        try:
            found += [site] if places(lm.anatomy, site) else []
        except IA2Error as error:
            _skip(skipped, site, error)
    return found


def _skip(skipped: dict[str, str], what: str, error: IA2Error) -> None:
    skipped[what] = str(error)
    say(f"without {what}: {error}")


def _units(
    lm: LanguageModel,
    task: Task,
    test: Sequence[Example],
    acts: Activations,
    variants: Sequence[Variant],
    icl: Variant,
) -> dict[str, Any]:
    """`units`: heads and neurons of each variant, told from ICL; `patching`: its heads patched with ICL's.

    Heads are put in order on one half of the rows, and patched on the other. Where a model has no neurons, the features
    that its feed-forward blocks write are looked at.
    """
    n_heads = int(lm.base.config.get_text_config().num_attention_heads)
    rows = [test[i] for i in halves(len(test))[1]]
    feed_forward = next((site for site in ("neurons", "mlp_out") if site in acts.layers), None)
    units: dict[str, Any] = {"heads": {}}
    curves: dict[str, Any] = {}
    for variant in variants:
        heads = find_units(acts, "head_out", n_heads, variant.name)
        auroc_LH = heads.auroc.reshape(-1, n_heads).tolist()
        units["heads"][variant.name] = {**describe(heads), "auroc": auroc_LH}
        if feed_forward:
            width = acts.means[variant.name][feed_forward].shape[-1]
            found = describe(find_units(acts, feed_forward, width, variant.name))
            units.setdefault(feed_forward, {})[variant.name] = found
        order = [heads.places[u] for u in heads.order]
        curves[variant.name] = patch_curve(lm, task, rows, variant, icl, order, n_heads)
    return {"units": units, "patching": curves}
