"""The typed records of a study: its verdicts, its arms, its results."""

from typing import Any, Literal

from nonlin.numbers import interval, number
from nonlin.records import Record

#: "better" and "worse" are of the difference to the baseline; an arm without enough evidence is "undecided".
VerdictName = Literal["better", "worse", "tie", "undecided", "baseline"]


class Difference(Record, frozen=True, kw_only=True):
    """The paired difference arm − baseline on the same seeds, in bits per byte: below zero is better.

    ``low`` to ``high`` is the interval of ``interval_confidence``, which Holm's correction raises above
    ``confidence``; ``p_value`` is corrected too. ``float(difference)`` is the mean.
    """

    mean: float
    low: float
    high: float
    confidence: float
    p_value: float
    seeds: int
    interval_confidence: float | None = None
    p_value_uncorrected: float | None = None
    standard_error: float | None = None

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        return f"{number(self.mean, '+.4f')} ({interval(self.low, self.high, '+.4f')})"


class PairVerdict(Record, frozen=True, kw_only=True):
    """The answer about two arms that are both better than the baseline; the first has the least loss.

    ``difference`` is first − second; ``verdict`` is "better" where the first is better than the second.
    """

    first: str
    second: str
    verdict: Literal["better", "tie", "undecided"]
    difference: Difference
    seeds_needed: int | None = None
    reason: str | None = None


class Look(Record, frozen=True, kw_only=True):
    """The verdicts at an earlier look, of so many seeds, by the rule of then."""

    seeds: int
    verdicts: dict[str, VerdictName]


class ArmVerdict(Record, frozen=True, kw_only=True):
    """The study's answer about one arm; ``difference`` is None for the baseline, and where nothing can be compared.

    ``bits_per_byte`` is the mean over the arm's judged seeds and ``standard_deviation`` their spread. ``seeds_needed``
    is how many seeds would decide an undecided arm; ``reason`` says why it is none of the rest.
    """

    name: str
    verdict: VerdictName
    bits_per_byte: float | None
    difference: Difference | None
    standard_deviation: float | None = None
    seeds_needed: int | None = None
    reason: str | None = None
    learning_rate: float | None = None


class RunOfArm(Record, frozen=True, kw_only=True):
    """One run of an arm; ``bits_per_byte`` is None where it diverged, ``config_hash`` names its folder."""

    seed: int
    bits_per_byte: float | None
    status: str
    config_hash: str
    learning_rate: float | None = None
    initial_bits_per_byte: float | None = None


class ArmTiming(Record, frozen=True, kw_only=True):
    """The time and memory of the arm's judged runs, on the machine that ran them.

    ``tokens_per_processor_second`` counts the time that a processor worked on the steps, whatever else ran beside.
    """

    tokens_per_second: float | None = None
    tokens_per_processor_second: float | None = None
    peak_memory_bytes: int | None = None


class Recovery(Record, frozen=True, kw_only=True):
    """How a trained model recovers from an arm's activation, averaged over judged seeds; losses in bits per byte.

    ``before`` is the loss with the model's own activation, ``points`` the [tokens, loss] since the swap.
    ``back_at_tokens`` is the first of them at which the loss is no more than ``before`` and the margin; None for none.
    """

    before: float
    points: list[list[float]]
    back_at_tokens: int | None


class ArmResult(ArmVerdict, frozen=True, kw_only=True):
    """All that a study found of one arm: its verdict, its runs, its measures averaged over judged seeds."""

    kind: str
    formula: str | None
    activation: str | None = None
    tuning: list[RunOfArm]
    judged: list[RunOfArm]
    hidden: int
    parameters: int
    learning_rate_at_edge: bool = False
    learning_rate_sensitivity: float | None = None
    diverged_runs: int = 0
    diverged_tuning_runs: int = 0
    spike_score: float | None = None
    dead_share: float | None = None
    sparsity: float | None = None
    gradient_ratio: float | None = None
    parameters_relative_error: float = 0.0
    flops_per_token: float | None = None
    layers: list[dict[str, float | None]] = []
    recovery: Recovery | None = None
    timing: ArmTiming = ArmTiming()


class Rule(Record, frozen=True, kw_only=True):
    """The rule of the verdicts, fixed before the first run; ``margin`` in bits per byte.

    ``pairs``: the part of the error that comparisons of better arms may add. ``looks``: the seeds at each look, of a
    study that was extended.
    """

    margin: float
    confidence: float
    seeds: int
    text: str
    metric: str = "bits_per_byte"
    correction: str = "holm"
    method: str = "paired"
    pairs: float | None = None
    looks: list[int] = []


class RunTimes(Record, frozen=True, kw_only=True):
    """Seconds of the call that wrote the results, and of all runs together; attempts lost in that call, by cause."""

    seconds: float
    trial_seconds: float | None = None
    run_seconds: float | None = None
    lost_attempts: dict[str, int] = {}


class PlannedArm(Record, frozen=True, kw_only=True):
    """One arm of a plan: its width, its parameters and the lengths of its runs."""

    name: str
    kind: str
    hidden: int
    parameters: int
    formula: str | None = None
    parameters_relative_error: float = 0.0
    tune_steps: int | None = None
    judge_steps: int | None = None
    stream: str | None = None
    activation: str | None = None
    learning_rate: float | None = None


class Stage(Record, frozen=True, kw_only=True):
    """What a study was before it was extended; ``looked``: whether a judged run had ended by then."""

    hash: str
    request: dict[str, Any]
    rule: Rule
    looked: bool


class PlanRecord(Record, frozen=True, kw_only=True):
    """plan.json: all that decides what runs and how it is judged; ``hash`` is that of what decides the results."""

    hash: str
    format: int
    name: str
    request: dict[str, Any]
    arms: list[PlannedArm]
    baseline: str
    rule: Rule
    model: dict[str, Any]
    training: dict[str, Any]
    learning_rates: list[float]
    match: str
    machine: dict[str, Any]
    workers: int
    budget: dict[str, Any]
    data: dict[str, Any]
    tune_seeds: list[int] = []
    judge_seeds: list[int] = []
    learning_rate_factor: float | None = None
    learning_rate_extensions: int | None = None
    notes: list[str] = []
    history: list[Stage] = []


class AcrossStudy(Record, frozen=True, kw_only=True):
    """One of several studies: its short name and its folder."""

    label: str
    directory: str
    status: str


class AcrossPart(Record, frozen=True, kw_only=True):
    """An activation in one of several studies."""

    verdict: VerdictName
    difference: Difference | None = None
    learning_rate: float | None = None
    reason: str | None = None


class AcrossActivation(Record, frozen=True, kw_only=True):
    """An activation over several studies; ``parts`` in their order, None where a study does not have it.

    ``outcome``: "agrees", "turned", "mixed", "partly" or "open"; ``spread_p_value``: of differences that are the same
    but for their errors, corrected over the activations.
    """

    name: str
    parts: list[AcrossPart | None]
    outcome: Literal["agrees", "turned", "mixed", "partly", "open"]
    spread_p_value: float | None = None


class Across(Record, frozen=True, kw_only=True):
    """Several studies together; ``differing``: parts of their set-ups that differ, by study; ``alike``: the rest."""

    format: int
    baseline: str
    studies: list[AcrossStudy]
    activations: list[AcrossActivation]
    findings: list[str]
    differing: dict[str, list[str]]
    alike: dict[str, str]
    notes: list[str] = []


class Count(Record, frozen=True, kw_only=True):
    """Runs that are done, and all that are planned so far."""

    done: int
    total: int


class RankedArm(Record, frozen=True, kw_only=True):
    """An arm's mean over the judged runs that are done; None where there is none."""

    name: str
    bits_per_byte: float | None
    seeds: int


class RunInFlight(Record, frozen=True, kw_only=True):
    """A run that trains now: its arm and its step."""

    name: str
    purpose: str
    learning_rate: float
    seed: int
    step: int
    steps: int
    loss_nats: float | None = None


class InFlight(Record, frozen=True, kw_only=True):
    """progress.json: what the process that runs a study says of its runs; gone when it ends."""

    seconds_left: float | None = None
    running: list[RunInFlight] = []


class Snapshot(Record, frozen=True, kw_only=True):
    """How far a study is: runs done of those planned, seconds left, the ranking so far, the runs in flight.

    ``state`` is "running", "stopped" with runs missing, or "complete". Of a stopped study ``seconds_left`` is the
    predicted time of what is missing. The ranking is no verdict: those fall when all runs are there.
    """

    name: str
    state: Literal["running", "stopped", "complete"]
    tuning: Count
    judging: Count
    seconds_left: float | None
    ranking: list[RankedArm]
    running: list[RunInFlight] = []


class SeveralSnapshot(Record, frozen=True, kw_only=True):
    """How far the studies of one folder are: the rungs of a ladder, or A/A studies.

    ``state`` is as of a :class:`Snapshot`. ``studies`` counts those that are complete. ``current`` is the study that
    runs, or was stopped on the way; None between two. ``seconds_left`` is the predicted time of all that is missing.
    """

    name: str
    kind: Literal["a ladder", "A/A studies"]
    state: Literal["running", "stopped", "complete"]
    studies: Count
    seconds_left: float
    current: Snapshot | None = None


class Results(Record, frozen=True, kw_only=True):
    """results.json: the verdicts and numbers of a study.

    ``status`` is "complete", "interrupted", or "partial" where runs are missing. ``ranking`` has the arms by their
    mean, the best first. ``advice`` is one sentence, ``winner`` the activation that it names. ``headline`` says what
    was found and what it stands on. ``pairs`` compares those found better; ``looks`` are earlier ones, of a study that
    was extended.
    """

    format: int
    name: str
    status: Literal["complete", "interrupted", "partial"]
    rule: Rule
    baseline: str
    advice: str
    winner: str
    ranking: list[str]
    arms: list[ArmResult]
    plan: PlanRecord
    data: dict[str, Any]
    timing: RunTimes
    remarks: list[str] = []
    headline: str = ""
    pairs: list[PairVerdict] = []
    looks: list[Look] = []
    environment: dict[str, Any] = {}
