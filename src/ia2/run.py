"""A run: a folder in which every step leaves one finished file or folder, so that the same command again continues it.

config.yaml  environment.json  examples.jsonl   what was asked, where, and of which rows
targets/*.safetensors                           what the teacher did (collect)
adapters/METHOD/                                a plain PEFT folder a stage, and training.json (prime, fine-tune)
snapshots/METHOD/STEP/                          the same on the way, where the option `snapshots` asks for it
predictions.jsonl  metrics.json  report.html    evaluation
"""

import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ia2.adapters import find_adapter, loaded_adapters, n_trainable, save_adapter
from ia2.adapters import new_adapter as fresh_adapter
from ia2.bank import Weights, restore, trainable_copy
from ia2.config import RunConfig, make_config, read_config
from ia2.contexts import Contexts, Similarity, tfidf
from ia2.data import Example, hold_out
from ia2.errors import IA2Error
from ia2.estimate import estimate
from ia2.evaluation import Answer, Variant, answer, evaluate
from ia2.files import (
    damaged,
    key_of,
    locked,
    read_json,
    read_jsonl,
    remove_together,
    write_json,
    write_jsonl,
    write_text,
    written_aside,
)
from ia2.jobs import Job, TrainingResult, TrainingSettings, best_of
from ia2.lessons import SPLITS, Lessons
from ia2.memory import free
from ia2.models import LanguageModel, load_model
from ia2.processes import processes, shared_out
from ia2.progress import say
from ia2.prompt import Tokens, build_prompt
from ia2.results import write_results
from ia2.summary import difference, summarise
from ia2.task import Task, infer_labels
from ia2.tracking import check_installed, tensorboard_in
from ia2.training import train_jobs

SIDE_BY_SIDE = 64
CHECKPOINTS = "checkpoints"  # of a training at work, in the folder of the first run that it is for


@dataclass(frozen=True)
class Data:
    """The rows of a run. `unlabelled` ones have a query only; the teacher answers them for the alignment stages."""

    train: Sequence[Example]
    dev: Sequence[Example] = ()
    unlabelled: Sequence[Example] = ()

    @staticmethod
    def split(rows: Sequence[Example], seed: int, unlabelled: Sequence[Example] = ()) -> "Data":
        """Hold a part of the labelled rows out for development, as the paper does, and say so."""
        train, dev = hold_out(rows, seed)
        if dev:
            say(f"{len(dev)} of {len(rows)} rows are held out for development, {len(train)} are left to train on")
        return Data(train, dev, unlabelled)

    def say_if_seen(self, test: Sequence[Example], name: str = "test") -> None:
        """Say how many test rows are not new to what is trained."""
        seen = {example.query for example in (*self.train, *self.dev, *self.unlabelled)}
        if n := sum(example.query in seen for example in test):
            say(f"{n} of {len(test)} {name} rows are among those to train or develop with: results are not of new rows")


@dataclass(frozen=True)
class Run:
    """A run folder; `Run.create` makes or continues one, `Run.open` reads one."""

    folder: Path
    config: RunConfig
    data: Data
    targets: Path | None = None  # where what the teacher does is kept; in the folder, if None
    trust_remote_code: bool = False  # of the base model; never kept in the folder

    @staticmethod
    def create(
        folder: str | Path,
        config: RunConfig,
        data: Data,
        targets: Path | None = None,
        trust_remote_code: bool = False,
    ) -> "Run":
        """A run to train in `folder`, or to continue there; nothing is written before `train`.

        Args:
            folder: of the run.
            config: of the run.
            data: its rows.
            targets: where what the teacher does is kept, to be shared by runs on the same rows.
            trust_remote_code: see `ia2.load_model`.

        Raises:
            IA2Error: the folder holds something else, or a run of another configuration or of other rows.
        """
        folder = Path(folder)
        run = Run(folder, config, data, targets, trust_remote_code)
        if (folder / "config.yaml").is_file():
            run._check_same(Run.open(folder))
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise IA2Error(f"{folder}: exists and is not a run; choose another output folder, or empty this one")
        run.check_rows()
        return run

    def check_rows(self) -> None:
        """What can be known of the rows without a model."""
        train, config = self.data.train, self.config
        if not train or (len(train) == 1 and not (config.context or train[0].context)):
            raise IA2Error(
                f"{len(train)} training example(s); expected at least 2, as each is shown the others as demos, "
                "or one with a context of its own (--context, or a column 'privileged_context')"
            )
        if (config.n_demos or 0) > len(train):
            raise IA2Error(f"n_demos is {config.n_demos} and there are {len(train)} training examples")
        seen: dict[str, str] = {}
        for split in ("train", "dev", "unlabelled"):
            for example in getattr(self.data, split):
                if example.query in seen:
                    raise IA2Error(
                        f"a {seen[example.query]} row and a {split} row have the same query {example.query[:60]!r}: "
                        "one as a demo would give the other's answer away; remove one"
                    )
                seen[example.query] = split
        if labels := self.task().labels:
            for example in (*train, *self.data.dev):
                if example.label not in labels:
                    raise IA2Error(f"the response {example.label!r} is not among the labels {', '.join(labels)}")

    @staticmethod
    def open(folder: str | Path, trust_remote_code: bool = False) -> "Run":
        """Read the configuration and the rows of a run folder."""
        folder = Path(folder)
        if not (folder / "config.yaml").is_file() or not (folder / "examples.jsonl").is_file():
            raise IA2Error(f"{folder}: not a run (no config.yaml and examples.jsonl); expected what 'ia2 train' wrote")
        values = read_config(folder / "config.yaml")
        values.pop("trust_remote_code", None)  # older runs have it
        config = make_config(values)
        rows: dict[str, list[Example]] = {"train": [], "dev": [], "unlabelled": []}
        path = folder / "examples.jsonl"
        for i, row in enumerate(read_jsonl(path, folder), 1):
            try:
                rows[row.pop("split")].append(Example(**row))
            except (AttributeError, KeyError, TypeError):
                raise damaged(path, f"line {i} is no example", folder) from None
        return Run(folder, config, Data(**rows), trust_remote_code=trust_remote_code)

    def _write(self) -> None:
        with written_aside(self.folder) as aside:
            aside.mkdir(parents=True)
            write_jsonl(aside / "examples.jsonl", self._rows())
            write_json(aside / "environment.json", environment())
            write_text(aside / "config.yaml", yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
            if processes().is_main_process and self.folder.exists():
                self.folder.rmdir()

    def _rows(self) -> Iterator[dict[str, Any]]:
        for split in ("train", "dev", "unlabelled"):
            yield from ({"split": split, **asdict(example)} for example in getattr(self.data, split))

    def _check_same(self, found: "Run") -> None:
        old, new = found.config.model_dump(), self.config.model_dump()
        if changed := [f"{name} {old[name]!r}, now {new[name]!r}" for name in new if old[name] != new[name]]:
            raise IA2Error(f"{self.folder} holds a run with {'; '.join(changed)}: choose another output folder")
        if list(found._rows()) != list(self._rows()):
            raise IA2Error(f"{self.folder} holds a run on other rows (examples.jsonl): choose another output folder")

    @property
    def adapters(self) -> dict[str, Path]:
        """The adapter folders in order of training; the last is the result."""
        return {name: self.folder / "adapters" / name for name in self.config.stages()}

    def snapshots(self, name: str) -> dict[int, Path]:
        """The adapter folders on the way to this one, by the number of updates before them."""
        return {int(folder.name): folder for folder in sorted(self.folder.glob(f"snapshots/{name}/*"))}

    def task(self) -> Task:
        """Labels as configured, or as the rows suggest."""
        given = self.config.labels
        inferred = infer_labels([*self.data.train, *self.data.dev]) if given == "auto" else None
        labels = given if isinstance(given, tuple) else inferred
        names = ("separator", "max_new_tokens", "parser", "metric", "length_normalised")
        return Task(labels, **{name: getattr(self.config, name) for name in names})

    def contexts(self, lm: LanguageModel, similarity: Similarity = tfidf) -> Contexts:
        """What the teacher sees before a query, and ICL too."""
        config = self.config
        fits = lm.encoder.fits if config.drop_demos else None
        return Contexts(tuple(self.data.train), config.demos, config.n_demos, config.context, similarity, fits)

    def train(self, lm: LanguageModel | None = None, similarity: Similarity = tfidf) -> dict[str, Path]:
        """Collect, then train every stage that is not there yet. Returns the adapter folders.

        Args:
            lm: the model, if it is loaded already.
            similarity: of queries, for demos that are the nearest.
        """
        if not self.is_trained:
            train_runs([self], lm or self.load_model(), similarity)
        return self.adapters

    @property
    def is_trained(self) -> bool:
        """Whether every adapter is there, and no checkpoint any more."""
        return all(folder.is_dir() for folder in self.adapters.values()) and not (self.folder / CHECKPOINTS).exists()

    def begin(self, lm: LanguageModel, similarity: Similarity = tfidf) -> Lessons:
        """Check that it can be trained, write what is asked, and look at the teacher; what stages will learn from."""
        check_installed(self.config.report_to)
        contexts = self.contexts(lm, similarity)
        needs_teacher = any(stage.teacher_sites or stage.imitates for stage in self.config.stages().values())
        for stage in self.config.stages().values():
            stage.selection(lm.anatomy)  # the layers are there
        teacher, student = self._check_fits(lm, contexts if needs_teacher else None)
        with self.new_adapter(lm, contexts) as model:  # it can be made: nothing is written before that is known
            self._look_at_memory(lm, teacher, student, n_trainable(model))
        if not (self.folder / "config.yaml").is_file():
            self._write()
        lessons = self.lessons(lm, contexts)
        if needs_teacher:
            lessons.look_at_teacher()
        return lessons

    def lessons(self, lm: LanguageModel, contexts: Contexts) -> Lessons:
        """What stages will learn from."""
        examples = {split: getattr(self.data, split) for split in SPLITS}
        targets = self.targets or self.folder / "targets"
        return Lessons(lm, self.config, self.task(), contexts, examples, self.folder, targets)

    def new_adapter(
        self, lm: LanguageModel, contexts: Contexts, previous: Path | None = None
    ) -> AbstractContextManager[Any]:
        """The configured adapter on the base, fresh or from the folder of a previous stage, within a block."""
        config, rng = self.config, np.random.default_rng(self.config.seed)
        context = contexts.prompt(self.task(), self.data.train[0], None, rng)
        return fresh_adapter(lm, config.adapter, config.adapter_options, config.seed, previous, context)

    def load_model(self) -> LanguageModel:
        """The base model, as configured."""
        return load_model(self.config.model, **self.config.base, trust_remote_code=self.trust_remote_code)

    def _look_at_memory(
        self, lm: LanguageModel, teacher: Sequence[Tokens], student: Sequence[Tokens], n_trainable: int
    ) -> None:
        """Say so, where a stage will hardly fit."""
        for name, stage in self.config.stages().items():
            batch_size = self.config.settings(name, len(student))[0].per_device_train_batch_size
            needs = estimate(lm, teacher, student, stage.selection(lm.anatomy), n_trainable, batch_size)
            wanted, there = max(needs.collecting, needs.training) - needs.weights, free(lm.device)
            if wanted > there:
                say(
                    f"{name}: about {wanted / 1e9:.1f} GB are needed beside the model, {there / 1e9:.1f} GB are free; "
                    "where they run out, less is done at once, down to one row"
                )

    def _check_fits(self, lm: LanguageModel, contexts: Contexts | None) -> tuple[list[Tokens], list[Tokens]]:
        """Encode the labels and every prompt that training will need, so that none is found amiss half way.

        Returns:
            The rows as the teacher reads them, if there is one, and as the student does.
        """
        lm.encoder.label_ids(self.task().labels or ())
        teacher, student, n_dropped = list[Tokens](), list[Tokens](), 0
        for example in (*self.data.train, *self.data.dev, *self.data.unlabelled):
            student.append(lm.encoder.encode(build_prompt(self.task(), (), example.query, example.response)))
            if contexts:
                whole, fitted = (
                    of.prompt(self.task(), example, example.response, np.random.default_rng(0))
                    for of in (replace(contexts, fits=None), contexts)
                )
                teacher.append(lm.encoder.encode(fitted))
                n_dropped += whole != fitted
        if n_dropped:
            say(
                f"{n_dropped} rows are shown fewer demos, so that they fit the window of {lm.encoder.max_length} tokens"
            )
        if unknown := lm.encoder.unknown(student):
            say(unknown)
        return teacher, student

    def settings_of(self, name: str, n_rows: int, has_dev: bool) -> list[TrainingSettings]:
        """Of each training of a stage; without development rows there is one, with the middle learning rate."""
        settings = self.config.settings(name, n_rows)
        if has_dev:
            return settings
        middle = sorted(settings, key=lambda choice: choice.learning_rate)[len(settings) // 2]
        say(f"{name}: without development rows, no early stopping; learning rate {middle.learning_rate:g}")
        return [middle]

    def training_seconds(self) -> dict[str, float]:
        """Wall time that each adapter took, its earlier stages and collecting included."""
        records = {name: read_json(folder / "training.json", folder) for name, folder in self.adapters.items()}
        totals, total = {}, 0.0
        for name, record in records.items():
            total += record["collect_seconds"] + record["seconds"]
            totals[name] = total
        return totals

    def variants(self, contexts: Contexts) -> list[Variant]:
        """Zero-shot, ICL with the training rows, and each trained adapter."""
        icl = Variant("icl", contexts, seed=self.config.seed)
        return [Variant("zero-shot"), icl, *(Variant(name, adapter=name) for name in self.adapters)]

    def evaluate(self, test: Sequence[Example], lm: LanguageModel | None = None) -> dict[str, Any]:
        """Evaluate every variant on `test`, unless that is done; write predictions, metrics and report.

        Raises:
            IA2Error: there are no rows, or a stage is not trained yet.
        """
        self.trained()
        if not test:
            raise IA2Error("no rows to evaluate on; expected at least one")
        rows = [asdict(example) for example in test]
        key = key_of(rows)
        path = self.folder / "metrics.json"
        if path.is_file() and (metrics := read_json(path))["test_sha256"] == key:
            return dict(metrics)
        self.data.say_if_seen(test)
        lm = lm or self.load_model()
        variants = self.variants(self.contexts(lm))
        with locked(self.folder), loaded_adapters(lm, self.adapters):
            found = shared_out(test, lambda share: evaluate(lm, self.task(), share, variants, reference=variants[1]))
        by_name = {v.name: [p for p in found if p.variant == v.name] for v in variants}
        predictions = [p for rows in by_name.values() for p in rows]
        result, base = by_name[self.config.result], {name: by_name[name] for name in ("zero-shot", "icl")}
        metrics = {
            "test_sha256": key,
            "model": self.config.model,
            "n_train": len(self.data.train),
            "n_test": len(test),
            "context": variants[1].shown(self.task(), test[0]),
            "methods": {name: summarise(rows) for name, rows in by_name.items()},
            "differences": {f"{self.config.result} - {name}": difference(result, rows) for name, rows in base.items()},
        }
        for name, seconds in self.training_seconds().items():
            metrics["methods"][name]["training_seconds"] = seconds
        write_results(self.folder, metrics, [asdict(p) for p in predictions])
        return metrics

    def predict(self, queries: Sequence[str], lm: LanguageModel | None = None) -> list[Answer]:
        """Answers of the trained model, without demos."""
        self.trained()
        lm = lm or self.load_model()
        name = self.config.result
        with loaded_adapters(lm, {name: self.adapters[name]}):
            work = partial(answer, lm, self.task(), variant=Variant("", adapter=name))
            return shared_out([Example(query) for query in queries], work)

    def trained(self) -> dict[str, Path]:
        """The adapter folders, once all of them are there.

        Raises:
            IA2Error: some are not.
        """
        if missing := [name for name, folder in self.adapters.items() if not folder.is_dir()]:
            raise IA2Error(f"{self.folder}: {', '.join(missing)} is not trained yet; run the same 'ia2 train' again")
        return self.adapters


def train_runs(runs: Sequence[Run], lm: LanguageModel, similarity: Similarity = tfidf) -> None:
    """Train every stage of several runs that is not there yet, on one base; stages that are alike side by side.

    Which are trained together depends on the runs alone, not on what is there: so an interrupted call, made again, ends
    with the same bits.
    """
    lessons: dict[Path, Lessons] = {}
    with ExitStack() as locks:
        for number in range(max(len(run.adapters) for run in runs)):
            for alike in _alike(runs, number):
                if all(list(run.adapters.values())[number].is_dir() for run in alike):
                    continue
                for run in alike:
                    if run.folder not in lessons:
                        lessons[run.folder] = run.begin(lm, similarity)
                        locks.enter_context(locked(run.folder))
                _train_together(lm, alike, number, [lessons[run.folder] for run in alike])
    for run in runs:
        _tidy(run)  # an earlier call may have been killed before it did


def _alike(runs: Sequence[Run], number: int) -> Iterator[list[Run]]:
    """Runs whose stage of this number can be trained side by side, at most `SIDE_BY_SIDE` of them."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        if len(run.adapters) > number:
            config, stage = run.config, list(run.config.stages().values())[number]
            likeness = stage, config.adapter, json.dumps(config.adapter_options, sort_keys=True)
            together = config.side_by_side and find_adapter(config.adapter).peft_type == "LORA"
            groups.setdefault(likeness if together else run.folder, []).append(run)
    for alike in groups.values():
        yield from (alike[i : i + SIDE_BY_SIDE] for i in range(0, len(alike), SIDE_BY_SIDE))


@dataclass
class Share:
    """A run's part in a training of several: one stage of it, from `previous` on."""

    run: Run
    name: str
    lessons: Lessons
    previous: Path | None
    start: Weights = field(default_factory=dict)

    def __post_init__(self) -> None:
        began = time.perf_counter()
        self.train, self.dev = self.lessons.rows(self.lessons.config.stages()[self.name])
        self.collect_seconds = time.perf_counter() - began
        self.settings = self.run.settings_of(self.name, len(self.train), self.dev is not None)

    def adapter(self, lm: LanguageModel) -> AbstractContextManager[Any]:
        """As it is before the stage."""
        return self.run.new_adapter(lm, self.lessons.contexts, self.previous)

    def jobs(self, prefix: str) -> list[Job]:
        """One for each learning rate, which is its name behind the prefix and the stage's."""
        return [
            Job(self.start, self.train, self.dev, settings, f"{prefix}{self.name}/lr={settings.learning_rate:g}")
            for settings in self.settings
        ]

    def save(self, model: Any, results: Sequence[TrainingResult]) -> None:
        """Keep the best, and its snapshots, by way of the adapter on `model`."""
        best, record = best_of(self.settings, results)
        way = self.run.folder / "snapshots" / self.name
        if best.snapshots and not way.is_dir():
            with written_aside(way) as aside:
                for step, weights in best.snapshots.items():
                    restore(model, weights)
                    save_adapter(model, aside / f"{step:06}", {"step": step})
        restore(model, best.weights)
        record |= {"n_rows": len(self.train), "n_trainable": n_trainable(model)}
        save_adapter(model, self.run.adapters[self.name], record | {"collect_seconds": self.collect_seconds})


def _train_together(lm: LanguageModel, runs: Sequence[Run], number: int, lessons: Sequence[Lessons]) -> None:
    """Train the stage of this number of each run once for each learning rate."""
    shares = []
    for run, of in zip(runs, lessons, strict=True):
        folders = list(run.adapters.items())
        shares.append(Share(run, folders[number][0], of, folders[number - 1][1] if number else None))
    for share in shares[1:]:
        with share.adapter(lm) as model:
            share.start = trainable_copy(model)
    first = shares[0]
    with first.adapter(lm) as model:
        first.start = trainable_copy(model)
        stage, together = first.run.config.stages()[first.name], first.run.config.side_by_side
        jobs = [job for share in shares for job in share.jobs(f"{share.run.folder}/" if len(shares) > 1 else "")]
        checkpoints = first.run.folder / CHECKPOINTS / _key(shares)
        with tensorboard_in(first.run.folder / "logs"):
            results = iter(train_jobs(lm, stage, jobs, first.name, together, checkpoints))
        for share in shares:
            own = list(islice(results, len(share.settings)))
            if not share.run.adapters[share.name].is_dir():
                share.save(model, own)
    _tidy(first.run)


def _key(shares: Sequence[Share]) -> str:
    """Of all that determines a training, and of the number of processes, each of which has a random state."""
    what = [(share.name, share.run.config.model_dump(mode="json"), list(share.run._rows())) for share in shares]
    return key_of([processes().num_processes, what])[:32]


def _tidy(run: Run) -> None:
    """Remove checkpoints, when what they were for is there."""
    remove_together(run.folder / CHECKPOINTS)


def environment() -> dict[str, Any]:
    """Versions and hardware, for the record."""
    packages = ("ia2", "torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: version(name) for name in packages},
    }
