"""The table of methods, and what a user composes."""

from typing import Any

import pytest

from ia2.config import make_config
from ia2.errors import IA2Error
from ia2.losses import ALIGNMENT_LOSSES
from ia2.methods import METHODS, Stage, Term, methods, named_stages


@pytest.mark.parametrize("name", METHODS)
def test_stages_are_named_by_the_methods_they_lead_to(name: str) -> None:
    stages = named_stages(name, methods())
    assert list(stages)[-1] == name
    assert set(stages) <= set(METHODS)
    assert tuple(stages.values()) == methods()[name].stages


def test_the_papers_methods_are_what_the_paper_says() -> None:
    table = methods(loss="mse", beta=0.1)
    assert table["ia2"].stages == (Stage((Term("attn_out", "mse"),)),)
    assert table["ia2-sft"].stages == (*table["ia2"].stages, *table["sft"].stages)
    assert table["sft-ia2"].stages == tuple(reversed(table["ia2-sft"].stages))
    (joint,) = table["joint"].stages
    assert [(t.site, t.loss, t.weight) for t in joint.terms] == [("attn_out", "mse", 0.9), ("logits", "ce", 0.1)]
    assert not joint.imitates
    assert table["icl-distill"].stages[0].imitates


def test_a_stage_that_a_user_writes() -> None:
    method = {
        "align": {"terms": {"attn_out": "cosine", "logits": {"kl": 0.1, "ce": 0.5}}, "learning_rate": [1e-2]},
        "tune": {"terms": {"logits": "ce"}, "num_train_epochs": 3, "metric_for_best_model": "accuracy"},
    }
    config = make_config({"model": "tiny", "method": method, "layers": "last:2", "temperature": 2.0})
    assert config.result == "tune"
    align, tune = config.stages().values()
    assert align.terms == (Term("attn_out", "cosine"), Term("logits", "kl", 0.1), Term("logits", "ce", 0.5))
    assert (align.layers, align.temperature) == ("last:2", 2.0)
    assert tune.terms == (Term("logits", "ce"),)
    assert [s.learning_rate for s in config.settings("align", 8)] == [1e-2]
    (first, *_) = config.settings("tune", 2)
    assert (first.num_train_epochs, first.metric_for_best_model, first.per_device_train_batch_size) == (
        3,
        "accuracy",
        2,
    )


def test_each_stage_has_its_own_settings() -> None:
    options = {"prime_learning_rate": (1e-2,), "learning_rate": (1e-4,), "prime_num_train_epochs": 7}
    config = make_config({"model": "tiny", **options, "prime_metric_for_best_model": "nll"})
    (prime,), (tune,) = config.settings("ia2", 8), config.settings("ia2-sft", 8)
    assert (prime.learning_rate, prime.num_train_epochs, prime.metric_for_best_model) == (1e-2, 7, "nll")
    assert (tune.learning_rate, tune.num_train_epochs, tune.metric_for_best_model) == (1e-4, 50, "loss")


def test_every_alignment_loss_can_be_chosen() -> None:
    for loss in ALIGNMENT_LOSSES:
        config = make_config({"model": "tiny", "loss": loss, "method": "hidden-sft"})
        assert config.stages()["hidden"].terms == (Term("hidden", loss),)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({}, "the method has no stages"),
        ({"../up": {"terms": {"logits": "ce"}}}, "a stage is called '../up'"),
        ({"a": {"terms": {"logits": "mse"}}}, "unknown loss at logits 'mse'"),
        ({"a": {"terms": {"attn_out": "ce"}}}, "unknown loss at attn_out 'ce'"),
        ({"a": {"terms": {"attn": "mse"}}}, "attn"),
        ({"a": {"terms": {"logits": "ce"}, "learning_rte": [1]}}, "learning_rte"),
    ],
)
def test_mistakes_in_a_method(method: dict[str, object], message: str) -> None:
    with pytest.raises(IA2Error) as error:
        make_config({"model": "tiny", "method": method}).stages()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", [1e-3, "1e-3", [1e-3], (1e-3,)])
def test_one_learning_rate_needs_no_list(given: Any) -> None:
    assert make_config({"model": "tiny", "learning_rate": given}).learning_rate == (1e-3,)
