"""What is analysed: the adapters of one run, or of all runs of a cell, to be compared on the same tokens."""

from dataclasses import dataclass, replace
from pathlib import Path

from ia2.comparison import UNLABELLED
from ia2.errors import IA2Error
from ia2.evaluation import Variant
from ia2.models import LanguageModel
from ia2.run import Run


@dataclass(frozen=True)
class Subject:
    """Adapters trained on the same rows with the same options.

    Attributes:
        run: one of their runs: its model, rows and prompts are those of all.
        adapters: folders by name, in order of training.
        snapshots: those on the way to each, by the number of updates before them; where they were kept.
    """

    run: Run
    adapters: dict[str, Path]
    snapshots: dict[str, dict[int, Path]]

    @staticmethod
    def open(folder: str | Path, trust_remote_code: bool = False) -> "Subject":
        """Of a run folder, or of a cell of `ia2 compare`: a folder of runs, one a method.

        Raises:
            IA2Error: it is neither, an adapter is not trained yet, or its runs are not on the same rows.
        """
        folder = Path(folder)
        if (folder / "config.yaml").is_file():
            run = Run.open(folder, trust_remote_code)
            return Subject(run, *_trained({"": run}))
        found = sorted(path.parent for path in folder.glob("*/config.yaml"))
        runs = {path.name: Run.open(path, trust_remote_code) for path in found}
        if not runs:
            cell = next((path.parents[1] for path in sorted(folder.glob("cells/*/*/config.yaml"))), None)
            hint = f"one of its cells, such as {cell}" if cell else "a run of 'ia2 train', or a cell of 'ia2 compare'"
            raise IA2Error(f"{folder}: found no run; expected {hint}")
        _check_alike(runs)
        return Subject(next(iter(runs.values())), *_trained(runs))

    def load_model(self) -> LanguageModel:
        """The base, in float32."""
        return replace(self.run, config=self.run.config.model_copy(update={"dtype": "float32"})).load_model()

    def variants(self, lm: LanguageModel) -> list[Variant]:
        """Zero-shot, ICL with the training rows as demos, and each adapter."""
        zero, icl = self.run.variants(self.run.contexts(lm))[:2]
        return [zero, icl, *(Variant(name, adapter=name) for name in self.adapters)]


def _trained(runs: dict[str, Run]) -> tuple[dict[str, Path], dict[str, dict[int, Path]]]:
    """The adapters of all runs, and their snapshots; a stage that several have is that of the last."""
    adapters: dict[str, Path] = {}
    snapshots: dict[str, dict[int, Path]] = {}
    for name, run in runs.items():
        suffix = UNLABELLED if name.endswith(UNLABELLED) else ""
        for stage, path in run.trained().items():
            adapters[f"{stage}{suffix}"] = path
            if found := run.snapshots(stage):
                snapshots[f"{stage}{suffix}"] = found
    return adapters, snapshots


def _check_alike(runs: dict[str, Run]) -> None:
    """All of the same configuration but for the method, and trained on the same rows."""
    (first, reference), *others = runs.items()
    for name, run in others:
        old, new = (of.config.model_dump(exclude={"method"}) for of in (reference, run))
        if changed := [option for option in old if old[option] != new[option]]:
            raise IA2Error(f"the runs {first} and {name} differ in {', '.join(changed)}; expected those of one cell")
        if reference.data.train != run.data.train:
            raise IA2Error(f"the runs {first} and {name} have other training rows; expected those of one cell")
