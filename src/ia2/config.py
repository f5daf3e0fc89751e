"""The configuration of a run: checked, and kept beside its results."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ia2.adapters import find_adapter
from ia2.answers import Form
from ia2.capture import Site
from ia2.chat import CHATS, Chat
from ia2.contexts import ORDERS, Order
from ia2.errors import IA2Error, choose
from ia2.jobs import METRICS, Metric, TrainingSettings
from ia2.losses import ALIGNMENT_LOSSES, SOFT_LOSSES
from ia2.methods import METHODS, Responses, Stage, Term, methods, named_stages
from ia2.models import DTYPES, QUANTIZATIONS
from ia2.prompt import POSITIONS, Positions
from ia2.task import Metric as Score
from ia2.task import Parser
from ia2.tracking import TRACKERS

Keeping = Literal["auto", "stored", "live"]
KEEPING: tuple[Keeping, ...] = get_args(Keeping)
PARSERS, SCORES = ("auto", *get_args(Form)), get_args(Score)


def _one_of(kind: str, known: Iterable[str]) -> AfterValidator:
    return AfterValidator(lambda name: name if name is None else choose(kind, name, known))


def _checked_rates(rates: tuple[float, ...] | None) -> tuple[float, ...] | None:
    if rates is not None and (not rates or min(rates) <= 0):
        raise IA2Error(f"learning rates are {list(rates)}; expected at least one, all above 0")
    return rates


def _listed(given: Any) -> Any:
    return [given] if isinstance(given, (str, float)) else given


def _known_trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(choose("tracker", name, TRACKERS) for name in names if name != "none")


Rates = Annotated[tuple[float, ...] | None, BeforeValidator(_listed), AfterValidator(_checked_rates)]
Metrics = Annotated[Metric | None, _one_of("metric", METRICS)]


class StageConfig(BaseModel):
    """A stage that a user writes: the loss at each site, with a weight where it is not 1, and its own settings.

    Example in YAML: `{terms: {attn_out: nmse, logits: {kl: 0.1}}, learning_rate: [1e-3]}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    terms: dict[Site, str | dict[str, float]] = Field(min_length=1)
    responses: Responses = "labels"
    learning_rate: Rates = None
    num_train_epochs: int | None = Field(None, ge=1)
    early_stopping_patience: int | None = Field(None, ge=1)
    metric_for_best_model: Metrics = None

    def stage(self, **options: Any) -> Stage:
        """As the program has it."""
        terms = []
        for site, losses in self.terms.items():
            known = [*SOFT_LOSSES, "ce"] if site == "logits" else ALIGNMENT_LOSSES
            for loss, weight in losses.items() if isinstance(losses, dict) else [(losses, 1.0)]:
                terms.append(Term(site, choose(f"loss at {site}", loss, known), weight))
        return Stage(tuple(terms), **{**options, "responses": self.responses})


def _known_method(method: str | dict[str, StageConfig]) -> str | dict[str, StageConfig]:
    if isinstance(method, str):
        return choose("method", method, METHODS)
    for name in method:
        if not name.replace("-", "").replace("+", "").replace("_", "").isalnum():
            raise IA2Error(f"a stage is called '{name}'; expected letters, digits, '-', '+' and '_' alone")
    if not method:
        raise IA2Error("the method has no stages; expected at least one, such as 'align: {terms: {attn_out: nmse}}'")
    return method


class RunConfig(BaseModel):
    """Everything that determines a run but its rows. Names are those of transformers and PEFT where they have one.

    Several learning rates are tried, and the development rows decide, for each stage by itself. Where one of the
    `prime_` options is None, it is as for the other stages.

    Attributes:
        method: a name in `ia2 methods`, or stages by name, as `StageConfig` has them.
        loss, soft_loss, beta, temperature, top_k, layers, positions: see `ia2.methods.methods` and `Stage`.
        labels: the possible responses; `auto` infers them from the rows, `none` generates answers.
        demos, n_demos, context: what the teacher sees before a query: see `ia2.contexts.Contexts`.
        n_permutations: orders of the demos that the teacher is read with, for each row.
        permutations: whether each is a target of its own (`all`), or their average is (`mean`).
        reshuffle: whether the demos are drawn anew for every epoch.
        drop_demos: whether demos are left out, first ones first, where a prompt with its answer exceeds the window.
        responses: whose responses the teacher is read on: `labels`, or its own (`teacher`).
        sample_responses: whether its own are sampled rather than the likeliest, and how many (0: not).
        adapter, adapter_options: a name in `ia2 adapters`, and options of PEFT's configuration.
        side_by_side: whether trainings that can share a pass do (`ia2.bank`); it changes speed, and rounding.
        targets: whether what the teacher does is `stored`, or computed again whenever it is needed (`live`); `auto`
            stores it where the disk has room.
        report_to: trackers, as `TrainingArguments` names them; TensorBoard's files go to `logs` in the run folder.
        snapshots: the adapter of every so many updates, and of the last, is kept too, to be analysed (0: none).
        separator, max_new_tokens, parser, metric, length_normalised: how answers look and score: see `ia2.Task`.
        chat, dtype, quantization, attn_implementation: of the base model, see `ia2.load_model`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    method: Annotated[str | dict[str, StageConfig], AfterValidator(_known_method)] = "ia2-sft"
    labels: tuple[str, ...] | Literal["auto", "none"] = "auto"
    seed: int = Field(0, ge=0)

    loss: Annotated[str, _one_of("loss", ALIGNMENT_LOSSES)] = "nmse"
    soft_loss: Annotated[str, _one_of("soft loss", SOFT_LOSSES)] = "kl"
    beta: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(1.0, gt=0)
    top_k: int | None = Field(None, ge=1)
    layers: str = "all"
    positions: Annotated[Positions, _one_of("positions", POSITIONS)] = "response"

    demos: Annotated[Order, _one_of("order of demos", ORDERS)] = "random"
    n_demos: int | None = Field(None, ge=0)
    n_permutations: int = Field(1, ge=1)
    permutations: Literal["all", "mean"] = "all"
    reshuffle: bool = False
    context: str = ""
    drop_demos: bool = False
    responses: Responses = "labels"
    sample_responses: int = Field(0, ge=0)

    adapter: Annotated[str, AfterValidator(lambda name: find_adapter(name) and name)] = "lora"
    adapter_options: dict[str, Any] = {}
    side_by_side: bool = True
    snapshots: int = Field(0, ge=0)

    learning_rate: Rates = None  # None: those of the adapter
    num_train_epochs: int = Field(50, ge=1)
    per_device_train_batch_size: int = Field(4, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    eval_steps: int = Field(2, ge=1)
    early_stopping_patience: int = Field(5, ge=1)
    metric_for_best_model: Metric = "loss"
    targets: Annotated[Keeping, _one_of("way to keep targets", KEEPING)] = "auto"
    report_to: Annotated[
        tuple[str, ...], BeforeValidator(lambda names: _listed(names or ())), AfterValidator(_known_trackers)
    ] = ()
    prime_learning_rate: Rates = None
    prime_num_train_epochs: int | None = Field(None, ge=1)
    prime_early_stopping_patience: int | None = Field(None, ge=1)
    prime_metric_for_best_model: Metrics = None

    separator: str = Field("\n\n", min_length=1)
    max_new_tokens: int = Field(200, ge=1)
    parser: Annotated[Parser, _one_of("parser", PARSERS)] = "auto"
    metric: Annotated[Score, _one_of("metric", SCORES)] = "exact_match"
    length_normalised: bool = False

    chat: Annotated[Chat, _one_of("chat", CHATS)] = "none"
    dtype: Annotated[str | None, _one_of("dtype", DTYPES)] = None
    quantization: Annotated[str | None, _one_of("quantization", QUANTIZATIONS)] = None
    attn_implementation: str | None = None

    def stages(self) -> dict[str, Stage]:
        """Stages by the name of the adapter that each yields."""
        names = ("layers", "positions", "temperature", "top_k", "responses")
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        if isinstance(self.method, str):
            return named_stages(self.method, methods(self.loss, self.soft_loss, self.beta, **options))
        return {name: stage.stage(**options) for name, stage in self.method.items()}

    @property
    def result(self) -> str:
        """The name of the adapter that the last stage yields."""
        return self.method if isinstance(self.method, str) else list(self.method)[-1]

    @property
    def base(self) -> dict[str, Any]:
        """How the base model is loaded, for `ia2.load_model`."""
        names = ("chat", "dtype", "quantization", "attn_implementation")
        return {name: getattr(self, name) for name in names}

    def settings(self, name: str, n_rows: int) -> list[TrainingSettings]:
        """Of the trainings of a stage on so many rows, one for each learning rate.

        The effective batch is never larger than the rows are many (paper: min(4, N)).
        """
        stage = self.stages()[name]
        own = self.method[name] if isinstance(self.method, dict) else None
        primes = bool(stage.teacher_sites) and stage.imitates

        def of(option: str) -> Any:
            given = getattr(own, option, None)
            given = getattr(self, f"prime_{option}") if given is None and primes else given
            return getattr(self, option) if given is None else given

        return [
            TrainingSettings(
                learning_rate=rate,
                num_train_epochs=of("num_train_epochs"),
                per_device_train_batch_size=min(self.per_device_train_batch_size, n_rows),
                gradient_accumulation_steps=self.gradient_accumulation_steps,
                eval_steps=self.eval_steps,
                early_stopping_patience=of("early_stopping_patience"),
                metric_for_best_model=of("metric_for_best_model"),
                seed=self.seed,
                report_to=self.report_to,
                snapshots=self.snapshots,
            )
            for rate in of("learning_rate") or find_adapter(self.adapter).learning_rate
        ]


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"loss": "mse", "learning_rate": (1e-4, 3e-4, 1e-3)},
}


def make_config(values: dict[str, Any], preset: str = "default") -> RunConfig:
    """A checked configuration: `values` over the preset's over the defaults.

    Raises:
        IA2Error: an unknown name or a wrong value; says which, and the nearest known name.
    """
    values = {**PRESETS[choose("preset", preset, PRESETS)], **values}
    if "trust_remote_code" in values:  # a file of options, or a run from elsewhere, must not say so
        raise IA2Error("trust_remote_code is no option: give the flag --trust-remote-code, or in Python a loaded model")
    for name in values:
        choose("option", name, RunConfig.model_fields)
    try:
        return RunConfig(**values)
    except ValidationError as error:
        raise IA2Error(_in_a_line(error)) from None


def _in_a_line(error: ValidationError) -> str:
    first = max(error.errors(), key=lambda found: len(found["loc"]))  # of the forms a value may have, the one meant
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, IA2Error):
        return str(cause)
    forms = ("str", "constrained-str")
    where = ".".join(str(part) for part in first["loc"] if part not in forms and "[" not in str(part))
    if first["type"] == "missing":
        return f"no option '{where}', and it is needed"
    return f"option '{where}' is {first['input']!r}: {first['msg'].lower().replace('tuple', 'list')}"


def read_config(path: Path) -> dict[str, Any]:
    """The values in a YAML file of options."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IA2Error(f"{path}: no such file; expected YAML with options such as 'method: ia2-sft'") from None
    except OSError as error:
        raise IA2Error(f"{path}: {(error.strerror or 'unreadable').lower()}; expected a YAML file") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that is none
        raise IA2Error(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise IA2Error(f"{path}: found {type(values).__name__}, expected 'option: value' lines")
    return values
