"""What each stage learns from, by way of whole runs on a random model."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import example_rows, reasoned_rows

from ia2.capture import Selection, read
from ia2.config import make_config
from ia2.data import Example
from ia2.errors import IA2Error
from ia2.evaluation import Answer, Variant, answer
from ia2.files import read_json, read_jsonl
from ia2.jobs import Rows
from ia2.lessons import Lessons
from ia2.models import LanguageModel
from ia2.prompt import build_prompt
from ia2.run import Data, Run
from ia2.targets import collect
from ia2.task import Task

TRAIN, DEV = tuple(example_rows(5)), tuple(example_rows(8)[5:])
EXTRA = tuple(Example(f"Text:{word}\nLabel:") for word in ("soup soup", "city city"))


def lessons(lm: LanguageModel, folder: Path, **options: Any) -> tuple[Run, Lessons]:
    run = Run(folder, make_config({"model": "tiny", "labels": ("0", "1"), **options}), Data(TRAIN, DEV, EXTRA))
    examples = {"train": TRAIN, "unlabelled": EXTRA, "dev": DEV}
    return run, Lessons(lm, run.config, run.task(), run.contexts(lm), examples, folder, folder / "targets")


def rows(lm: LanguageModel, folder: Path, **options: Any) -> tuple[Run, Rows]:
    run, made = lessons(lm, folder, **options)
    return run, made.rows(next(iter(run.config.stages().values())))[0]


def ids(lm: LanguageModel, pairs: Iterable[tuple[str, str]]) -> list[tuple[int, ...]]:
    """Of bare queries with their responses."""
    return [(*lm.encoder.bos, *lm.encoder.piece(query), *lm.encoder.piece(text)) for query, text in pairs]


def shown(made: Rows) -> list[tuple[int, ...]]:
    return [row.ids for row, _ in made.items]


def test_each_row_has_what_the_teacher_does_behind_the_other_demos(lm: LanguageModel, tmp_path: Path) -> None:
    run, made = rows(lm, tmp_path, method="ia2", demos="fixed")
    assert shown(made)[: len(TRAIN)] == ids(lm, [(e.query, e.label) for e in TRAIN])
    for i, example in enumerate(TRAIN):
        others = [demo for demo in TRAIN if demo is not example]
        taught = lm.encoder.encode(build_prompt(run.task(), others, example.query, example.label))
        expected = read(lm.base, lm.anatomy, lm.encoder.collate([taught]), {"attn_out"})["attn_out"]
        torch.testing.assert_close(made[i][1]["attn_out"], expected, rtol=1e-4, atol=1e-5)


def test_all_permutations_are_rows_and_their_mean_is_one(lm: LanguageModel, tmp_path: Path) -> None:
    _, every = rows(lm, tmp_path, method="ia2", n_permutations=3)
    _, mean = rows(lm, tmp_path, method="ia2", n_permutations=3, permutations="mean")
    assert (len(every), len(mean)) == (3 * (5 + 2), 5 + 2)
    for i in range(len(mean)):
        three = [every[3 * i + k] for k in range(3)]
        assert {row.ids for row, _ in three} == {mean[i][0].ids}
        acts = torch.stack([targets["attn_out"] for _, targets in three])
        assert not torch.allclose(acts[0], acts[1])
        torch.testing.assert_close(mean[i][1]["attn_out"], acts.mean(0))
    _, soft = rows(lm, tmp_path, method="soft", n_permutations=2, permutations="mean")
    _, both = rows(lm, tmp_path, method="soft", n_permutations=2)
    p = [both[k][1]["logits"].softmax(-1) for k in (0, 1)]
    torch.testing.assert_close(soft[0][1]["logits"].softmax(-1), (p[0] + p[1]) / 2)


def test_demos_drawn_anew_for_every_epoch(lm: LanguageModel, tmp_path: Path) -> None:
    _, made = rows(lm, tmp_path, method="ia2", reshuffle=True)
    first = made[0][1]["attn_out"].clone()
    made.begin(1)
    second = made[0][1]["attn_out"].clone()
    assert not torch.allclose(first, second)
    made.begin(0)
    assert torch.equal(made[0][1]["attn_out"], first)
    _, fixed = rows(lm, tmp_path, method="ia2")
    fixed.begin(1)
    assert torch.equal(fixed[0][1]["attn_out"], first)


def test_responses_of_the_teacher_itself(lm: LanguageModel, tmp_path: Path) -> None:
    run, made = rows(lm, tmp_path, method="icl-distill")
    given = answer(lm, run.task(), (*TRAIN, *EXTRA), Variant("icl", run.contexts(lm)))
    assert shown(made) == ids(lm, [(e.query, a.text) for e, a in zip((*TRAIN, *EXTRA), given, strict=True)])
    assert [a.text for a in given[: len(TRAIN)]] != [e.label for e in TRAIN]
    _, sampled = rows(lm, tmp_path / "sampled", method="icl-distill", sample_responses=20)
    assert len(sampled) == 20 * (5 + 2)
    (one,) = lm.encoder.piece("1")
    said = [row[-1] == one for row in shown(sampled)]
    assert np.mean(said[:20]) == pytest.approx((given[0].p_labels or {})["1"], abs=0.35)
    assert 0 < np.mean(said) < 1
    _, taught = rows(lm, tmp_path, method="ia2", responses="teacher")
    assert shown(taught) == shown(made)
    _, tuned = rows(lm, tmp_path, method="sft", responses="teacher")
    assert shown(tuned) == ids(lm, [(e.query, e.label) for e in TRAIN])


def test_queries_are_answered_in_parts(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(lm: LanguageModel, task: Task, examples: Any, variant: Variant) -> list[Answer]:
        sizes.append(len(examples))
        return answer(lm, task, examples, variant)

    monkeypatch.setattr("ia2.lessons.answer", counted)
    whole = lessons(lm, tmp_path / "whole")[1].answered("train")
    monkeypatch.setattr("ia2.lessons.N_ANSWERED", 2)
    assert lessons(lm, tmp_path / "parts")[1].answered("train") == whole
    assert sizes == [5, 2, 2, 1]


def test_texts_are_sampled_too(lm: LanguageModel, tmp_path: Path) -> None:
    data = Data(tuple(reasoned_rows(3)), ())
    options = {"labels": "none", "method": "icl-distill", "sample_responses": 2, "max_new_tokens": 4}
    config = make_config({"model": "tiny", **options})
    run = Run(tmp_path, config, data)
    examples = {"train": data.train, "unlabelled": (), "dev": ()}
    made = Lessons(lm, config, run.task(), run.contexts(lm), examples, tmp_path, tmp_path / "targets")
    assert len(made.answered("train")) == 6
    assert made.answered("train") == [Example(**row) for row in read_jsonl(tmp_path / "answered-train.jsonl")]


@pytest.mark.parametrize("positions", ["response", "first", "query"])
def test_positions_that_are_aligned(lm: LanguageModel, positions: Any) -> None:
    row = reasoned_rows(3)[2]
    task = make_run_task()
    bare, taught = (lm.encoder.encode(build_prompt(task, demos, row.query, row.label)) for demos in ((), TRAIN[:2]))
    n = {"response": bare.n_response, "first": 1, "query": bare.n_query + bare.n_response - 1}[positions]
    for tokens in (bare, taught):
        places = tokens.aligned(positions)
        assert len(places) == n
        start = len(tokens.ids) - tokens.n_response
        assert places[-1] + 1 == (start if positions == "first" else len(tokens.ids) - 1)
    assert [bare.ids[t] for t in bare.aligned(positions)] == [taught.ids[t] for t in taught.aligned(positions)]
    prompt = build_prompt(task, TRAIN[:2], row.query, row.label)
    found = collect(lm, [prompt], Selection(frozenset(("attn_out", "logits")), frozenset({0, 2}), positions))
    assert found.values["attn_out"][0].shape == (n, 2, 32)
    assert len(found.values["logits"][0]) == bare.n_response


def make_run_task() -> Any:
    return Run(Path(), make_config({"model": "tiny", "labels": "none"}), Data(TRAIN)).task()


def test_the_teacher_is_looked_at_before_training(
    lm: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lessons(lm, tmp_path)[1].look_at_teacher()
    record = read_json(tmp_path / "teacher.json")
    for name, demos in (("without", ()), ("with", TRAIN)):
        nll = []
        for example in DEV:
            run, made = lessons(lm, tmp_path)
            before = made.contexts.shown(example, np.random.default_rng([0, 3])) if demos else []
            row = lm.encoder.encode(build_prompt(run.task(), before, example.query, example.label)).ids
            nll.append(-lm.base(torch.tensor([row])).logits[0, -2].log_softmax(-1)[row[-1]].item())
        assert record[name]["nll"] == pytest.approx(np.mean(nll), rel=1e-5)
    assert "with its context" in capsys.readouterr().err


def test_a_teacher_whose_context_does_not_help_is_said_so(
    lm: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, made = lessons(lm, tmp_path, n_demos=0)
    made.look_at_teacher()
    assert "no better for its context" in capsys.readouterr().err


def test_a_context_of_its_own_stands_in_for_demos(model_folder: str, tmp_path: Path) -> None:
    data = Data((replace(TRAIN[0], context="soup is winter"),), ())
    run = Run.create(tmp_path / "run", make_config({"model": model_folder, "labels": ("0", "1"), **FAST}), data)
    run.train()
    assert Run.open(run.folder).data.train[0].context == "soup is winter"
    with pytest.raises(IA2Error, match="expected at least 2"):
        Run.create(tmp_path / "other", run.config, Data(TRAIN[:1]))


FAST = {"num_train_epochs": 1, "learning_rate": (1e-2,)}


def test_duplicates_are_refused(model_folder: str, tmp_path: Path) -> None:
    config = make_config({"model": model_folder, "labels": ("0", "1")})
    with pytest.raises(IA2Error, match="a train row and a dev row have the same query"):
        Run.create(tmp_path / "run", config, Data(TRAIN, (TRAIN[1],)))


def test_demos_are_dropped_only_if_asked_for(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = tuple(Example(f"Text:{'soup ' * 150}{i}\nLabel:", str(i % 2)) for i in range(4))
    config = make_config({"model": model_folder, "method": "ia2", "labels": ("0", "1"), **FAST})
    with pytest.raises(IA2Error, match=r"a prompt of \d+ tokens .* exceeds the model's window of 512"):
        Run.create(tmp_path / "run", config, Data(long)).train()
    dropping = make_config({**config.model_dump(), "drop_demos": True})
    Run.create(tmp_path / "run", dropping, Data(long)).train()
    assert "4 rows are shown fewer demos, so that they fit the window of 512 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("room", [None, 0])
def test_targets_are_kept_where_there_is_room_for_them(
    room: int | None,
    lm: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if room is not None:
        monkeypatch.setattr("ia2.lessons.room", lambda folder: room)
    _, made = rows(lm, tmp_path, method="ia2")
    assert bool(list(tmp_path.rglob("*.safetensors"))) == (room is None)
    assert ("computed when needed" in capsys.readouterr().err) == (room is not None)
    _, stored = rows(lm, tmp_path, method="ia2", targets="stored")
    torch.testing.assert_close(made[2][1]["attn_out"], stored[2][1]["attn_out"])


def test_live_targets_are_not_kept_nor_averaged(lm: LanguageModel, tmp_path: Path) -> None:
    rows(lm, tmp_path, method="ia2", targets="live")
    assert not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(IA2Error, match="targets: live does not go with permutations: mean"):
        rows(lm, tmp_path, method="ia2", targets="live", n_permutations=2, permutations="mean")


def test_where_the_teacher_answers_nothing_there_is_nothing_to_learn(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ia2.lessons.answer", lambda lm, task, share, teacher: [Answer("", 1.0, 1.0, 0, {})] * len(share)
    )
    with pytest.raises(IA2Error, match="all answers of the teacher are empty"):
        rows(lm, tmp_path, method="icl-distill", labels="none")
