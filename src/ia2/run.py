"""A run: a folder in which every step leaves one finished file or folder, so that the same command again continues it.

config.yaml  environment.json  examples.jsonl   what was asked, where, and of which rows
targets/*.safetensors                           what the teacher did (collect)
adapters/METHOD/                                a plain PEFT folder a stage, and training.json (prime, fine-tune)
predictions.jsonl  metrics.json  report.html    evaluation
"""

import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from ia2.adapters import loaded_adapters, n_trainable, new_adapter, save_adapter
from ia2.config import RunConfig, make_config
from ia2.data import Example, hold_out
from ia2.errors import IA2Error
from ia2.evaluation import Answer, Variant, answer, difference, evaluate, summarise
from ia2.files import read_json, read_jsonl, write_json, write_jsonl, write_text, written_aside
from ia2.methods import Stage, stages_of
from ia2.models import LanguageModel, load_model
from ia2.progress import say
from ia2.prompt import build_prompt
from ia2.results import write_results
from ia2.targets import Targets, collect, teacher_prompts
from ia2.task import Task, infer_labels
from ia2.training import Rows, train_best


@dataclass(frozen=True)
class Data:
    """The rows of a run. `unlabelled` ones have a query only; the teacher answers them for the alignment stages."""

    train: Sequence[Example]
    dev: Sequence[Example] = ()
    unlabelled: Sequence[Example] = ()

    def __post_init__(self) -> None:
        if len(self.train) < 2:
            raise IA2Error(
                f"{len(self.train)} training example(s); expected at least 2, as each is shown the others as demos"
            )

    @staticmethod
    def split(rows: Sequence[Example], seed: int, unlabelled: Sequence[Example] = ()) -> "Data":
        """Hold a part of the labelled rows out for development, as the paper does, and say so."""
        train, dev = hold_out(rows, seed)
        if dev:
            say(f"{len(dev)} of {len(rows)} rows are held out for development, {len(train)} are left to train on")
        return Data(train, dev, unlabelled)


@dataclass(frozen=True)
class Run:
    """A run folder; `Run.create` makes or continues one, `Run.open` reads one."""

    folder: Path
    config: RunConfig
    data: Data

    @staticmethod
    def create(folder: str | Path, config: RunConfig, data: Data) -> "Run":
        """A run to train in `folder`, or to continue there; nothing is written before `train`.

        Raises:
            IA2Error: the folder holds something else, or a run of another configuration or of other rows.
        """
        folder = Path(folder)
        run = Run(folder, config, data)
        if (folder / "config.yaml").is_file():
            run._check_same(Run.open(folder))
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise IA2Error(f"{folder}: exists and is not a run; choose another output folder, or empty this one")
        if labels := run.task().labels:
            for example in (*data.train, *data.dev):
                if example.label not in labels:
                    raise IA2Error(f"the response {example.label!r} is not among the labels {', '.join(labels)}")
        return run

    @staticmethod
    def open(folder: str | Path) -> "Run":
        """Read the configuration and the rows of a run folder."""
        folder = Path(folder)
        if not (folder / "config.yaml").is_file() or not (folder / "examples.jsonl").is_file():
            raise IA2Error(f"{folder}: not a run (no config.yaml and examples.jsonl); expected what 'ia2 train' wrote")
        config = make_config(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
        rows: dict[str, list[Example]] = {"train": [], "dev": [], "unlabelled": []}
        for row in read_jsonl(folder / "examples.jsonl"):
            rows[row["split"]].append(Example(row["query"], row["response"]))
        return Run(folder, config, Data(**rows))

    def _write(self) -> None:
        with written_aside(self.folder) as aside:
            aside.mkdir(parents=True)
            write_jsonl(aside / "examples.jsonl", self._rows())
            write_json(aside / "environment.json", environment())
            write_text(aside / "config.yaml", yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
            if self.folder.exists():
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
    def stages(self) -> dict[str, Stage]:
        """Stages by the name of the adapter that each yields."""
        return stages_of(self.config.method, self.config.loss)

    @property
    def adapters(self) -> dict[str, Path]:
        """The adapter folders in order of training; the last is the result."""
        return {name: self.folder / "adapters" / name for name in self.stages}

    def task(self) -> Task:
        """Labels as configured, or as the rows suggest."""
        given = self.config.labels
        inferred = infer_labels([*self.data.train, *self.data.dev]) if given == "auto" else None
        labels = given if isinstance(given, tuple) else inferred
        return Task(labels, max_new_tokens=self.config.max_new_tokens)

    def train(self, lm: LanguageModel | None = None, targets: Path | None = None) -> dict[str, Path]:
        """Collect, then train every stage that is not there yet. Returns the adapter folders."""
        if all(folder.is_dir() for folder in self.adapters.values()):
            return self.adapters
        lm = lm or load_model(self.config.model)
        self._check_fits(lm)
        if not (self.folder / "config.yaml").is_file():
            self._write()
        prepared = _Prepared.of(self, lm, targets or self.folder / "targets")
        previous: Path | None = None
        for name, stage in self.stages.items():
            folder = self.adapters[name]
            if not folder.is_dir():
                self._train_stage(lm, name, stage, prepared, previous)
            previous = folder
        return self.adapters

    def _check_fits(self, lm: LanguageModel) -> None:
        """Encode every prompt that training will need, so that none is found too long half way."""
        needs_teacher = any(stage.teacher_sites for stage in self.stages.values())
        for example in (*self.data.train, *self.data.dev, *self.data.unlabelled):
            demos = [demo for demo in self.data.train if demo is not example] if needs_teacher else []
            lm.encoder.encode(build_prompt(self.task(), demos, example.query, example.response))

    def _train_stage(
        self, lm: LanguageModel, name: str, stage: Stage, prepared: "_Prepared", previous: Path | None
    ) -> None:
        """Train once for each learning rate, all from the same weights, and keep the best by development loss."""
        train, dev = prepared.rows(stage)
        rates = self.config.learning_rate
        if stage.aligns and self.config.prime_learning_rate:
            rates = self.config.prime_learning_rate
        if not dev:
            rates = (sorted(rates)[len(rates) // 2],)
            say(f"{name}: without development rows, no early stopping; learning rate {rates[0]:g}")
        with new_adapter(lm, self.config.r, self.config.lora_alpha, self.config.seed) as model:
            if previous:
                set_peft_model_state_dict(model, load_file(previous / "adapter_model.safetensors"))
            settings = [self.config.settings(rate, len(train)) for rate in rates]
            record = {
                **train_best(lm, stage, train, dev, settings, name),
                "n_rows": len(train),
                "n_trainable": n_trainable(model),
                "collect_seconds": prepared.seconds,
            }
            save_adapter(model, self.adapters[name], record)

    def training_seconds(self) -> dict[str, float]:
        """Wall time that each adapter took, its earlier stages and collecting included."""
        records = {name: read_json(folder / "training.json") for name, folder in self.adapters.items()}
        totals, total = {}, max(record["collect_seconds"] for record in records.values())
        for name, record in records.items():
            total += record["seconds"]
            totals[name] = total
        return totals

    def variants(self) -> list[Variant]:
        """Zero-shot, ICL with the training rows, and each trained adapter."""
        order = np.random.default_rng([self.config.seed, 3]).permutation(len(self.data.train))
        icl = Variant("icl", demos=tuple(self.data.train[i] for i in order))
        return [Variant("zero-shot"), icl, *(Variant(name, adapter=name) for name in self.adapters)]

    def evaluate(self, test: Sequence[Example], lm: LanguageModel | None = None) -> dict[str, Any]:
        """Evaluate every variant on `test`, unless that is done; write predictions, metrics and report."""
        self._check_trained()
        rows = [asdict(example) for example in test]
        key = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        path = self.folder / "metrics.json"
        if path.is_file() and (metrics := read_json(path))["test_sha256"] == key:
            return dict(metrics)
        lm = lm or load_model(self.config.model)
        variants = self.variants()
        with loaded_adapters(lm, self.adapters):
            predictions = evaluate(lm, self.task(), test, variants, reference=variants[1])
        by_name = {v.name: [p for p in predictions if p.variant == v.name] for v in variants}
        result, base = by_name[self.config.method], {name: by_name[name] for name in ("zero-shot", "icl")}
        metrics = {
            "test_sha256": key,
            "model": self.config.model,
            "n_train": len(self.data.train),
            "n_test": len(test),
            "methods": {name: summarise(rows) for name, rows in by_name.items()},
            "differences": {f"{self.config.method} - {name}": difference(result, rows) for name, rows in base.items()},
        }
        for name, seconds in self.training_seconds().items():
            metrics["methods"][name]["training_seconds"] = seconds
        write_results(self.folder, metrics, [asdict(p) for p in predictions])
        return metrics

    def predict(self, queries: Sequence[str], lm: LanguageModel | None = None) -> list[Answer]:
        """Answers of the trained model, without demos."""
        self._check_trained()
        lm = lm or load_model(self.config.model)
        with loaded_adapters(lm, {self.config.method: self.adapters[self.config.method]}):
            return answer(lm, self.task(), queries, Variant("", adapter=self.config.method))

    def _check_trained(self) -> None:
        if missing := [name for name, folder in self.adapters.items() if not folder.is_dir()]:
            raise IA2Error(f"{self.folder}: {', '.join(missing)} is not trained yet; run the same 'ia2 train' again")


@dataclass(frozen=True)
class _Prepared:
    """Student rows and teacher targets: of the training rows, the unlabelled ones behind them, and development."""

    train: Rows
    unlabelled: Rows
    dev: Rows
    seconds: float

    @staticmethod
    def of(run: Run, lm: LanguageModel, folder: Path) -> "_Prepared":
        start = time.perf_counter()
        task, data, seed = run.task(), run.data, run.config.seed
        sites = frozenset[Any]().union(*(stage.teacher_sites for stage in run.stages.values()))
        answered = _answered(run, lm, task) if sites and data.unlabelled else []

        def rows_of(k: int, examples: Sequence[Example]) -> Rows:
            prompts = teacher_prompts(task, data.train, examples, np.random.default_rng([seed, k]))
            targets = collect(lm, prompts, sites, folder) if sites and examples else Targets({})
            bare = [build_prompt(task, (), e.query, e.label) for e in examples]
            return Rows([lm.encoder.encode(prompt) for prompt in bare], targets)

        parts = rows_of(0, data.train), rows_of(1, answered), rows_of(2, data.dev)
        return _Prepared(*parts, seconds=time.perf_counter() - start)

    def rows(self, stage: Stage) -> tuple[Rows, Rows | None]:
        """Training and development rows of a stage: unlabelled ones only where it learns from the teacher alone."""
        train = self.train.joined(self.unlabelled) if stage.aligns else self.train
        return train, self.dev if len(self.dev) else None


def _answered(run: Run, lm: LanguageModel, task: Task) -> list[Example]:
    """The unlabelled queries with the teacher's answers, made once and kept."""
    path = run.folder / "answered.jsonl"
    if not path.is_file():
        queries = [example.query for example in run.data.unlabelled]
        answers = answer(lm, task, queries, run.variants()[1])
        rows = [{"query": q, "response": a.text} for q, a in zip(queries, answers, strict=True) if a.text]
        if len(rows) < len(queries):
            say(f"{len(queries) - len(rows)} of {len(queries)} unlabelled queries got no answer and are left out")
        write_jsonl(path, rows)
    return [Example(row["query"], row["response"]) for row in read_jsonl(path)]


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
