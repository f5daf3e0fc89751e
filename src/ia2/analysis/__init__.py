"""Why one method is better than another: what each computes on the same tokens, and what its weights do."""

from ia2.analysis.activations import Activations, read_activations
from ia2.analysis.along import along_training
from ia2.analysis.analyze import analyze
from ia2.analysis.context import reads_context
from ia2.analysis.crossing import crossing
from ia2.analysis.distances import distances
from ia2.analysis.forgetting import Other, diversity, forgetting, read_other
from ia2.analysis.grids import analyze_sweep, read_results
from ia2.analysis.layers import layer_choices, layer_study
from ia2.analysis.patching import Patch, patch_curves, patched, patched_scores
from ia2.analysis.performance import similarity_and_performance
from ia2.analysis.recurring import recurring_units
from ia2.analysis.subject import Subject
from ia2.analysis.texts import Passage, perplexities, read_texts
from ia2.analysis.units import Units, describe, find_units
from ia2.analysis.weights import weights

__all__ = [
    "Activations",
    "Other",
    "Passage",
    "Patch",
    "Subject",
    "Units",
    "along_training",
    "analyze",
    "analyze_sweep",
    "crossing",
    "describe",
    "distances",
    "diversity",
    "find_units",
    "forgetting",
    "layer_choices",
    "layer_study",
    "patch_curves",
    "patched",
    "patched_scores",
    "perplexities",
    "read_activations",
    "read_other",
    "read_results",
    "read_texts",
    "reads_context",
    "recurring_units",
    "similarity_and_performance",
    "weights",
]
