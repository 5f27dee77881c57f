"""The rules of an advice, in one place: the evidence, its distance from the question, and the activation that follows.

1. A piece of evidence is *near* if its parameters and its tokens are each within a factor of 4 of those asked for.
   It is *within reach* within a factor of 30, else *far*.
2. The nearest evidence decides; near, or within reach, the user's own study goes before papers. A study that is
   unfinished, or undecided throughout, decides nothing.
3. A paper favours its best option and those within two standard errors of it. Of several papers, the options that
   all of them favour; if they share none, those that any of them favours.
4. Among the favoured, the one that runs in most places (Hugging Face, llama.cpp), then the one with the faster
   training step here, then the one found best.
5. The choice is *likely* if near evidence decides and nothing else that is near or within reach disagrees. It is
   *plausible* if evidence within reach decides, or near evidence is contradicted. It is a *guess* if only far
   evidence is left. A study of one's own that is far counts as contradiction too.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nonlin.advice.published import TABLES, Table
from nonlin.ladder.folder import LadderFolder
from nonlin.ladder.forecast import FEWEST_RUNGS
from nonlin.ladder.points import points
from nonlin.ladder.rates import RULES
from nonlin.ladder.results import forecast_from
from nonlin.numbers import interval, number
from nonlin.study import StudyFolder
from nonlin.study.advice import winner

NEAR, REACH = 4.0, 30.0
BUCKETS = ("near", "within reach", "far")
_LARGER = 2.0  # standard errors
REFERENCE = "gelu"


@dataclass(frozen=True)
class Evidence:
    """One source's say: what it favours, what it rejects, what it found, and its distance."""

    source: str
    own: bool
    params: float
    tokens: float
    distance: float
    favours: tuple[str, ...]
    rejects: tuple[str, ...]
    found: Mapping[str, str]
    what: str = ""
    unit: str = "nats per token"
    formulas: Mapping[str, str] = field(default_factory=dict)

    @property
    def bucket(self) -> str:
        """How near it is: one of BUCKETS."""
        return BUCKETS[0 if self.distance <= NEAR else 1 if self.distance <= REACH else 2]


def distance(params: float, tokens: float, asked_params: float, asked_tokens: float) -> float:
    """Return the factor by which the further of parameters and tokens differs.

    >>> round(distance(1e6, 1e9, 1e8, 2e9), 6)
    100.0
    """
    return math.exp(max(abs(math.log(params / asked_params)), abs(math.log(tokens / asked_tokens))))


def from_papers(params: float, tokens: float, tables: Sequence[Table] = TABLES) -> list[Evidence]:
    """Return each paper's say by its table nearest to the question."""
    nearest: dict[str, Table] = {}
    for table in sorted(tables, key=lambda t: distance(t.params, t.tokens, params, tokens)):
        nearest.setdefault(table.paper, table)
    return [_from_table(table, distance(table.params, table.tokens, params, tokens)) for table in nearest.values()]


def _from_table(table: Table, far: float) -> Evidence:
    best = min(table.losses, key=lambda name: table.losses[name].nats)
    gaps = {name: table.difference(name, best) for name in table.losses}
    level = (n for n, (gap, error) in gaps.items() if gap <= _LARGER * error)
    favours = tuple(sorted(level, key=lambda n: gaps[n][0]))
    found = {}
    for name in table.losses:
        change, error = table.difference(name, REFERENCE)
        found[name] = f"{number(change, '+.3f')} ± {error:.3f}" if name != REFERENCE else "reference"
    note = f"; {table.note}" if table.note else ""
    return Evidence(f"{table.paper} ({table.source})", False, table.params, table.tokens, far, favours,
                    tuple(n for n in table.losses if n not in favours), found, table.what + note)


def from_study(folder: StudyFolder, params: float, tokens: float) -> Evidence | None:
    """Return a study's say by its own verdicts; None where none of its judged runs is done."""
    results = folder.results
    if not any(arm["judged"] for arm in results["arms"]):
        return None
    arms, baseline = results["arms"], results["baseline"]
    groups = {v: [a["name"] for a in arms if a["verdict"] == v] for v in ("better", "tie", "worse", "undecided")}
    favours, rejects = _study_says(results, groups, baseline)
    found = {}
    for arm in arms:
        d = arm["difference"]
        found[arm["name"]] = "baseline" if arm["name"] == baseline else arm["verdict"] + (
            f", {number(d['mean'], '+.4f')} ({interval(d['low'], d['high'], '+.4f')})" if d else "")
    size = max(float(a["parameters"]) for a in arms)
    plan = folder.plan
    trained = float(min(a["judge_steps"] for a in plan.arms) * plan.training["batch"] * plan.model["context"])
    return Evidence(f"your study {folder.directory}", True, size, trained, distance(size, trained, params, tokens),
                    favours, rejects, found, f"{results['status']}; {results['data'].get('description', 'your text')}",
                    "bits a byte", {a["name"]: a["formula"] for a in arms if a["formula"]})


def from_ladder(folder: LadderFolder, params: float, tokens: float) -> Evidence | None:
    """Return a ladder's say at the size asked for, by its finished rungs; None before three can be compared.

    It lies as far away as its largest rung does: what it says beyond that is a forecast, whose interval decides.
    """
    finished, plan = folder.finished(), folder.plan
    if not any(len(rungs) >= FEWEST_RUNGS for rungs in points(finished).values()):
        return None
    made = forecast_from(plan, finished, RULES[plan.transfer["name"]])(params)
    top = max((one for one, _ in finished if one.longer == 1), key=lambda one: one.parameters)
    by = {v: [arm for arm, one in made.items() if one.verdict == v] for v in ("better", "tie", "worse")}
    found = {plan.baseline: "baseline"} | {arm: one.verdict + (
        "" if one.mean is None else f", {number(one.mean, '+.4f')} ({interval(one.low, one.high, '+.4f')})")
        for arm, one in made.items()}
    favours, rejects = (), tuple(by["worse"])
    if by["better"]:
        best = min(by["better"], key=lambda arm: made[arm].mean or 0.0)
        favours, rejects = (best,), (plan.baseline, *by["tie"], *by["worse"])
    elif any(by.values()):
        favours = (plan.baseline, *by["tie"])
    formulas = {arm["name"]: arm["formula"] for arm in plan.request["arms"] if arm["formula"]}
    return Evidence(f"your ladder {folder.directory}", True, top.parameters, top.tokens,
                    distance(top.parameters, top.tokens, params, tokens), favours, rejects, found,
                    f"forecast from {len([1 for one, _ in finished if one.longer == 1])} sizes; "
                    f"{plan.data.get('description', 'your text')}", "bits a byte", formulas)


def _study_says(results: Mapping[str, Any], groups: Mapping[str, list[str]], baseline: str
                ) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The options that the verdicts favour and reject; none if the study is unfinished or all is undecided."""
    if results["status"] != "complete" or not (groups["better"] or groups["tie"] or groups["worse"]):
        return (), ()
    if groups["better"]:
        return (winner(results["arms"], baseline),), (baseline, *groups["tie"], *groups["worse"])
    return (baseline, *groups["tie"]), tuple(groups["worse"])


@dataclass(frozen=True)
class Choice:
    """The activation to take, how sure that is, what decided, and in which words."""

    name: str
    sureness: str
    decided_by: tuple[Evidence, ...]
    favoured: tuple[str, ...]
    against: tuple[Evidence, ...]
    reasons: tuple[str, ...]


def choose(evidence: Sequence[Evidence], places: Mapping[str, int], step_ms: Mapping[str, float]) -> Choice:
    """Return the choice by the rules above.

    ``places``: in how many places each option runs; ``step_ms``: the time of its training step here, where known.
    """
    telling = [e for e in evidence if e.favours]
    telling.sort(key=lambda e: (BUCKETS.index(e.bucket), e.bucket != "far" and not e.own, e.distance))
    first = telling[0]
    deciding = tuple(e for e in telling if (e.bucket, e.own) == (first.bucket, first.own))
    favoured = _shared(deciding)
    name = min(favoured, key=lambda n: (-places.get(n, 0), step_ms.get(n, math.inf), favoured.index(n)))
    others = [e for e in telling if e not in deciding and (e.own or e.bucket != "far")]
    against = tuple(e for e in others if name in e.rejects)
    sureness = "guess" if first.bucket == "far" else "plausible" if first.bucket != "near" or against else "likely"
    return Choice(name, sureness, deciding, favoured, against,
                  _reasons(name, favoured, deciding, against, places, step_ms))


def _shared(deciding: Sequence[Evidence]) -> tuple[str, ...]:
    """Return what all deciding evidence favours that measured it, or else all that is favoured; what most favour first.
    """
    times = Counter(n for e in deciding for n in e.favours)
    every = sorted(times, key=lambda n: -times[n])
    return tuple([n for n in every if all(n in e.favours or n not in e.found for e in deciding)] or every)


def _reasons(name: str, favoured: Sequence[str], deciding: Sequence[Evidence], against: Sequence[Evidence],
             places: Mapping[str, int], step_ms: Mapping[str, float]) -> tuple[str, ...]:
    said = " and ".join(e.source for e in deciding)
    verb = "decides" if len(deciding) == 1 else "decide"
    they = "it is" if len(deciding) == 1 else "they are"
    lines = [f"{said} {verb}: {they} the nearest evidence ({deciding[0].bucket}, a factor of "
             f"{number(max(e.distance for e in deciding), '.2g')} away)."]
    rest = [n for n in favoured if n != name]
    if rest:
        why = ("it runs in more places" if places.get(name, 0) > max(places.get(n, 0) for n in rest) else
               "its training step was the fastest here" if name in step_ms else "it was found best")
        lines.append(f"{', '.join(rest)} {'is' if len(rest) == 1 else 'are'} as good within the noise; {name} because "
                     f"{why}.")
    lines += [f"{e.source} says otherwise ({e.found[name]} {e.unit}; {e.bucket}, a factor of "
              f"{number(e.distance, '.2g')} away)." for e in against]
    return tuple(lines)
