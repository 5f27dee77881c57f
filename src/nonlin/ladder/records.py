"""The typed records of a ladder: results.json, and the forecasts that were written down."""

from typing import Any, Literal

from nonlin.records import Record
from nonlin.study.records import Difference, VerdictName

#: A forecast's answer about one arm.
ForecastVerdict = Literal["better", "worse", "tie", "undecided"]


class FormRow(Record, frozen=True, kw_only=True):
    """One form's say at a size: its mean and interval in bits per byte, and the verdict by it alone."""

    form: str
    mean: float
    low: float
    high: float
    verdict: ForecastVerdict
    rejected: bool


class ForecastRow(Record, frozen=True, kw_only=True):
    """What is forecast of one arm: arm − baseline in bits per byte; no numbers before three rungs can be compared.

    ``widening`` is the part of the interval's half width that stands for learning rates, ``noise`` the std of one
    seed's difference at that size.
    """

    arm: str
    mean: float | None
    low: float | None
    high: float | None
    verdict: ForecastVerdict
    reason: str | None
    widening: float
    noise: float | None
    forms: list[FormRow]


class ForecastAt(Record, frozen=True, kw_only=True):
    """The forecasts at one size: of the held-out rung, or of the target."""

    what: str
    parameters: float
    arms: list[ForecastRow]


class WrittenForecast(Record, frozen=True, kw_only=True):
    """forecasts/NNNN.json: what was forecast from which rungs; ``before``: no run of the rung it tests was there."""

    format: int
    plan: str
    rungs: list[str]
    before: bool
    rule: dict[str, Any]
    transfer: str
    seeds: int
    at: list[ForecastAt]
    file: str | None = None
    timing: dict[str, Any] = {}


class Compared(Record, frozen=True, kw_only=True):
    """A forecast beside what was measured at its size; ``error`` is measured − forecast in bits per byte."""

    arm: str
    parameters: float
    measured: float
    mean: float | None
    low: float | None
    high: float | None
    error: float | None
    covered: bool | None
    forecast: str | None = None
    before: bool | None = None
    verdict: ForecastVerdict | None = None
    measured_error: float | None = None


class RungArm(Record, frozen=True, kw_only=True):
    """One arm at one rung; ``each`` has the judged seeds' differences to the baseline."""

    bits_per_byte: float | None
    learning_rate: float | None
    verdict: VerdictName
    difference: Difference | None
    diverged_runs: int
    each: list[float]


class RungRow(Record, frozen=True, kw_only=True):
    """One size with what was found there. ``longer``: its horizon, as a multiple of the others'; above 1 not fitted."""

    name: str
    role: Literal["tuned", "checked", "carried"]
    layers: int
    dim: int
    heads: int
    parameters: int
    parameters_with_embeddings: int
    tokens: int
    steps: int
    flops: float
    longer: float
    branches: bool = False
    arms: dict[str, RungArm]
    timing: dict[str, Any] = {}


class Horizon(Record, frozen=True, kw_only=True):
    """How an arm's difference changes with longer training, in bits per byte: longer − shorter on the same seeds.

    The mean over ``sizes`` with its interval at the ladder's confidence; below zero, longer training favours the arm.
    """

    arm: str
    longer: float
    mean: float
    low: float
    high: float
    sizes: list[int]


class RateAt(Record, frozen=True, kw_only=True):
    """An arm's best learning rate at one rung, with its interval."""

    rung: str
    rate: float
    low: float
    high: float


class RateRow(Record, frozen=True, kw_only=True):
    """An arm's best learning rate at the smallest rung, and as it was carried to the others.

    ``moved`` is the best rate at the checked rung over the carried one; ``moved_error`` is the standard error of its
    logarithm. ``surely``: whether that is more than chance. ``cost_at_target``: the loss by it in bits per byte.
    """

    arm: str
    at: list[RateAt]
    rate: float
    low: float
    high: float
    carried: dict[str, float]
    moved: float | None
    moved_error: float | None
    surely: bool
    cost_at_target: float | None


class Narrowing(Record, frozen=True, kw_only=True):
    """What would narrow the intervals at the target: its minutes, and the half width left, as a share of today's."""

    what: str
    minutes: float
    share: float
    option: str


class LadderResults(Record, frozen=True, kw_only=True):
    """results.json of a ladder: the verdicts at the target, what was forecast and measured at each rung, the rates."""

    format: int
    name: str
    status: Literal["complete", "partial"]
    baseline: str
    target: float
    rule: dict[str, Any]
    transfer: dict[str, Any]
    verdicts: list[ForecastRow]
    advice: str
    notes: list[str]
    rungs: list[RungRow]
    forecasts: list[WrittenForecast]
    comparisons: list[Compared]
    leave_one_out: list[Compared]
    rates: list[RateRow]
    horizon: list[Horizon] = []
    curves: list[dict[str, Any]]
    narrowing: list[Narrowing]
    plan: dict[str, Any]
    timing: dict[str, Any]
