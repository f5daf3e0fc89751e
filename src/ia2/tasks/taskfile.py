"""A task as a file: a dozen lines of YAML, checked."""

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from ia2.errors import IA2Error, choose
from ia2.task import Metric, Parser, Task
from ia2.tasks.templates import parse

NAME = r"^[a-z0-9][a-z0-9_-]*$"
DATASET = r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$"


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_several)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Splits(_Model):
    """Which splits (or files) serve as which. Without any for `test`, a third of the rows is set aside for it."""

    train: Names = Field(min_length=1)
    dev: Names = ()
    test: Names = ()


class Options(_Model):
    """Multiple choice: each row's options, in an order that its own text decides, are named by the task's labels.

    Attributes:
        texts: the columns of the options, or the one that holds a list of them.
        answer: which is right: one of `texts`, or a column with its key (with `keys`) or its index from 0.
        keys: the column with the list of the options' keys.
    """

    texts: str | tuple[str, ...]
    answer: str
    keys: str | None = None


class TaskFile(_Model):
    """What a task file may say.

    Attributes:
        name: lower-case letters, digits, `-`, `_`.
        description: one line.
        paper: whether it is a benchmark of the paper.
        dataset, config: on the Hugging Face hub.
        splits: of that data set; without them, all its rows are pooled.
        folder: its name in the folder that IA2_DATA names, if it is not `name`.
        files: instead of `dataset`: rows of your own, beside the task file.
        drop: rows to leave out, by the values of a column.
        query, response: templates; a task of files that has the columns of `read_examples` needs none.
        options: multiple choice; instead of `response`.
        labels: raw response -> label, or a list of labels; without them, answers are generated.
        parser, metric, separator, max_new_tokens: see `Task`.
        ood: tasks that an adapter of this one is tested on as well, out of distribution.
    """

    name: str = Field(pattern=NAME)
    description: str = ""
    paper: bool = False
    dataset: str | None = Field(None, pattern=DATASET)
    config: str | None = None
    splits: Splits | None = None
    folder: str | None = Field(None, pattern=NAME)
    files: Splits | None = None
    drop: dict[str, tuple[str | int | bool, ...]] = {}
    query: str | None = None
    response: str | None = None
    options: Options | None = None
    labels: dict[str, str] | None = None
    parser: Parser = "auto"
    metric: Metric = "exact_match"
    separator: str = Field("\n\n", min_length=1)
    max_new_tokens: int = Field(200, ge=1)
    ood: tuple[str, ...] = ()

    @field_validator("query", "response")
    @classmethod
    def _template(cls, template: str | None) -> str | None:
        parse(template or "")
        return template

    @field_validator("labels", mode="before")
    @classmethod
    def _label_texts(cls, labels: Any) -> Any:
        if not isinstance(labels, (list, dict)):
            return labels
        texts = list(labels.values()) if isinstance(labels, dict) else labels
        for text in texts:
            if not isinstance(text, (str, int)) or isinstance(text, bool) or not str(text).strip():
                raise IA2Error(f"the label {text!r} is not a text; put quotes around yes, no, true and false")
        raw = [str(key) for key in labels]
        if len({text.strip() for text in raw}) < len(raw):
            raise IA2Error(f"two labels are the same text: {', '.join(map(repr, raw))}")
        if len(set(texts)) < 2:
            raise IA2Error(f"labels are {', '.join(map(repr, raw))}; expected at least two")
        return dict(zip(raw, map(str, texts), strict=True))

    @model_validator(mode="after")
    def _fits_together(self) -> "TaskFile":
        if (self.dataset is None) == (self.files is None):
            raise IA2Error("expected either 'dataset' or 'files'")
        if self.files and (self.splits or self.config or self.folder):
            raise IA2Error("'splits', 'config' and 'folder' belong to 'dataset', and there is none")
        if self.query is None and (self.dataset or self.response or self.options):
            raise IA2Error("no 'query'; expected a template such as 'Text:{text}\\nLabel:'")
        if self.query is not None and (self.response is None) == (self.options is None):
            raise IA2Error("expected either 'response' or 'options'")
        if self.options and "{options}" not in (self.query or ""):
            raise IA2Error("'options' need {options} in 'query'")
        if self.options and (self.labels is None or list(self.labels) != list(self.labels.values())):
            raise IA2Error("'options' need 'labels', a list, that name them")
        if self.labels and (unused := self.model_fields_set & {"parser", "metric", "max_new_tokens"}):
            raise IA2Error(f"'{min(unused)}' is for generated answers, and this task has labels")
        return self

    @property
    def task(self) -> Task:
        """What evaluation needs to know."""
        labels = tuple(dict.fromkeys(self.labels.values())) if self.labels else None
        return Task(labels, self.separator, self.max_new_tokens, self.parser, self.metric)


def read_task_file(path: Path) -> TaskFile:
    """Read and check a task file.

    Raises:
        IA2Error: no such file, not YAML, an unknown key, or a wrong value; says which.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise IA2Error(f"{path}: {(error.strerror or 'unreadable').lower()}; expected a task file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a date that is none
        raise IA2Error(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise IA2Error(f"{path}: found {type(values).__name__}, expected 'key: value' lines")
    try:
        return TaskFile.model_validate(values)
    except ValidationError as error:
        raise _explained(path, error) from None


def _explained(path: Path, error: ValidationError) -> IA2Error:
    """The first mistake that pydantic found, in one line; an unknown key before what is missing for want of it."""
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    keys = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        parts: dict[str, type[_Model]] = {"splits": Splits, "files": Splits, "options": Options}
        model = TaskFile if len(keys) == 1 else parts[keys[0]]
        try:
            choose("key", keys[-1], model.model_fields)
        except IA2Error as unknown:
            return IA2Error(f"{path}: {unknown}")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, IA2Error):
        return IA2Error(f"{path}: {cause}")
    if first["type"] == "missing":
        return IA2Error(f"{path}: no '{'.'.join(keys)}'")
    return IA2Error(
        f"{path}: '{'.'.join(keys)}' is {repr(first['input'])[:80]}: {first['msg'][0].lower()}{first['msg'][1:]}"
    )
