"""`ia2 analyze`: every analysis of a run or of a cell on the same test rows, as numbers and as a page."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from ia2.adapters import loaded_adapters
from ia2.analysis.activations import Activations, read_activations
from ia2.analysis.along import along_training
from ia2.analysis.context import reads_context
from ia2.analysis.distances import distances
from ia2.analysis.forgetting import forgetting, read_other
from ia2.analysis.layers import layer_study
from ia2.analysis.patching import Patch, patch_curves
from ia2.analysis.subject import Subject
from ia2.analysis.texts import perplexities, read_texts
from ia2.analysis.units import describe, find_units, halves, shared
from ia2.analysis.weights import weights
from ia2.capture import BEFORE, SITES, Site, places
from ia2.data import Example
from ia2.errors import IA2Error
from ia2.evaluation import Variant
from ia2.files import read_json, write_json
from ia2.models import LanguageModel
from ia2.progress import say
from ia2.report import write_analysis
from ia2.task import Task

FEED_FORWARD: tuple[Site, ...] = ("neurons", "mlp_out")  # the first one that the model has is looked at
KINDS: dict[Site, str] = {"head_out": "heads", "neurons": "neurons", "mlp_out": "mlp_out"}


def analyze(
    folder: str | Path,
    test: Sequence[Example],
    output: Path | None = None,
    layers: bool = False,
    other: Sequence[str] = (),
    text: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Analyse a run, or all runs of a cell: analysis.json and analysis.html.

    Args:
        folder: of a run of `ia2 train`, or of a cell of `ia2 compare`.
        test: labelled rows, at least 16.
        output: where to write; `folder` if None.
        layers: whether to train `ia2` at several choices of layers too, in `layers/` of the output.
        other: tasks or files of rows of other tasks, to see what is forgotten; see `read_other`.
        text: running text, for the same; see `read_texts`.
        trust_remote_code: see `ia2.load_model`.

    Returns:
        What analysis.json holds: `distances`, `weights`, `units`, `shared_units`, `patching`, `context`, `forgetting`,
        `text`, `along` (where the run kept snapshots) and `layers`, as the functions of this package return them; and
        `skipped`, what could not be done, with the reason.
    """
    subject = Subject.open(folder, trust_remote_code)
    output, task = output or Path(folder), subject.run.task()
    others, texts = {name: read_other(name, task) for name in other}, read_texts(text) if text else []
    lm = subject.load_model()
    zero, icl, *adapters = subject.variants(lm)
    found: dict[str, Any] = {
        "model": subject.run.config.model,
        "n_train": len(subject.run.data.train),
        "n_test": len(test),
        "skipped": {},
    }
    sites = _sites(lm, found["skipped"])
    with loaded_adapters(lm, subject.adapters):
        found["context"] = reads_context(lm, task, test, adapters, icl)
        acts = read_activations(lm, task, test, [zero, icl, *adapters], sites)
        found["distances"] = distances(acts)
        found |= _units(lm, task, test, acts, [zero, *adapters], icl)
        if others:
            found["forgetting"] = forgetting(lm, others, adapters)
        if texts:
            found["text"] = perplexities(lm, texts, adapters)
    try:
        found["weights"] = weights(subject.adapters)
    except IA2Error as error:
        _skip(found["skipped"], "weights", error)
    if subject.snapshots:
        along = along_training(lm, task, test, subject.snapshots, zero, icl)
        kept = {name: read_json(subject.adapters[name] / "training.json")["n_steps"] for name in along}
        found["along"] = {name: {"kept": kept[name], "points": points} for name, points in along.items()}
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
    """`units`: heads and neurons of each variant, told from ICL; `shared_units`: those that two variants have alike;
    `patching`: a variant's heads, and its neurons, patched with ICL's.

    Units are put in order on one half of the rows, and patched on the other. Where a model has no neurons, the features
    that its feed-forward blocks write are looked at, and not patched.
    """
    n_heads = int(lm.base.config.get_text_config().num_attention_heads)
    n_units: dict[Site, int] = {"head_out": n_heads}
    if site := next((site for site in FEED_FORWARD if site in acts.layers), None):
        n_units[site] = acts.means["icl"][site].shape[-1]
    looked_at = {site: {v.name: find_units(acts, site, n, v.name) for v in variants} for site, n in n_units.items()}
    units = {KINDS[site]: {name: describe(of) for name, of in found.items()} for site, found in looked_at.items()}
    for name, own in looked_at["head_out"].items():
        aurocs = [own.auroc([u]) for u in range(len(own.places))]
        units["heads"][name]["auroc"] = [aurocs[u : u + n_heads] for u in range(0, len(aurocs), n_heads)]
    common = {
        KINDS[site]: {f"{a} - {b}": shared(found[a], found[b]) for a, b in combinations(found, 2)}
        for site, found in looked_at.items()
    }
    orders = [
        Patch(variant, site, [own.places[u] for u in own.order])
        for site, found in looked_at.items()
        for variant, own in zip(variants, found.values(), strict=True)
        if site in BEFORE
    ]
    rows = [test[i] for i in halves(len(test))[1]]
    curves: dict[str, Any] = {}
    for order, curve in zip(orders, patch_curves(lm, task, rows, icl, orders, n_units), strict=True):
        curves.setdefault(KINDS[order.site], {})[order.variant.name] = curve
    return {"units": units, "shared_units": common, "patching": curves}
