"""Losses, one value per response position, in float32. The trainer takes their mean over positions."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def mse(student_PLD: Tensor, teacher_PLD: Tensor, power_L: Tensor) -> Tensor:
    """The paper's alignment loss: mean squared error over features, times the number of layers. (P,)"""
    return (student_PLD.float() - teacher_PLD.float()).square().mean(-1).sum(-1)


def nmse(student_PLD: Tensor, teacher_PLD: Tensor, power_L: Tensor) -> Tensor:
    """Scale-free: each layer's mean squared error over the teacher's mean square there, summed over layers. (P,)

    Every layer counts alike, and one learning rate serves models whose activations differ in size. `power_L` is the
    teacher's mean square per layer over the whole training set, so that the batch does not change a row's loss.
    """
    return ((student_PLD.float() - teacher_PLD.float()).square().mean(-1) / power_L).sum(-1)


def kl(student_PV: Tensor, teacher_PV: Tensor, power_L: Tensor) -> Tensor:
    """KL(teacher || student) over the full vocabulary, in nats: soft labels. (P,)"""
    logp_PV, logq_PV = teacher_PV.float().log_softmax(-1), student_PV.float().log_softmax(-1)
    return (logp_PV.exp() * (logp_PV - logq_PV)).sum(-1)


def ce(student_PV: Tensor, ids_P: Tensor, power_L: Tensor) -> Tensor:
    """Cross-entropy of the response tokens, in nats. (P,)"""
    return F.cross_entropy(student_PV.float(), ids_P, reduction="none")


def mean_square(teacher_PLD: Tensor) -> Tensor:
    """The teacher's mean square per layer, the unit of `nmse`. (L,)"""
    return teacher_PLD.float().square().mean((0, 2)).clamp_min(torch.finfo(torch.float32).tiny)


LOSSES: dict[str, Loss] = {"mse": mse, "nmse": nmse, "kl": kl, "ce": ce}
ALIGNMENT_LOSSES = ("nmse", "mse")
