"""A grid of cells: each runs once, wherever there is a worker; what came of them is one tidy table.

A cell is a model, a task, a number of examples, a seed and an adapter; every method runs on its samples. It is done if
and only if its `rows.json` is there and of the same methods and options, so that the same command again runs what is
missing.
"""

import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ia2.comparison import UNLABELLED, Cell, read_predictions, train_cells
from ia2.config import RunConfig, make_config
from ia2.data import Example, n_dev
from ia2.errors import IA2Error, choose
from ia2.files import read_json, write_json
from ia2.models import LanguageModel, load_model
from ia2.overview import Setting, over_all_n, overview
from ia2.progress import say, step
from ia2.report import write_sweep_report
from ia2.results import write_differences, write_table
from ia2.run import Data
from ia2.summary import summarise
from ia2.tasks import load_task

METRICS = ("accuracy", "ece", "nll", "brier", "similarity", "macro_f1")
COSTS = ("tokens_per_query", "seconds_per_query", "training_seconds")
FAILURES = (IA2Error, RuntimeError, OSError, ValueError, ArithmeticError, MemoryError)


class Grid(BaseModel):
    """What a sweep runs: every combination of the lists.

    Attributes:
        models, tasks, n, seeds, adapters: of cells; tasks by name, or task files.
        methods: trained in each cell; zero-shot and ICL are always there.
        n_test: test rows; all there are, at most 500, if None.
        n_unlabelled: further queries without a label, for methods that end in `+unlabelled`.
        cells_at_once: cells that one worker trains side by side, as far as they can be (`ia2.bank`).
        ood: whether adapters are also tested on a task's out-of-distribution partners.
        preset, options: of every run; of a cell with fewer examples than `n_demos`, all are demos.
        trust_remote_code: see `ia2.load_model`; in no file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...] = Field(("tiny",), min_length=1)
    tasks: tuple[str, ...] = Field(min_length=1)
    n: tuple[int, ...] = Field((8,), min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    adapters: tuple[str, ...] = Field(("lora",), min_length=1)
    methods: tuple[str, ...] = ("sft", "ia2-sft")
    n_test: int | None = Field(None, ge=1)
    n_unlabelled: int = Field(64, ge=1)
    cells_at_once: int = Field(8, ge=1)
    ood: bool = False
    preset: str = "default"
    options: dict[str, Any] = {}
    trust_remote_code: bool = Field(False, exclude=True)

    def asked(self, task: str) -> dict[str, Any]:
        """What decides the results of a task's cells, beside which cells they are: options, and files of rows."""
        options = self.model_dump(mode="json", exclude={"models", "tasks", "n", "seeds", "adapters"})
        benchmark = load_task(task)
        tested = [benchmark, *(load_task(name) for name in (benchmark.ood if self.ood else ()))]
        return {**options, "files": {of.name: of.fingerprint() for of in tested}}

    def points(self) -> list["Point"]:
        """All cells: those of a model together, so that it is loaded once; of an N too, as these train side by side."""
        return [
            Point(model, task, n, seed, adapter)
            for model in self.models
            for n in self.n
            for task in self.tasks
            for seed in self.seeds
            for adapter in self.adapters
        ]


@dataclass(frozen=True)
class Point:
    """One cell of a grid."""

    model: str
    task: str
    n: int
    seed: int
    adapter: str

    @property
    def folder(self) -> str:
        """A name for its folder: no path, whatever the model is called."""
        parts = (self.model, Path(self.task).stem, f"n{self.n}", f"seed{self.seed}", self.adapter)
        return "_".join(re.sub(r"[^\w.+-]", "-", part).lstrip(".") for part in parts)


def read_grid(path: Path, given: dict[str, Any] | None = None) -> Grid:
    """Read and check a grid; what is `given` stands in place of what the file says.

    Raises:
        IA2Error: no such file, not YAML, an unknown key or a wrong value.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise IA2Error(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise IA2Error(f"{path}: found {type(values).__name__}, expected 'key: value' lines such as 'tasks: [sst2]'")
    for name in values:
        choose(f"key in {path.name}", name, Grid.model_fields.keys() - {"trust_remote_code"})
    try:
        grid = Grid(**{**values, **(given or {})})
    except ValidationError as error:
        first = error.errors()[0]
        raise IA2Error(f"{path}: '{'.'.join(map(str, first['loc']))}': {first['msg'].lower()}") from None
    for point in grid.points():
        load_task(point.task)
        _config(grid, point)
    for method in grid.methods:
        make_config({"model": "tiny", "method": method.removesuffix(UNLABELLED)})
    return grid


def _config(grid: Grid, point: Point) -> RunConfig:
    task = load_task(point.task).task
    scoring = {name: getattr(task, name) for name in ("separator", "max_new_tokens", "parser", "metric")}
    values = {"model": point.model, "adapter": point.adapter, "labels": task.labels or "none", **scoring}
    config = make_config({**values, **grid.options}, grid.preset)
    too_many = config.n_demos is not None and config.n_demos > point.n
    return config.model_copy(update={"n_demos": point.n}) if too_many else config


def cell_of(grid: Grid, point: Point, folder: Path, lacking: list[str] | None = None) -> Cell:
    """The rows of a cell. More examples begin with the fewer; test rows do not depend on their number.

    If `lacking` is given, an out-of-distribution partner whose rows cannot be read is left out, and the reason goes
    there.
    """
    benchmark = load_task(point.task)
    needs_more = any(method.endswith(UNLABELLED) for method in grid.methods)
    pool = benchmark.rows("train", point.n + (grid.n_unlabelled if needs_more else 0), point.seed)
    more = tuple(Example(example.query, None, example.context) for example in pool[point.n :])
    dev = benchmark.rows("dev", n_dev(point.n), point.seed)
    tests = {benchmark.name: benchmark.rows("test", grid.n_test, point.seed)}
    partners = {name: load_task(name) for name in (benchmark.ood if grid.ood else ())}
    for name, partner in partners.items():
        try:
            tests[name] = partner.rows("test", grid.n_test, point.seed)
        except IA2Error as error:
            if lacking is None:
                raise
            lacking.append(f"not tested on {name}: {error}")
    options = _config(grid, point).model_dump(exclude={"method", "seed"})
    data, tasks = Data(pool[: point.n], dev, more), {name: partner.task for name, partner in partners.items()}
    return Cell(benchmark.name, point.seed, options, data, tests, folder, benchmark.description, tasks=tasks)


def run_point(grid: Grid, point: Point, folder: Path) -> None:
    """Run one cell, unless it is done, and leave its `rows.json`; of what failed, the reason in its `failed.json`."""
    place = folder / "cells" / point.folder
    if _is_done(grid, point, folder):
        return
    asked, failed, lacking = grid.asked(point.task), place / "failed.json", list[str]()
    try:
        cell = cell_of(grid, point, place, lacking)
        results, seconds = cell.results(_loaded(grid, point), grid.methods)
    except FAILURES as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        write_json(failed, {"reason": f"{type(error).__name__}: {error}", "at": f"{where.name}, line {where.lineno}"})
        return
    rows = []
    for test, predictions in results.items():
        for method in dict.fromkeys(p.variant for p in predictions):
            found = summarise([p for p in predictions if p.variant == method])
            values = {name: found[name]["value"] for name in METRICS if name in found}
            costs = {name: found.get(name) for name in COSTS}
            costs |= {"training_seconds": seconds.get(method), "n_test": found["n"]}
            rows.append({**vars(point), "method": method, "test": test, **values, **costs})
    write_json(place / "rows.json", {"asked": asked, "rows": rows})
    if lacking:
        write_json(failed, {"reason": "; ".join(lacking), "at": "cell_of"})
    else:
        failed.unlink(missing_ok=True)


def sweep(grid: Grid, folder: Path, engine: str = "local") -> list[dict[str, Any]]:
    """Run every cell that is not done, then write the tables, `results` and `differences`, and `report.html`.

    Args:
        grid: what to run.
        folder: for cells and results.
        engine: `local`: one after another, here; `ray`: on the Ray cluster that this process can reach, or a local one.

    Returns:
        The rows of the table of results: one a cell, method and test.
    """
    engines = {"local": _run_local, "ray": _run_on_ray}
    run = engines[choose("engine", engine, engines)]
    points = grid.points()
    todo = [point for point in points if not _is_done(grid, point, folder)]
    if len(todo) < len(points):
        say(f"{len(points) - len(todo)} of {len(points)} cells are done already")
    with step("sweep", len(todo)) as advance:
        for point in run(grid, todo, folder):
            advance(1, point.folder)
    places = {point: folder / "cells" / point.folder for point in points}
    left = [point for point in points if not _is_done(grid, point, folder)]
    failed = {point.folder: read_json(places[point] / "failed.json")["reason"] for point in left}
    for name, reason in failed.items():
        say(f"failed: {name}: {reason}")
    found = {point: rows for point in points if (rows := _rows_of(grid, point, folder))}
    if not found:
        raise IA2Error(f"no cell of {len(points)} succeeded; see failed.json in the folders of {folder / 'cells'}")
    rows = [row for of in found.values() for row in of]
    write_table(folder, rows)
    write_json(folder / "sweep.json", {"grid": grid.model_dump(mode="json"), "failed": failed})
    report_sweep(folder)
    return rows


def report_sweep(folder: Path) -> Path:
    """Write `differences` and `report.html` from the table of results and from what the cells hold."""
    import pandas as pd

    rows = pd.read_parquet(folder / "results.parquet")
    cells = rows[[field.name for field in fields(Point)]].drop_duplicates().to_dict("records")
    points = [Point(**cell) for cell in cells]
    seen = overview([(Setting(p.model, p.adapter, p.n), folder / "cells" / p.folder) for p in points])
    write_differences(folder, seen.differences)
    own = rows[rows["test"] == rows.groupby(["model", "adapter", "task", "n", "seed"])["test"].transform("first")]
    alone = len(own[["model", "adapter"]].drop_duplicates()) == 1 < own["n"].nunique()
    costs = rows.groupby(["method", "n"], sort=False)[list(COSTS)].mean().reset_index().to_dict("records")
    kept, page = read_json(folder / "sweep.json"), folder / "report.html"
    n_cells, samples = len(Grid(**kept["grid"]).points()), _samples(points, folder)
    overall = over_all_n(own) if alone else []
    write_sweep_report(page, seen.methods, seen.differences, costs, samples, kept["failed"], n_cells, overall)
    return page


def _samples(points: Sequence[Point], folder: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Of each N, the largest first: the predictions in distribution of all cells of one model and adapter."""
    largest = max(points, key=lambda point: point.n)
    alike = [p for p in points if (p.model, p.adapter) == (largest.model, largest.adapter)]
    for n in sorted({p.n for p in alike}, reverse=True):
        found: list[dict[str, Any]] = []
        for p in alike:
            if p.n == n:
                own = next(iter(read_predictions(folder / "cells" / p.folder).values()))
                found += [{"task": Path(p.task).stem, "seed": p.seed, **asdict(prediction)} for prediction in own]
        yield n, found


def _is_done(grid: Grid, point: Point, folder: Path) -> bool:
    return bool(_rows_of(grid, point, folder)) and not (folder / "cells" / point.folder / "failed.json").is_file()


def _rows_of(grid: Grid, point: Point, folder: Path) -> list[dict[str, Any]]:
    """What a cell found, if it was asked the same."""
    path = folder / "cells" / point.folder / "rows.json"
    found = read_json(path) if path.is_file() else {}
    return list(found["rows"]) if found.get("asked") == grid.asked(point.task) else []


def _chunks(grid: Grid, points: Sequence[Point]) -> Iterator[tuple[list[Point], list[Point]]]:
    """All cells in parts that are trained side by side, whatever is done already; and of each what is still to do."""
    every, n = grid.points(), grid.cells_at_once
    for chunk in (every[start : start + n] for start in range(0, len(every), n)):
        if todo := [point for point in chunk if point in points]:
            yield chunk, todo


def _run_chunk(grid: Grid, chunk: Sequence[Point], todo: Sequence[Point], folder: Path) -> Iterator[Point]:
    _train_together(grid, chunk, folder)
    for point in todo:
        run_point(grid, point, folder)
        yield point


def _run_local(grid: Grid, points: Sequence[Point], folder: Path) -> Iterator[Point]:
    for chunk, todo in _chunks(grid, points):
        yield from _run_chunk(grid, chunk, todo, folder)


def _train_together(grid: Grid, points: Sequence[Point], folder: Path) -> None:
    """Train cells side by side; what fails here is left to `run_point`, which keeps the reason."""
    cells: dict[Point, Cell] = {}
    for point in points:
        with suppress(*FAILURES):
            cells[point] = cell_of(grid, point, folder / "cells" / point.folder)
    for model in dict.fromkeys(point.model for point in cells):
        own = {point: cell for point, cell in cells.items() if point.model == model}
        try:
            train_cells(list(own.values()), _loaded(grid, next(iter(own))), grid.methods)
        except FAILURES as error:
            say(f"{type(error).__name__}: {error}: these cells are trained one by one")


def _loaded(grid: Grid, point: Point) -> LanguageModel:
    config = _config(grid, point)
    return _load(config.model, **config.base, trust_remote_code=grid.trust_remote_code)


_load = lru_cache(maxsize=1)(load_model)  # once a worker


def _run_on_ray(grid: Grid, points: Sequence[Point], folder: Path) -> Iterator[Point]:
    """What is lost with its node is run again on another; the folder must be one that all nodes share."""
    try:
        import ray
    except ImportError:
        raise IA2Error("the engine 'ray' needs Ray: pip install 'ia2[ray]'") from None
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    n_gpus = 1 if resources.get("GPU") else 0
    task = ray.remote(num_cpus=1, num_gpus=n_gpus, max_retries=-1)(lambda *args: list(_run_chunk(*args)))
    left = [task.remote(grid, chunk, todo, folder.absolute()) for chunk, todo in _chunks(grid, points)]
    while left:
        (done, *_), left = ray.wait(left)
        yield from ray.get(done)
