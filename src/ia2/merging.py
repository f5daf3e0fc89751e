"""A trained adapter merged into its base: one plain model, and how far it is from the two."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from ia2.adapters import loaded_adapters, using
from ia2.errors import IA2Error
from ia2.files import write_json, written_aside
from ia2.models import LanguageModel
from ia2.passes import passes
from ia2.prompt import Prompt, Tokens


@dataclass(frozen=True)
class MergeReport:
    """Differences of the merged model's logits from the adapter's, over all response positions, in float32."""

    max_difference: float
    mean_difference: float
    n_positions: int


@torch.no_grad()
def merge(lm: LanguageModel, adapter: Path, output: Path, prompts: Sequence[Prompt]) -> MergeReport:
    """Merge an adapter folder into the base in float32, and save the model with its tokenizer as safetensors.

    Args:
        lm: the base; it is changed, and is of no further use.
        adapter: a PEFT folder.
        output: a folder that `from_pretrained` loads, with `merging.json`, the report.
        prompts: with responses; where the two are compared.

    Raises:
        IA2Error: the folder is not empty, or the adapter is not one that can be merged into weights.
    """
    if output.exists():
        raise IA2Error(f"{output} exists; choose another output folder")
    if getattr(lm.base, "is_quantized", False):
        raise IA2Error("the base is quantised, and what is merged into it would be rounded; merge into the whole model")
    lm.base.float()
    rows = [lm.encoder.encode(prompt) for prompt in prompts]
    with loaded_adapters(lm, {"adapter": adapter}), using(lm, "adapter"):
        expected = _logits(lm, rows)
        if isinstance(lm.model, PeftModel):
            if lm.adds_tokens:
                raise IA2Error(
                    f"{adapter}: an adapter of virtual tokens cannot be merged into weights; use it as it is"
                )
            merge_and_unload: Any = lm.model.base_model.merge_and_unload
            lm.model = merge_and_unload()
        difference = (_logits(lm, rows) - expected).abs()
        report = MergeReport(difference.max().item(), difference.mean().item(), len(difference))
        with written_aside(output) as aside:
            lm.base.save_pretrained(aside)
            lm.encoder.tokenizer.save_pretrained(aside)
            write_json(aside / "merging.json", asdict(report))
    return report


def _logits(lm: LanguageModel, rows: Sequence[Tokens]) -> Tensor:
    """In float32, at all response positions, row by row. (P, V)"""
    found: dict[int, Tensor] = {}
    for chosen, _, values in passes(lm, rows, {"logits"}):
        parts = values["logits"].float().split([rows[i].n_response for i in chosen])
        found |= dict(zip(chosen, parts, strict=True))
    return torch.cat([found[i] for i in range(len(rows))])
