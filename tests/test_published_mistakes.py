"""The sixteen mistakes of the published scripts, each with a test that would have caught it.

Where another file tests the matter, the test is named here, so that the list is complete in one place.
"""

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_adapters
import test_answers
import test_capture
import test_evaluation
import test_losses
import test_metrics
import test_run
import test_training
import torch
from conftest import GENERATED, example_rows, random_model

import ia2
import ia2.lessons
from ia2.config import make_config
from ia2.errors import IA2Error
from ia2.evaluation import generate
from ia2.models import LanguageModel, load_model, wrap_model
from ia2.prompt import build_prompt
from ia2.run import Data, Run
from ia2.world.tokenizer import build_tokenizer

ELSEWHERE = {
    1: test_training.test_the_best_weights_are_copied_and_restored,
    2: test_training.test_gradient_accumulation_changes_nothing_nor_drops_the_last_window,
    3: test_training.test_the_same_seed_gives_the_same_bits_and_another_does_not,
    4: test_adapters.test_aligned_positions_decode_to_the_response,
    5: test_run.test_every_method_runs_and_changes_the_model,
    7: test_capture.test_capture_equals_naive_capture,
    9: test_losses.test_half_precision_inputs_are_compared_in_float32,
    11: test_run.test_the_learning_rate_is_chosen_by_development_loss,
    12: (
        test_evaluation.test_label_scores_are_the_sum_over_all_tokens_of_each_label,
        test_metrics.test_ece_equals_a_naive_one,
        test_evaluation.test_ties_count_as_wrong,
        test_evaluation.test_unparsable_answers_count_as_wrong,
    ),
    14: test_evaluation.test_similarity_is_to_icl_on_the_same_gold_tokens,
    15: (
        test_answers.test_every_number_is_read_back_however_it_is_written,
        test_answers.test_nested_boxes,
    ),
}


def make_run(model_folder: str, folder: Path, **options: Any) -> Run:
    data = Data(tuple(example_rows(5)), tuple(example_rows(7)[5:]))
    return Run.create(folder, make_config({"model": model_folder, "num_train_epochs": 1, **options}), data)


def test_every_mistake_has_its_test() -> None:
    here = {int(n) for n in (part.split("_")[1] for part in globals() if part.startswith("test_")) if n.isdigit()}
    in_readme = {16}  # tests/test_docs.py runs every command of the documentation
    assert here | set(ELSEWHERE) | in_readme == set(range(1, 17))


def test_06_errors_are_neither_swallowed_nor_reported_as_success() -> None:
    for path in Path(ia2.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert caught not in ("everything", "Exception", "BaseException"), f"{path}:{node.lineno}"


def test_07_zero_layers_are_an_error() -> None:
    class Copy(torch.nn.Module):
        def forward(self, hidden_BTD: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
            return hidden_BTD, None

    model = random_model("gpt2")
    for block in model.transformer.h:
        block.attn = Copy()
    with pytest.raises(IA2Error, match=r"found no self-attention in 3 layers.*made of Copy, GPT2MLP, LayerNorm"):
        wrap_model(model, build_tokenizer())


def test_08_left_padding_in_generation_changes_nothing(any_lm: LanguageModel) -> None:
    rows = [any_lm.encoder.encode(build_prompt(GENERATED, (), row.query)) for row in example_rows(4)]
    assert len({len(row.ids) for row in rows}) > 1
    assert generate(any_lm, rows, GENERATED) == [generate(any_lm, [row], GENERATED)[0] for row in rows]


def test_10_generation_uses_a_cache(lm: LanguageModel) -> None:
    widths: list[int] = []
    lm.base.model.layers[0].register_forward_hook(lambda module, args, output: widths.append(args[0].shape[1]))
    row = lm.encoder.encode(build_prompt(GENERATED, example_rows(4), "Text:soup\nLabel:"))
    new = generate(lm, [row], GENERATED)[0]
    assert widths == [len(row.ids)] + [1] * (len(new) - 1)


def test_10_the_teacher_runs_once_for_all_learning_rates(
    model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    collect = ia2.lessons.collect
    monkeypatch.setattr(
        "ia2.lessons.collect", lambda lm, prompts, *rest: calls.append(len(prompts)) or collect(lm, prompts, *rest)
    )
    lm = load_model(model_folder, device="cpu")
    make_run(model_folder, tmp_path / "run", learning_rate=(1e-4, 1e-3, 1e-2)).train(lm)
    assert calls == [5, 2]
    again = make_run(model_folder, tmp_path / "other", learning_rate=(1e-5,))
    again = replace(again, targets=tmp_path / "run" / "targets")
    monkeypatch.setattr("ia2.targets.passes", lambda *_: pytest.fail("collected again"))
    again.train(lm)


def test_13_icl_has_the_very_samples_that_the_adapter_is_trained_on(model_folder: str, tmp_path: Path) -> None:
    run = make_run(model_folder, tmp_path / "run")
    contexts = run.contexts(load_model(model_folder, device="cpu"))
    icl = next(v for v in run.variants(contexts) if v.name == "icl")
    test = ia2.Example("Text:soup\nLabel:", "0")
    assert sorted(icl.prompt(run.task(), test).context[0::3]) == sorted(e.query for e in run.data.train)
    prompts = [contexts.prompt(run.task(), e, e.label, np.random.default_rng(0)) for e in run.data.train]
    for example, prompt in zip(run.data.train, prompts, strict=True):
        assert sorted(prompt.context[0::3]) == sorted(e.query for e in run.data.train if e is not example)
        assert prompt.query == example.query
