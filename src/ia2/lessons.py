"""What a stage learns from: the rows as the student sees them, with what the teacher does on them in context."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ia2.capture import Selection, Site
from ia2.config import RunConfig
from ia2.contexts import Contexts
from ia2.data import Example
from ia2.errors import IA2Error
from ia2.evaluation import Variant, answer, gold, sampled_answers
from ia2.files import read_jsonl, room, write_json, write_jsonl
from ia2.jobs import Rows
from ia2.methods import Stage
from ia2.models import LanguageModel
from ia2.processes import shared_out, shares_weights
from ia2.progress import say
from ia2.prompt import Prompt, build_prompt
from ia2.targets import Targets, collect, live, n_bytes
from ia2.task import Task

SPLITS = ("train", "unlabelled", "dev")
N_ANSWERED = 4096  # queries at once, whose prompts and probabilities are in memory


@dataclass(frozen=True)
class Lessons:
    """Makes the rows of a stage.

    Attributes:
        lm: teacher and student.
        config: of the run.
        task: how answers look.
        contexts: what the teacher sees.
        examples: by split: `train`, `unlabelled`, `dev`.
        folder: where the teacher's answers are kept.
        targets: where what it does is kept; how good it is stands beside it.
    """

    lm: LanguageModel
    config: RunConfig
    task: Task
    contexts: Contexts
    examples: dict[str, Sequence[Example]]
    folder: Path
    targets: Path

    def rows(self, stage: Stage) -> tuple[Rows, Rows | None]:
        """Training rows, and development rows, if there are any; these with their labels in any case.

        Where a stage imitates the teacher, unlabelled queries with the teacher's answers count as training rows.

        Raises:
            IA2Error: none are left, for the teacher answered nothing.
        """
        train = list(self.answered("train") if stage.responses == "teacher" else self.examples["train"])
        if stage.imitates:
            train += self.answered("unlabelled")
        if not train:
            raise IA2Error(
                "all answers of the teacher are empty: nothing to learn; use responses: labels, or other demos"
            )
        dev = self.examples["dev"]
        return self._rows(stage, "train", train), self._rows(stage, "dev", dev) if dev else None

    def _rows(self, stage: Stage, split: str, examples: Sequence[Example]) -> Rows:
        bare = [self.lm.encoder.encode(build_prompt(self.task, (), e.query, e.label)) for e in examples]
        if not stage.teacher_sites:
            return Rows(bare, Targets({}))
        if self.config.permutations == "all":
            bare = [row for row in bare for _ in range(self.config.n_permutations)]
        renew = (lambda epoch: self._targets(stage, split, examples, epoch)) if self.config.reshuffle else None
        return Rows(bare, self._targets(stage, split, examples), renew if split == "train" else None)

    def _targets(self, stage: Stage, split: str, examples: Sequence[Example], epoch: int = 0) -> Targets:
        """The teacher's values for each example, with `n_permutations` of its demos."""
        n = self.config.n_permutations
        rng = np.random.default_rng([self.config.seed, SPLITS.index(split), epoch])
        orders = [self.contexts.prompts(self.task, examples, rng) for _ in range(n)]
        prompts = [prompt for of_one in zip(*orders, strict=True) for prompt in of_one]
        selection = stage.selection(self.lm.anatomy)
        if self._computes_again(prompts, selection):
            return live(self.lm, prompts, selection)
        found = collect(self.lm, prompts, selection, self.targets)
        if n == 1 or self.config.permutations == "all":
            return found
        return Targets({site: _averaged(site, values, n) for site, values in found.values.items()})

    def _computes_again(self, prompts: Sequence[Prompt], selection: Selection) -> bool:
        """Whether what the teacher does is computed whenever it is needed: as asked, or where the disk has no room.

        Where it has, storing is the cheaper: a row is computed once, and read again at every epoch.
        """
        kept, averages = self.config.targets, self.config.n_permutations > 1 and self.config.permutations == "mean"
        if averages or shares_weights():
            if kept == "live":
                raise IA2Error("targets: live does not go with permutations: mean, nor with FSDP; use targets: stored")
            return False
        if kept != "auto":
            return kept == "live"
        needed = sum(n_bytes(self.lm, self.lm.encoder.encode(prompt), selection) for prompt in prompts)
        there = room(self.targets)
        if needed > there:
            say(f"{needed / 1e9:.1f} GB of targets, and room for {there / 1e9:.1f} GB: they are computed when needed")
        return needed > there

    def answered(self, split: str) -> list[Example]:
        """The queries of a split with the teacher's own answers, made once and kept."""
        if not self.examples[split]:
            return []
        path = self.folder / f"answered-{split}.jsonl"
        if not path.is_file():
            rows = self._answers(self.examples[split])
            if missing := sum(not row.label for row in rows):
                say(f"{missing} of {len(rows)} answers of the teacher are empty and are left out ({split})")
            write_jsonl(path, [vars(row) for row in rows if row.label])
        return [Example(**row) for row in read_jsonl(path)]

    def _answers(self, examples: Sequence[Example]) -> list[Example]:
        teacher = Variant("icl", self.contexts, seed=self.config.seed)
        if n := self.config.sample_responses:
            texts = sampled_answers(self.lm, self.task, examples, teacher, n, self.config.seed)
            return [replace(e, response=text) for e, of in zip(examples, texts, strict=True) for text in of]
        answered: list[Example] = []
        for start in range(0, len(examples), N_ANSWERED):
            part = examples[start : start + N_ANSWERED]
            given = shared_out(part, lambda share: answer(self.lm, self.task, share, teacher))
            answered += [replace(e, response=a.text) for e, a in zip(part, given, strict=True)]
        return answered

    def look_at_teacher(self) -> None:
        """Say how good the teacher is with and without its context, before training, and keep both figures.

        On the development rows, or without any on the training rows, each behind the others.
        """
        path = self.targets.parent / "teacher.json"
        if path.is_file():
            return
        split = "dev" if self.examples["dev"] else "train"
        rows, found = self.examples[split], {}
        for name, contexts in (("without", None), ("with", self.contexts)):
            variant = Variant(name, contexts, seed=self.config.seed)
            scores = gold(self.lm, self.task, rows, variant, sites=frozenset())
            found[name] = {"nll": float(np.mean(scores.nll)), "greedy_accuracy": float(np.mean(scores.greedy))}
        write_json(path, {"rows": split, "n": len(rows), **found})
        bare, taught = found["without"], found["with"]
        figures = (
            f"on {len(rows)} {split} rows NLL {taught['nll']:.2f} with its context and {bare['nll']:.2f} without, "
            f"accuracy {taught['greedy_accuracy']:.0%} and {bare['greedy_accuracy']:.0%}"
        )
        if taught["nll"] < bare["nll"] or taught["greedy_accuracy"] > bare["greedy_accuracy"]:
            say(f"teacher: {figures}")
        else:
            say(f"teacher: no better for its context, so aligning to it can hardly help: {figures}")


def _averaged(site: Site, values: Sequence[torch.Tensor], n: int) -> list[torch.Tensor]:
    """Over each n in a row: activations themselves; of logits, the log of the mean probabilities."""
    groups = [torch.stack(list(values[i : i + n])).float() for i in range(0, len(values), n)]
    if site == "logits":
        return [group.log_softmax(-1).logsumexp(0) for group in groups]
    return [group.mean(0) for group in groups]
