"""Why one method is better than another: what each computes on the same tokens, and what its weights do."""

from ia2.analysis.activations import Activations, read_activations
from ia2.analysis.distances import distances
from ia2.analysis.subject import Subject
from ia2.analysis.weights import weights

__all__ = ["Activations", "Subject", "distances", "read_activations", "weights"]
