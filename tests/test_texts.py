"""Perplexity of running text, beside what transformers says."""

from pathlib import Path

import pytest
import torch
from conftest import example_rows

from ia2.adapters import new_adapter
from ia2.analysis import Passage, perplexities, read_texts
from ia2.errors import IA2Error
from ia2.evaluation import Variant
from ia2.files import write_jsonl
from ia2.models import LanguageModel
from ia2.world.curriculum import CURRICULUM, passages

MINE = Variant("mine", adapter="default")


def naive(lm: LanguageModel, text: Passage, bos: list[int]) -> tuple[float, int]:
    """Summed over the scored tokens of a text, by the loss of transformers; and their number."""
    before, scored = (
        lm.encoder.tokenizer(part, add_special_tokens=False).input_ids if part else []
        for part in (text.before, text.scored)
    )
    ids = torch.tensor([[*bos, *before, *scored]])
    labels = ids.clone()
    n_before = len(bos) + len(before)
    labels[:, :n_before] = -100
    n = len(scored) - (n_before == 0)
    with torch.no_grad():
        return float(lm.model(input_ids=ids, labels=labels).loss) * n, n


@pytest.mark.parametrize("with_bos", [True, False])
@pytest.mark.parametrize("texts", [[Passage("", e.query) for e in example_rows(9)], [Passage(*p) for p in passages(9)]])
def test_perplexity_is_that_of_transformers(texts: list[Passage], with_bos: bool, lm: LanguageModel) -> None:
    bos = lm.encoder.bos = lm.encoder.bos if with_bos else []
    assert with_bos == bool(bos)
    with new_adapter(lm, "lora", {"init_lora_weights": False}):
        found = perplexities(lm, texts, [MINE])
        own = [naive(lm, text, bos) for text in texts]
        with lm.model.disable_adapter():
            before = [naive(lm, text, bos) for text in texts]
    n = sum(of for _, of in own)
    nll = {name: sum(of for of, _ in sums) / n for name, sums in (("mine", own), ("before", before))}
    assert (found["n"], found["n_tokens"]) == (9, n)
    assert {name: of["nll"]["value"] for name, of in found["methods"].items()} == pytest.approx(nll, rel=1e-4)
    gap = found["differences"]["mine - before"]["nll"]
    assert gap["value"] == pytest.approx(nll["mine"] - nll["before"], rel=1e-3)
    assert gap["low"] < gap["value"] < gap["high"]
    for name, of in found["methods"].items():
        assert of["perplexity"]["value"] == pytest.approx(torch.tensor(nll[name]).exp().item(), rel=1e-4)


def test_passages_of_the_world_are_of_all_families_and_read_as_they_are_written(lm: LanguageModel) -> None:
    found = passages(120)
    assert found == passages(120) != passages(120, seed=1)
    assert len(set(found)) == 120
    cues = {before.split(":")[-2].split("\n")[-1] for before, _ in found}
    assert {"Label", "Answer"} <= cues
    lengths = {len(lm.encoder.tokenizer(scored, add_special_tokens=False).input_ids) for _, scored in found}
    assert lengths == {1, 6}  # labels and options, and sums
    for before, scored in found:
        assert lm.encoder.piece(before) + lm.encoder.piece(scored) == lm.encoder.piece(before + scored)
        assert before.count("\n\n") >= min(part.K for part in CURRICULUM[-1].parts) - 1


def test_texts_of_files(tmp_path: Path) -> None:
    texts = [f"one {i}\ntwo" for i in range(16)]
    (tmp_path / "a.txt").write_text("\n \n".join(texts) + "\n\n\n")
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    assert read_texts(str(tmp_path / "a.txt")) == read_texts(str(tmp_path / "a.jsonl")) == [("", t) for t in texts]
    assert len(read_texts("world")) == 200
    write_jsonl(tmp_path / "few.jsonl", [{"text": text} for text in texts[1:]])
    for name, message in (("few.jsonl", "found 15 texts; expected 16 or more"), ("none.txt", "cannot be read")):
        with pytest.raises(IA2Error, match=message):
            read_texts(str(tmp_path / name))
