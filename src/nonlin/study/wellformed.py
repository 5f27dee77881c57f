"""The forms of a study's files, checked where they are read: nothing behind that door meets a value of another type.

A file's hash says that nobody changed it by mistake. Whoever writes a file can write its hash too. So a folder from
elsewhere may hold anything: lists for numbers, sizes of nothing, names twice.
"""

from collections.abc import Collection
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from nonlin.records import Record
from nonlin.study.records import ArmResult, PlannedArm, PlanRecord, Results, Rule

Size = Annotated[int, Meta(ge=1, le=10**15)]
#: A number of things that are listed one by one.
Several = Annotated[int, Meta(ge=1, le=100_000)]
Positive = Annotated[float, Meta(gt=0, le=1e15)]
Natural = Annotated[float, Meta(ge=0, le=1e15)]
#: A number of a run: of an activation that a user defines it may be of any size whose square is a number.
Number = Annotated[float, Meta(ge=-1e150, le=1e150)]
#: A loss, or None where it is no number.
Loss = Number | None


class BadForm(ValueError):
    """Values are not those of a file of ours; the text says where."""


def must_be(form: type[Record], values: Any) -> None:
    """Raise BadForm where JSON values are not of a form."""
    try:
        msgspec.convert(values, form)
    except (msgspec.ValidationError, ValueError, OverflowError) as error:  # a text may be none that can be encoded
        raise BadForm(str(error)) from error


def must_be_one(names: Collection[Any], *wanted: Any) -> None:
    """Raise BadForm where names come twice, or a wanted one is not among them."""
    if len(set(names)) != len(names):
        raise BadForm("a name comes twice")
    for name in wanted:
        if name not in names:
            raise BadForm(f"there is no {name!r:.80}")


class RuleForm(Rule, frozen=True, kw_only=True):
    margin: Natural
    confidence: Annotated[float, Meta(gt=0, lt=1)]
    seeds: Several
    pairs: Annotated[float, Meta(ge=0, le=1)] | None = None
    looks: list[Size] = []


class LadderRuleForm(Record, frozen=True, kw_only=True):
    margin: Natural
    confidence: Annotated[float, Meta(gt=0, lt=1)]
    text: str


class ArmForm(PlannedArm, frozen=True, kw_only=True):
    formula: str | None  # type: ignore[misc]
    kind: Literal["pointwise", "gated"]
    hidden: Size
    parameters: Size
    parameters_relative_error: Number = 0.0
    tune_steps: Size  # type: ignore[misc]
    judge_steps: Size  # type: ignore[misc]
    learning_rate: Positive | None = None
    own: dict[str, Any] | None = None


class ModelForm(Record, frozen=True, kw_only=True):
    context: Size
    vocabulary: Size | UnsetType = UNSET
    layers: Size | UnsetType | None = UNSET
    dim: Size | UnsetType | None = UNSET
    heads: Size | UnsetType | None = UNSET
    kv_heads: Size | UnsetType | None = UNSET
    own: dict[str, Any] | UnsetType = UNSET

    def __post_init__(self):
        sizes = (self.layers, self.dim, self.heads, self.kv_heads)
        if self.own is UNSET and (None in sizes or UNSET in sizes):
            raise ValueError("a size of the model is missing")  # one that a function returns may not say its own


class TrainingForm(Record, frozen=True, kw_only=True):
    batch: Size
    tune_steps: Size
    judge_steps: Size
    transfer: dict[str, Any] | UnsetType = UNSET


class DataForm(Record, frozen=True, kw_only=True):
    sha256: str
    tokenizer: Any = None
    description: str | UnsetType = UNSET
    train_tokens: Natural | UnsetType = UNSET
    train_bytes: Positive | UnsetType = UNSET
    validation_tokens: Natural | UnsetType = UNSET
    validation_bytes: Positive | UnsetType = UNSET


class TimingForm(Record, frozen=True, kw_only=True):
    predicted_minutes: Natural
    trials: dict[str, dict[Literal["tune_seconds", "judge_seconds"], Natural]]


class BudgetForm(Record, frozen=True, kw_only=True):
    timing: TimingForm
    minutes: Natural | None = None
    memory_bytes: Annotated[int, Meta(ge=0, le=1 << 62)] | UnsetType = UNSET


class AskedArmForm(Record, frozen=True, kw_only=True):
    name: str
    kind: Literal["pointwise", "gated"]
    hidden: Size
    parameters: Size
    formula: str | None = None
    stream: str | None = None
    activation: str | None = None
    own: dict[str, Any] | None = None
    learning_rate: Positive | None = None


class AskedDataForm(DataForm, frozen=True, kw_only=True):
    tokenizer: str | int | None = None
    tokenizer_file: str | UnsetType = UNSET
    paths: list[str] | UnsetType = UNSET
    weights: list[Positive] | UnsetType | None = UNSET
    validation: list[str] | UnsetType = UNSET
    end: Annotated[int, Meta(ge=0)] | UnsetType | None = UNSET


class RequestForm(Record, frozen=True, kw_only=True):
    """The question that a plan answers, with what goes on with a study reads of it."""

    arms: Annotated[list[AskedArmForm], Meta(min_length=1)]
    baseline: str
    model: ModelForm
    data: AskedDataForm
    minutes: Natural | None = None
    match: Literal["params", "time", "width", "flops"] | UnsetType = UNSET
    seeds: Several | UnsetType = UNSET
    learning_rate: Positive | UnsetType = UNSET
    learning_rates: Annotated[int, Meta(ge=1, le=1000)] | UnsetType = UNSET
    steps: Size | None = None
    margin: Natural | UnsetType = UNSET
    confidence: Annotated[float, Meta(gt=0, lt=1)] | UnsetType = UNSET
    batch: Size | UnsetType = UNSET
    precision: str | UnsetType = UNSET
    replicate: Annotated[int, Meta(ge=0, le=10**12)] | UnsetType = UNSET
    role: Literal["tuned", "checked", "carried"] | None = None
    training: dict[str, Any] | UnsetType = UNSET


class MachineForm(Record, frozen=True, kw_only=True):
    """Hold what runs are trained with; where a study began stands beside it."""

    engine: str
    dtype: str
    threads: Annotated[int, Meta(ge=1, le=1024)]
    device: str | UnsetType = UNSET
    devices: Annotated[int, Meta(ge=1, le=1024)] | UnsetType = UNSET
    graphs: bool | UnsetType = UNSET
    compile: bool | UnsetType = UNSET
    parallel: str | UnsetType = UNSET


class StageForm(Record, frozen=True, kw_only=True):
    """Hold what a study was before it was extended."""

    hash: str
    request: RequestForm
    rule: RuleForm
    looked: bool


class PlanForm(PlanRecord, frozen=True, kw_only=True):
    """plan.json of a study."""

    request: RequestForm  # type: ignore[assignment]
    arms: Annotated[list[ArmForm], Meta(min_length=1)]  # type: ignore[assignment]
    rule: RuleForm
    model: ModelForm  # type: ignore[assignment]
    training: TrainingForm  # type: ignore[assignment]
    machine: MachineForm  # type: ignore[assignment]
    learning_rates: Annotated[list[Positive], Meta(min_length=1)]
    match: Literal["params", "time", "width", "flops"]
    workers: Size
    budget: BudgetForm  # type: ignore[assignment]
    data: DataForm  # type: ignore[assignment]
    judge_seeds: Annotated[list[int], Meta(min_length=1)]  # type: ignore[misc]
    history: list[StageForm] = []  # type: ignore[assignment]
    learning_rate_factor: Annotated[float, Meta(gt=1, le=1e6)]  # type: ignore[misc]
    learning_rate_extensions: Annotated[int, Meta(ge=0, le=100)]  # type: ignore[misc]


class ArmResultForm(ArmResult, frozen=True, kw_only=True):
    kind: Literal["pointwise", "gated"]
    hidden: Size
    parameters: Size


class ResultsForm(Results, frozen=True, kw_only=True):
    """results.json of a study."""

    plan: PlanForm
    arms: list[ArmResultForm]  # type: ignore[assignment]
    rule: RuleForm


class RunTimingForm(Record, frozen=True, kw_only=True):
    seconds: Natural
    tokens_per_second: Natural | None = None
    tokens_per_processor_second: Natural | None = None
    peak_memory_bytes: Annotated[int, Meta(ge=0)] | None = None


class RunForm(Record, frozen=True, kw_only=True):
    """result.json of a run."""

    config_hash: str
    status: Literal["finished", "diverged"]
    bits_per_byte: Loss
    initial_bits_per_byte: Loss
    best_bits_per_byte: Loss = None
    before_bits_per_byte: Loss = None
    evaluations: list[tuple[Natural, Loss]] = []
    spike_score: Loss = None
    parameters: Size
    flops_per_token: Natural | None
    dead_share: Loss = None
    sparsity: Loss = None
    layers: list[dict[str, Loss]] | None = None
    timing: RunTimingForm
    processor: str | None = None
    attempt: Size = 1


class TrainForm(Record, frozen=True, kw_only=True):
    """Hold a line of metrics.jsonl of the kind "train"."""

    tokens: Natural
    loss_nats: Loss


class EvaluationForm(Record, frozen=True, kw_only=True):
    tokens: Natural
    bits_per_byte: Loss


_MEASURES: dict[Any, type[Record]] = {"train": TrainForm, "evaluation": EvaluationForm}


def must_be_measures(lines: list[dict[str, Any]]) -> None:
    """Raise BadForm where lines of metrics.jsonl are not those of a language model's run."""
    for line in lines:
        kind = line.get("kind")
        if not isinstance(kind, str):
            raise BadForm("a line has no kind")
        if kind in _MEASURES:
            must_be(_MEASURES[kind], line)


class ActivationForm(Record, frozen=True, kw_only=True):
    name: str
    formula: str | None = None


class RunTrainingForm(Record, frozen=True, kw_only=True):
    learning_rate: Positive
    steps: Size


class RunModelForm(Record, frozen=True, kw_only=True):
    hidden: Size


class ConfigForm(Record, frozen=True, kw_only=True):
    """config.json of a run."""

    purpose: Literal["tune", "judge"]
    activation: ActivationForm
    model: RunModelForm
    training: RunTrainingForm
    seed: int


class ExperimentForm(Record, frozen=True, kw_only=True):
    """result.json of an experiment of claims; what it measured is its claim's to read."""

    config_hash: str
    measured: dict[str, Any]
    timing: RunTimingForm
    processor: str | None = None


def must_be_experiment(record: Any) -> None:
    """Raise BadForm where a record is not that of an experiment."""
    must_be(ExperimentForm, record)


def must_be_run(config: Any, record: Any) -> None:
    """Raise BadForm where a configuration and a record are not those of one run of a language model."""
    must_be(ConfigForm, config)
    must_be(RunForm, record)
    if record["status"] == "finished" and record["bits_per_byte"] is None:
        raise BadForm("a finished run has no loss")
    if record.get("evaluations") and record.get("before_bits_per_byte") is None:
        raise BadForm("a model that was trained before has no loss from then")


def whole_results(values: Any) -> dict[str, Any]:
    """Return a study's results with what earlier versions did not write; BadForm where values are none."""
    must_be(ResultsForm, values)
    names = [arm["name"] for arm in values["arms"]]
    must_be_one(names, values["baseline"], *values["ranking"])
    must_be_one(values["ranking"])
    return _filled(values, Results.from_dict(values).as_dict())


def _filled(values: Any, complete: Any) -> Any:
    if isinstance(values, dict) and isinstance(complete, dict):
        return complete | {name: _filled(value, complete.get(name)) for name, value in values.items()}
    if isinstance(values, list) and isinstance(complete, list) and len(values) == len(complete):
        return [_filled(value, other) for value, other in zip(values, complete, strict=True)]
    return values
