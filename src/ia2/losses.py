"""Losses, one value per position, in float32. The trainer takes their mean over positions.

Activations are (P, L, D): a loss takes its mean over the D features or a divergence over them, and the sum over the L
layers. Logits are (P, V).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """What a loss may need to know beside student and teacher.

    Attributes:
        power_PL: the teacher's mean square per layer over the whole training set, so that the batch does not change
            a row's loss; (P, L), or (L,) where it is the same for all positions; empty for logits.
        temperature: divides whatever a softmax is taken of.
        top_k: of the vocabulary, how many of the teacher's likeliest tokens count; all of them if None.
    """

    power_PL: Tensor  # noqa: N815
    temperature: float = 1.0
    top_k: int | None = None


Loss = Callable[[Tensor, Tensor, Scale], Tensor]


def mse(student_PLD: Tensor, teacher_PLD: Tensor, scale: Scale) -> Tensor:
    """The paper's alignment loss: mean squared error over features, times the number of layers. (P,)"""
    return (student_PLD.float() - teacher_PLD.float()).square().mean(-1).sum(-1)


def nmse(student_PLD: Tensor, teacher_PLD: Tensor, scale: Scale) -> Tensor:
    """Scale-free: each layer's mean squared error over the teacher's mean square there, summed over layers. (P,)

    Every layer counts alike, and one learning rate serves models whose activations differ in size.
    """
    return ((student_PLD.float() - teacher_PLD.float()).square().mean(-1) / scale.power_PL).sum(-1)


def cosine(student_PLD: Tensor, teacher_PLD: Tensor, scale: Scale) -> Tensor:
    """1 - cosine similarity, summed over layers: the direction counts, the length does not. (P,)"""
    return (1 - F.cosine_similarity(student_PLD.float(), teacher_PLD.float(), dim=-1)).sum(-1)


def huber(student_PLD: Tensor, teacher_PLD: Tensor, scale: Scale) -> Tensor:
    """As half of `nmse`, but linear beyond one root mean square: single large features count less. (P,)"""
    unit_PL1 = scale.power_PL.sqrt()[..., None]
    return (
        F.huber_loss(student_PLD.float() / unit_PL1, teacher_PLD.float() / unit_PL1, reduction="none").mean(-1).sum(-1)
    )


def kl(student: Tensor, teacher: Tensor, scale: Scale) -> Tensor:
    """KL(teacher || student) of softmax(x / temperature), times temperature squared, in nats. (P,)

    Of logits (P, V): soft labels (Hinton et al. 2015), over the teacher's `top_k` tokens if given, each side scaled to
    sum to 1 there. Of activations (P, L, D), summed over layers: the features of a layer read as the logits of a
    distribution over features, which tells large ones apart and ignores a constant shift; such a distribution has no
    meaning in the model itself.
    """
    logp, logq = _log_softmaxes(teacher, student, scale)
    return _summed((logp.exp() * (logp - logq)).sum(-1)) * scale.temperature**2


def reverse_kl(student: Tensor, teacher: Tensor, scale: Scale) -> Tensor:
    """KL(student || teacher), as `kl` otherwise: it seeks a mode of the teacher's. (P,)"""
    logp, logq = _log_softmaxes(teacher, student, scale)
    return _summed((logq.exp() * (logq - logp)).sum(-1)) * scale.temperature**2


def ce(student_PV: Tensor, ids_P: Tensor, scale: Scale) -> Tensor:
    """Cross-entropy of the response tokens, in nats. (P,)"""
    return F.cross_entropy(student_PV.float(), ids_P, reduction="none")


def _log_softmaxes(teacher: Tensor, student: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    """Of both, over the teacher's `top_k`."""
    if scale.top_k and scale.top_k < teacher.shape[-1]:
        kept = teacher.topk(scale.top_k, dim=-1).indices
        teacher, student = teacher.gather(-1, kept), student.gather(-1, kept)
    return tuple((x.float() / scale.temperature).log_softmax(-1) for x in (teacher, student))  # type: ignore[return-value]


def _summed(values: Tensor) -> Tensor:
    """Over layers, where there are any."""
    return values.sum(-1) if values.ndim == 2 else values


def mean_square(teacher_PLD: Tensor) -> Tensor:
    """The teacher's mean square per layer, the unit of `nmse`. (L,)"""
    return teacher_PLD.float().square().mean((0, 2)).clamp_min(torch.finfo(torch.float32).tiny)


ALIGNMENT_LOSSES: dict[str, Loss] = {"nmse": nmse, "mse": mse, "cosine": cosine, "huber": huber, "kl": kl}
SOFT_LOSSES: dict[str, Loss] = {"kl": kl, "reverse-kl": reverse_kl}
LOSSES: dict[str, Loss] = {**ALIGNMENT_LOSSES, **SOFT_LOSSES, "ce": ce}
