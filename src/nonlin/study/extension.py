"""A study that grows: more seeds, more arms. Finished runs are kept and counted; the plan remembers what it was."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nonlin.errors import UserError, rule
from nonlin.study import defaults, verdict
from nonlin.study.budget import Prediction, makespan, predict
from nonlin.study.plan import Plan, cost, memory_taken
from nonlin.study.request import Arm, Request
from nonlin.study.tuning import Records, judge_trials


def extended(plan: Plan, seeds: int, arms: Sequence[Arm] = (), speeds: Mapping[str, Mapping[str, float]] | None = None,
             looked: bool = True) -> Plan:
    """Return the plan with ``seeds`` judged seeds in all, and with these arms beside those that it has.

    ``speeds``: by new arm, and for the baseline where arms train for equal times, {"tokens_per_second",
    "seconds_overhead"}. ``looked``: whether a judged run was seen before; seeds added then are a further stage, with a
    level of its own (:mod:`nonlin.study.stages`). Raises UserError for values that add nothing.
    """
    _check(plan, seeds, arms)
    looks = [*plan.looks, seeds] if looked and seeds > plan.looks[-1] else [*plan.looks[:-1], seeds]
    predicted = _predicted(plan, arms, speeds or {})
    asked = {**plan.request, "seeds": seeds, "arms": [*plan.request["arms"], *(arm.as_dict() for arm in arms)]}
    base = plan.arm(plan.baseline)["parameters"]
    new = [arm.as_dict() | {"parameters_relative_error": arm.parameters / base - 1} | predicted.steps[arm.name]
           for arm in arms]
    trials = plan.budget["timing"]["trials"] | {arm.name: predicted.seconds[arm.name] for arm in arms}
    minutes = _minutes(plan, seeds, arms, trials)
    stage = {"hash": plan.hash, "request": plan.request, "rule": plan.rule, "looked": looked}
    made = {**plan.rule, "seeds": seeds, "text": verdict.rule_text(plan.rule["margin"], plan.rule["confidence"], looks)}
    if len(looks) > 1:
        made["looks"] = looks
    first = plan.judge_seeds[0]
    timing = {"predicted_minutes": minutes, "trials": trials}
    return replace(
        plan, request=asked, arms=[*plan.arms, *new], rule=made, judge_seeds=[first + i for i in range(seeds)],
        budget={**plan.budget, "timing": timing} | memory_taken(speeds or {}, plan.memory_bytes),
        history=[*plan.history, stage])


def _predicted(plan: Plan, arms: Sequence[Arm], speeds: Mapping[str, Mapping[str, float]]) -> Prediction:
    """Return the steps of new arms' runs, and what they take."""
    if not arms:
        return Prediction(0.0, {}, {})
    request = with_baseline(plan, arms)
    costs = {arm.name: cost(speeds[arm.name]) if arm.name in speeds else (1.0, 0.0) for arm in request.arms}
    return predict(request, costs, plan.workers, plan.training["judge_steps"])


def with_baseline(plan: Plan, arms: Sequence[Arm]) -> Request:
    """Return the study's request, of its baseline and these arms."""
    base = next(arm for arm in plan.request["arms"] if arm["name"] == plan.baseline)
    values: dict[str, Any] = {**plan.request, "arms": [Arm(**base), *arms]}
    return Request(**values)


def _minutes(plan: Plan, seeds: int, arms: Sequence[Arm], trials: Mapping[str, Mapping[str, float]]) -> float:
    """Return how long the added runs take."""
    jobs = [trials[arm["name"]]["judge_seconds"] for arm in plan.arms for _ in range(seeds - len(plan.judge_seeds))]
    tuning = len(plan.learning_rates) * len(plan.tune_seeds)
    jobs += [trials[arm.name][f"{kind}_seconds"] for arm in arms
             for kind, count in (("tune", tuning), ("judge", seeds)) for _ in range(count)]
    return (makespan(jobs, plan.workers) + defaults.RESERVE_SECONDS) / 60


def _check(plan: Plan, seeds: int, arms: Sequence[Arm]) -> None:
    now, known = len(plan.judge_seeds), [arm["name"] for arm in plan.arms]
    if seeds < now or (seeds == now and not arms):
        raise UserError(rule("extend", "seeds", f"be more than the {now} of the study", seeds,
                             f"Ask for {now + 4}, or for --activations that it has not."))
    if seeds >= defaults.FIRST_TUNE_SEED:
        raise UserError(rule("extend", "seeds", f"be fewer than {defaults.FIRST_TUNE_SEED}", seeds, "Ask for fewer."))
    names = [arm.name for arm in arms]
    if again := sorted({name for name in names if name in known or names.count(name) > 1}):
        raise UserError(rule("extend", "activations", "be new to the study, each named once", ", ".join(again),
                             f"It has {', '.join(known)}."))


def looked_at(plan: Plan, records: Records) -> bool:
    """Return whether a judged run of the study has ended: then somebody may have seen how it goes."""
    return any(t.key in records for arm in plan.arms for t in judge_trials(plan, arm["name"], records))


def seeds_in(plan: Plan, records: Records, minutes: float, workers: int) -> int:
    """Return how many seeds in all the study has after so many more minutes, by the time that its runs took.

    Raises UserError where not one seed fits.
    """
    each = 0.0
    for arm in (a["name"] for a in plan.arms):
        ran = [records[t.key]["timing"]["seconds"] for t in judge_trials(plan, arm, records) if t.key in records]
        each += sum(ran) / len(ran) if ran else plan.trial_seconds(arm, "judge")
    more = int((60 * minutes - defaults.RESERVE_SECONDS) * workers / each) if each > 0 else 1
    if more < 1:
        needed = (each / workers + defaults.RESERVE_SECONDS) / 60
        raise UserError(rule("extend", "minutes", "be enough for one more seed of each activation", minutes,
                             f"Use --minutes {needed + 0.5:.0f}."))
    return min(len(plan.judge_seeds) + more, defaults.FIRST_TUNE_SEED - 1)
