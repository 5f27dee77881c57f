"""The forms of a ladder's files, checked where they are read (see :mod:`nonlin.study.wellformed`)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta

from nonlin.files import plain_name
from nonlin.ladder.records import WrittenForecast
from nonlin.records import Record
from nonlin.study.wellformed import (
    BadForm,
    DataForm,
    LadderRuleForm,
    Natural,
    Positive,
    Several,
    Size,
    must_be,
    must_be_one,
)


class AskedArmForm(Record, frozen=True, kw_only=True):
    name: str
    kind: Literal["pointwise", "gated"]
    hidden: Size
    parameters: Size
    formula: str | None
    stream: str | None = None
    activation: str | None = None
    learning_rate: Positive | None = None


class RequestForm(Record, frozen=True, kw_only=True):
    arms: Annotated[list[AskedArmForm], Meta(min_length=1)]
    baseline: str
    match: str
    learning_rate: Positive
    learning_rates: Annotated[int, Meta(ge=1, le=1000)]
    margin: Natural
    training: dict[str, Any]


class SettingsForm(Record, frozen=True, kw_only=True):
    tokens_per_parameter: Positive
    seeds: Several
    batch: Size
    context: Size
    vocabulary: Size
    longer: Natural


class RungForm(Record, frozen=True, kw_only=True):
    name: str
    role: Literal["tuned", "checked", "carried"]
    layers: Size
    dim: Size
    heads: Size
    parameters: Size
    parameters_with_embeddings: Size
    tokens: Size
    steps: Size
    flops: Annotated[float, Meta(gt=0)]
    longer: Positive
    folder: str
    before: str | None


class TransferForm(Record, frozen=True, kw_only=True):
    name: str
    source: str


class SpeedForm(Record, frozen=True, kw_only=True):
    parameters: Size
    tokens_per_second: Positive


class TimingForm(Record, frozen=True, kw_only=True):
    speeds: Annotated[list[SpeedForm], Meta(min_length=1)]
    seconds_overhead: Natural
    over_baseline: dict[str, Positive]
    mean_over_baseline: Positive


class WidthForm(Record, frozen=True, kw_only=True):
    dim: Size
    heads: Size
    outside: Natural
    layers: Size
    embeddings: Natural
    head: Natural


class LadderModelForm(Record, frozen=True, kw_only=True):
    sha256: str
    period: Size
    head_width: Size
    rows: Annotated[list[WidthForm], Meta(min_length=1)]
    subjects: dict[str, dict[str, Any]]


class LadderForm(Record, frozen=True, kw_only=True):
    """plan.json of a ladder."""

    hash: str
    format: int
    name: str
    request: RequestForm
    settings: SettingsForm
    rungs: Annotated[list[RungForm], Meta(min_length=1)]
    baseline: str
    rule: LadderRuleForm
    transfer: TransferForm
    machine: dict[str, Any]
    data: DataForm
    target: Positive
    timing: TimingForm
    workers: Size
    model: LadderModelForm | None = None


def must_be_forecast(values: Any) -> None:
    """Raise BadForm where JSON values are no forecast."""
    must_be(WrittenForecast, values)


def must_be_rungs(rows: list[dict[str, Any]], arms: list[str], baseline: str, model: Mapping[str, Any]) -> None:
    """Raise BadForm where rungs share a folder, lead out of the ladder's, have no shape, or an arm comes twice."""
    must_be_one(arms, baseline)
    must_be_one([row["folder"] for row in rows])
    for row in rows:
        for name in (row["folder"], row["before"]):
            if name is not None and not plain_name(name):
                raise BadForm("a rung's folder lies elsewhere")
        if model and f"{row['layers']}x{row['dim']}" not in model["subjects"]:
            raise BadForm("a rung's model is not described")
        if not model and row["dim"] % row["heads"]:
            raise BadForm("a rung's width is no multiple of its heads")
