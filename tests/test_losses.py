"""Losses against sums written out by hand."""

import math

import torch
from torch import Tensor

from ia2.losses import Scale, ce, kl, mean_square, mse, nmse

P, L, D, V = 5, 3, 4, 7
NONE, ONES = Scale(torch.ones(0)), Scale(torch.ones(L))


def tensors(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator), 3 * torch.randn(*shape, generator=generator)


def test_mse_is_the_papers_mean_square_times_the_number_of_layers() -> None:
    student, teacher = tensors(P, L, D)
    value = mse(student, teacher, ONES)
    for p in range(P):
        squares = [(student[p, i, d] - teacher[p, i, d]).item() ** 2 for i in range(L) for d in range(D)]
        assert math.isclose(value[p].item(), sum(squares) / len(squares) * L, rel_tol=1e-5)
    assert math.isclose(value.mean().item(), ((student - teacher) ** 2).mean().item() * L, rel_tol=1e-5)


def test_nmse_does_not_change_when_a_layer_is_scaled() -> None:
    student, teacher = tensors(P, L, D)
    scale = torch.tensor([1.0, 10.0, 0.01])[None, :, None]
    plain = nmse(student, teacher, Scale(mean_square(teacher)))
    scaled = nmse(student * scale, teacher * scale, Scale(mean_square(teacher * scale)))
    torch.testing.assert_close(plain, scaled, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mse(student, teacher, ONES), mse(student * scale, teacher * scale, ONES))
    power = [sum(teacher[p, i, d].item() ** 2 for p in range(P) for d in range(D)) / (P * D) for i in range(L)]
    by_hand = sum(((student[0, i] - teacher[0, i]) ** 2).mean().item() / power[i] for i in range(L))
    assert math.isclose(plain[0].item(), by_hand, rel_tol=1e-5)


def test_kl_and_ce_by_hand() -> None:
    student, teacher = tensors(P, V)
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    by_hand = [sum(p[i, v] * math.log(p[i, v] / q[i, v]) for v in range(V)) for i in range(P)]
    torch.testing.assert_close(kl(student, teacher, NONE).double(), torch.stack(by_hand), rtol=1e-5, atol=1e-6)
    assert kl(teacher, teacher, NONE).abs().max() < 1e-6
    ids = torch.arange(P)
    hard = ce(student, ids, NONE)
    torch.testing.assert_close(hard.double(), -torch.stack([q[i, i].log() for i in range(P)]), rtol=1e-5, atol=1e-6)


def test_half_precision_inputs_are_compared_in_float32() -> None:
    student, teacher = (t.bfloat16() for t in tensors(P, L, D))
    value = mse(student, teacher, ONES)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, mse(student.float(), teacher.float(), ONES), rtol=0, atol=0)
    logits, labels = (t.bfloat16() for t in tensors(P, V))
    assert kl(logits, labels, NONE).dtype == ce(logits, torch.arange(P), NONE).dtype == torch.float32
