"""What LoRA adapters do to the weights: how large their updates are, and whether two of them go the same way."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from peft.utils.save_and_load import load_peft_weights
from torch import Tensor

from ia2.errors import IA2Error
from ia2.statistics import bootstrap, mean


@dataclass(frozen=True)
class Update:
    """What an adapter adds to one weight matrix, by its singular values: its k directions of the output that are not 0.

    Attributes:
        directions: left singular vectors (D, k), largest first.
        values: singular values (k,).
        rank: of the adapter, r.
    """

    directions: Tensor
    values: Tensor
    rank: int

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return float(self.values.norm())

    @property
    def effective_rank(self) -> float:
        """How many directions it uses: exp of the entropy of its singular values over their sum, 1 to r; 0 without any.

        Roy and Vetterli 2007.
        """
        share = self.values / self.values.sum()
        return float(torch.special.entr(share).sum().exp()) if len(share) else 0.0


def lora_update(a_rI: Tensor, b_Or: Tensor, scale: float) -> Update:
    """The update scale * b @ a of a matrix (O, I), from its factors, without forming it: QR of both, SVD of (r, r)."""
    left_Or, b_rr = torch.linalg.qr(b_Or.double())
    _, a_rr = torch.linalg.qr(a_rI.double().T)
    directions_rr, values, _ = torch.linalg.svd(scale * b_rr @ a_rr.T)
    used = values > values.max() * max(b_Or.shape) * torch.finfo(b_Or.dtype).eps
    return Update((left_Or @ directions_rr)[:, used], values[used], len(a_rI))


def lora_updates(folder: Path) -> dict[str, Update]:
    """The updates of a LoRA adapter folder by module, in order of layers.

    Raises:
        IA2Error: it is another kind of adapter, whose update of the weights is not of low rank.
    """
    config = PeftConfig.from_pretrained(str(folder)) if (folder / "adapter_config.json").is_file() else None
    if not isinstance(config, LoraConfig) or config.use_dora:
        kind = "full fine-tuning" if config is None else "DoRA" if isinstance(config, LoraConfig) else config.peft_type
        raise IA2Error(f"{folder}: found {getattr(kind, 'value', kind)}; expected LoRA, whose updates are of low rank")
    weights = load_peft_weights(str(folder), device="cpu")
    ends = {key.removesuffix(".lora_A.weight") for key in weights if key.endswith(".lora_A.weight")}
    found = {}
    for path in sorted(ends, key=lambda path: [int(part) if part.isdigit() else part for part in path.split(".")]):
        a_rI, b_Or = weights[f"{path}.lora_A.weight"], weights[f"{path}.lora_B.weight"]
        alphas = config.alpha_pattern or {}
        alpha = alphas.get(get_pattern_key(list(alphas), path), config.lora_alpha)
        scale = alpha / (math.sqrt(len(a_rI)) if config.use_rslora else len(a_rI))
        found[path.removeprefix("base_model.model.")] = lora_update(a_rI, b_Or, scale)
    return found


def cosines(a: Update, b: Update) -> Tensor:
    """Of the principal angles between the subspaces of the k largest directions, k of that which has fewer. (k,)"""
    k = min(len(a.values), len(b.values))
    found: Tensor = torch.linalg.svdvals(a.directions[:, :k].T @ b.directions[:, :k])
    return found.clamp(max=1)


def overlap(a: Update, b: Update) -> float | None:
    """(1/k) ||U_a^T U_b||_F^2, U the k largest directions (paper: k = r); in [0, 1], 1 for the same subspace.

    None where one of them changes nothing.
    """
    squares = cosines(a, b).square()
    return float(squares.mean()) if len(squares) else None


def expected_overlap(a: Update, b: Update) -> float:
    """Of two random subspaces of these sizes: k/D."""
    return min(len(a.values), len(b.values)) / len(a.directions)


def weights(adapters: Mapping[str, Path]) -> dict[str, Any]:
    """Norm and effective rank of every LoRA adapter's updates, and how far each two overlap, module by module.

    A `mean` is over the modules that both change, None without any, with a bootstrap interval over modules: it says how
    much modules differ, not how much another training would. Angles are in degrees, the smallest first.

    Raises:
        IA2Error: an adapter is not LoRA.
    """
    found = {name: lora_updates(folder) for name, folder in adapters.items()}
    modules = list(next(iter(found.values())))
    if other := next((name for name, of in found.items() if list(of) != modules), None):
        raise IA2Error(f"the adapter {other} changes other modules than {next(iter(found))}; expected the same")
    own = {
        name: {
            metric: _over_modules([getattr(u, metric) for u in of.values()]) for metric in ("norm", "effective_rank")
        }
        for name, of in found.items()
    }
    pairs = {}
    for a, b in combinations(found, 2):
        both = [(found[a][module], found[b][module]) for module in modules]
        shared = [overlap(*updates) for updates in both]
        chance = [None if of is None else expected_overlap(*updates) for of, updates in zip(shared, both, strict=True)]
        angles = [cosines(*updates).acos().rad2deg().tolist() for updates in both]
        pairs[f"{a} - {b}"] = {
            "overlap": _over_modules(shared),
            "expected": _over_modules(chance),
            "angles": angles,
            "mean_angle": _over_modules([float(np.mean(of)) if of else None for of in angles]),
        }
    return {"modules": modules, "adapters": own, "pairs": pairs}


def _over_modules(values: Sequence[float | None]) -> dict[str, Any]:
    known = np.array([value for value in values if value is not None])
    return {"values": list(values), "mean": asdict(bootstrap(mean, known)) if len(known) else None}
