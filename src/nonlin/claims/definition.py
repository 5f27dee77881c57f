"""What a claim is: a statement, an experiment, a measure, a rule fixed in advance, a figure and a verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from matplotlib.figure import Figure

from nonlin.claims.needs import Question
from nonlin.study import results, statistics
from nonlin.study.plan import Plan
from nonlin.study.tuning import complete
from nonlin.training.config import config_hash

HOLDS, FAILS, DEPENDS, OPEN = "holds", "does not hold here", "depends", "not settled"
VERDICTS = (HOLDS, FAILS, DEPENDS, OPEN)
YES, NO, UNSURE = "yes", "no", "open"

Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Verdict:
    """The rule's answer; ``on`` names the condition that it depends on, ``parts`` the questions and answers."""

    verdict: str
    summary: str
    on: str | None = None
    parts: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Experiment:
    """A run that is no training of the language model; ``config`` determines its record."""

    config: dict[str, Any]
    name: str
    seconds: float
    request: str = "experiment"

    @property
    def key(self) -> str:
        """The hash of the configuration."""
        return config_hash(self.config)


def experiment(module: str, function: str, name: str, seconds: float, **values: Any) -> Experiment:
    """Return the run of ``nonlin.claims.MODULE``'s experiment of that name on these values."""
    return Experiment({"format": 1, "experiment": f"{module}.{function}", **values}, name, seconds)


class Found:
    """The records so far, as claims read them; ``lines`` reads the metrics of a finished run by its key."""

    def __init__(self, plan: Any, records: Mapping[str, Mapping[str, Any]],
                 lines: Callable[[str], Sequence[Mapping[str, Any]]] = lambda _: ()):
        self.plan, self.records, self.lines = plan, records, lines
        self._studies: dict[str, dict[str, Any]] = {}

    def record(self, experiment_: Experiment) -> Mapping[str, Any]:
        """Return the record of an experiment that has ended."""
        return self.records[experiment_.key]

    def study(self, name: str) -> dict[str, Any]:
        """Return the results of one of the plan's studies."""
        if name not in self._studies:
            self._studies[name] = results.results(self.plan.study(name), self.records)
        return self._studies[name]

    def done(self, experiments: Sequence[Experiment], studies: Sequence[Plan]) -> bool:
        """Return whether all of these have ended."""
        return all(e.key in self.records for e in experiments) and all(complete(s, self.records) for s in studies)


@dataclass(frozen=True)
class Claim:
    """One statement and how it is tested.

    ``experiments`` gives the runs that a plan asks for, ``studies`` the plan's studies it reads. ``measure`` gives the
    numbers of finished runs, ``decide`` the verdict of numbers alone. ``missing`` says what must be installed first, or
    None; the claim then runs without that part and says so. ``questions`` gives the effects that more seeds would
    decide.
    """

    number: int
    slug: str
    statement: str
    background: str
    tested: str
    rule: str
    change: str
    measure: Callable[[Found], dict[str, Any]]
    decide: Callable[[Mapping[str, Any]], Verdict]
    draw: Callable[[Mapping[str, Any]], Figure]
    table: Callable[[Mapping[str, Any]], Table]
    caption: str
    experiments: Callable[[Any], list[Experiment]] = lambda plan: []
    studies: tuple[str, ...] = ()
    missing: Callable[[], str | None] = lambda: None
    literature: Callable[[Mapping[str, Any]], tuple[str, Table]] | None = None
    questions: Callable[[Mapping[str, Any]], list[Question]] = lambda measures: []


def combine(parts: Mapping[str, str], summary: str, on: str) -> Verdict:
    """Return the verdict of several questions: all yes holds, all no fails, both depends, an open one is open.

    >>> combine({"wide": "yes", "narrow": "no"}, "", "the width").verdict
    'depends'
    """
    answers = set(parts.values())
    if UNSURE in answers:
        return Verdict(OPEN, summary, None, parts)
    if answers == {YES}:
        return Verdict(HOLDS, summary, None, parts)
    if answers == {NO}:
        return Verdict(FAILS, summary, None, parts)
    return Verdict(DEPENDS, summary, on, parts)


def above(effect: Mapping[str, float], margin: float) -> str:
    """Return whether an effect exceeds a margin: "yes", "no" where it surely does not, else "open".

    Yes: the interval leaves out zero and the mean exceeds the margin. No: the interval ends below the margin,
    or lies wholly below zero.

    >>> above({"mean": 3.0, "low": 2.0, "high": 4.0}, 1.0), above({"mean": 0.1, "low": -0.2, "high": 0.4}, 1.0)
    ('yes', 'no')
    """
    if effect["low"] > 0 and effect["mean"] > margin:
        return YES
    return NO if effect["high"] < margin else UNSURE


def effects(differences: Mapping[str, Sequence[float]], confidence: float = 0.95) -> dict[str, dict[str, float]]:
    """Return each name's mean paired difference with its interval, corrected by Holm across the names.

    >>> effects({"a": [1.0, 1.1, 0.9, 1.0]})["a"]["mean"]
    1.0
    """
    p_values = [statistics.paired_effect(d).p_value for d in differences.values()]
    levels = statistics.holm_confidences(p_values, confidence)
    corrected = statistics.holm(p_values)
    return {name: asdict(statistics.paired_effect(d, level)) | {"p_value": p}
            for (name, d), level, p in zip(differences.items(), levels, corrected, strict=True)}
