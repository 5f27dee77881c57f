"""The results of a ladder: from its rungs and forecasts to the values of results.json."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import special

from nonlin.errors import UserError
from nonlin.ladder import design, forecast
from nonlin.ladder.forecast import ArmForecast, Rule, Widening
from nonlin.ladder.forms import Point, noises
from nonlin.ladder.plan import LadderPlan
from nonlin.ladder.points import Finished, diverged, points
from nonlin.ladder.rates import Carried, Check, carry, check, optima
from nonlin.ladder.rates import Rule as Transfer
from nonlin.numbers import interval, number, percent

_DRAWN = 24  # sizes at which the forms are drawn
_STEP_UP = math.sqrt(math.sqrt(10.0))  # from the top rung to the one that would come next


def rule_of(plan: LadderPlan) -> Rule:
    """Return how the ladder's forecasts are judged."""
    return Rule(plan.rule["margin"], plan.rule["confidence"], plan.steady.seeds)


def carried_of(plan: LadderPlan, finished: Sequence[Finished], transfer: Transfer) -> Carried | None:
    """Return the rates to carry upward; None before both tuned rungs are there."""
    tuned = [(one, results["arms"]) for one, results in finished if one.role == "tuned"]
    wanted = sum(row["role"] == "tuned" for row in plan.rungs)
    return carry(transfer, tuned) if len(tuned) == wanted else None


def rates_at(plan: LadderPlan, one: design.Rung, finished: Sequence[Finished], transfer: Transfer
             ) -> dict[str, float] | None:
    """Return each arm's rate at a rung, those without one left out; None where it is tuned there.

    A branch goes on at the rate of the shorter run that it branches from.
    """
    if one.role == "tuned":
        return None
    for other, found in finished if one.branches else ():
        if other.longer == 1 and other.parameters == one.parameters:
            return {arm["name"]: arm["learning_rate"] for arm in found["arms"] if arm["learning_rate"] is not None}
    carried = carried_of(plan, finished, transfer)
    assert carried is not None  # tuned rungs come first
    return carried.to(one)


def must_compare(plan: LadderPlan, rates: Mapping[str, float]) -> None:
    """Raise UserError where the rates that were found leave no comparison: of activations that diverged there is none.
    """
    if plan.baseline not in rates:
        raise UserError(f"ladder: {plan.baseline} diverged at every rate of the tuned rungs, and it is the baseline. "
                        "Start in another folder with --baseline, or a lower --learning-rate.")
    if len(rates) < 2:
        others = [arm for arm in plan.arms if arm != plan.baseline]
        raise UserError(f"ladder: an activation beside {plan.baseline}, the baseline, must train at some rate of the "
                        f"tuned rungs; {' and '.join(others[:8])} diverged at every one. Start in another folder with "
                        f"a --learning-rate below {plan.request['learning_rate']:g}, or with other --activations.")


def check_of(finished: Sequence[Finished], carried: Carried | None) -> Check | None:
    """Return what the checked rung says of the rule of transfer; None before it is there."""
    there = [(one, results) for one, results in finished if one.role == "checked"]
    if carried is None or not there:
        return None
    one, results = there[-1]
    return check(carried, [r for r, _ in finished if r.role == "tuned"], one, results["arms"])


def widening_of(plan: LadderPlan, checked: Check | None) -> Widening | None:
    """Return what rates that moved may cost."""
    return None if checked is None else lambda arm, size: checked.widening(plan.baseline, arm, size)


def written_forecast(plan: LadderPlan, finished: Sequence[Finished], transfer: Transfer, sizes: Mapping[str, float],
                     before: bool) -> dict[str, Any]:
    """Return the values of a forecast's file: what is forecast at each of ``sizes``, from these rungs.

    ``before`` says whether no run of the rung that it forecasts was there yet.
    """
    at_size = forecast_from(plan, finished, transfer)
    at = [{"what": what, "parameters": size, "arms": [made.as_dict() for made in at_size(size).values()]}
          for what, size in sizes.items()]
    return {"format": 1, "plan": plan.hash, "rungs": [one.name for one, _ in finished if one.longer == 1],
            "before": before, "rule": plan.rule, "transfer": plan.transfer["name"], "seeds": plan.steady.seeds,
            "at": at}


def forecast_from(plan: LadderPlan, finished: Sequence[Finished], transfer: Transfer
                  ) -> Callable[[float], dict[str, ArmForecast]]:
    """Return the forecasts from these rungs, by arm, as a function of the size.

    An arm that diverged at the largest rung is undecided: its numbers are those of smaller ones.
    """
    there, rule = points(finished), rule_of(plan)
    widening = widening_of(plan, check_of(finished, carried_of(plan, finished, transfer)))
    largest = max((one for one, _ in finished if one.longer == 1), key=lambda one: one.parameters, default=None)
    lost = diverged(finished)

    def at(size: float) -> dict[str, ArmForecast]:
        made = forecast.forecast(there, size, rule, widening)
        for arm, one in made.items():
            if largest is not None and largest.name in lost.get(arm, ()):
                made[arm] = replace(one, verdict="undecided", reason=f"it diverged at {largest.name}, the largest rung")
        return made

    return at


def results(plan: LadderPlan, finished: Sequence[Finished], forecasts: Sequence[Mapping[str, Any]],
            transfer: Transfer, status: str) -> dict[str, Any]:
    """Return the values of results.json."""
    there, rule = points(finished), rule_of(plan)
    carried = carried_of(plan, finished, transfer)
    checked = check_of(finished, carried)
    widening = widening_of(plan, checked)
    last = forecasts[-1] if forecasts else None
    verdicts = target_of(last, plan.target) if last else []
    return {
        "format": 1, "name": plan.name, "status": status, "baseline": plan.baseline, "target": plan.target,
        "rule": plan.rule, "transfer": plan.transfer, "verdicts": verdicts, "advice": advice(plan, verdicts, status),
        "notes": notes(plan, finished, checked), "rungs": [_rung(plan, one, found) for one, found in finished],
        "forecasts": [dict(made) for made in forecasts], "comparisons": comparisons(forecasts, there),
        "leave_one_out": forecast.leave_one_out(there, rule, widening) if there else [],
        "rates": rates(plan, finished, carried, checked), "horizon": horizon(plan, finished),
        "curves": curves(plan, there, widening), "narrowing": narrowing(plan, there), "plan": plan.as_dict(),
        "timing": {"trial_seconds": math.fsum(found["timing"].get("trial_seconds") or 0.0 for _, found in finished)}}


def target_of(made: Mapping[str, Any], target: float) -> list[dict[str, Any]]:
    """Return a forecast's arms at the target."""
    return next((at["arms"] for at in made["at"] if at["what"] == "target" and at["parameters"] == target), [])


def _rung(plan: LadderPlan, one: design.Rung, found: Mapping[str, Any]) -> dict[str, Any]:
    base = next(arm for arm in found["arms"] if arm["name"] == plan.baseline)
    losses = {run["seed"]: run["bits_per_byte"] for run in base["judged"]}
    arms = {arm["name"]: {
        "bits_per_byte": arm["bits_per_byte"], "learning_rate": arm["learning_rate"], "verdict": arm["verdict"],
        "difference": arm["difference"], "diverged_runs": arm["diverged_runs"],
        "each": [run["bits_per_byte"] - losses[run["seed"]] for run in arm["judged"]
                 if run["bits_per_byte"] is not None and losses.get(run["seed"]) is not None]}
        for arm in found["arms"]}
    return one.as_dict() | {"arms": arms, "timing": {"trial_seconds": found["timing"].get("trial_seconds")}}


def comparisons(forecasts: Sequence[Mapping[str, Any]], there: Mapping[str, Sequence[Point]]) -> list[dict[str, Any]]:
    """Return each written forecast of a rung beside what was measured at it later."""
    rows = []
    for made in forecasts:
        for at in made["at"]:
            if at["what"] != "held-out rung":
                continue
            for values in at["arms"]:
                measured = [p for p in there.get(values["arm"], ()) if p.parameters == at["parameters"]]
                if measured:
                    row = forecast.against(ArmForecast.from_dict(values), measured[0])
                    rows.append(row | {"forecast": made["file"], "before": made["before"], "verdict": values["verdict"],
                                       "measured_error": measured[0].error})
    return rows


def rates(plan: LadderPlan, finished: Sequence[Finished], carried: Carried | None, checked: Check | None
          ) -> list[dict[str, Any]]:
    """Return each arm's best rate: at the rungs that show one, as it was carried, and how far it moved."""
    if carried is None:
        return []
    shown = [(one, optima(found["arms"])) for one, found in finished if one.role in ("tuned", "checked")]
    rows = []
    for arm in plan.arms:
        if arm not in carried.at_base:
            continue
        at = []
        for one, there in shown:
            if (best := there.by_arm.get(arm)) is not None:
                low, high = best.interval(plan.rule["confidence"])
                at.append({"rung": one.name, "rate": best.rate, "low": low, "high": high})
        base = carried.at_base[arm]
        low, high = base.interval(plan.rule["confidence"])
        moved = checked.moved.get(arm) if checked else None
        rows.append({
            "arm": arm, "at": at, "rate": base.rate, "low": low, "high": high,
            "carried": {one.name: carried.to(one)[arm] for one, _ in plan.ordered() if not one.branches},
            "moved": None if moved is None else math.exp(moved[0]),
            "moved_error": None if moved is None else moved[1],
            "surely": bool(checked and moved and checked.surely(arm)),
            "cost_at_target": None if checked is None else checked.cost(arm, plan.target)})
    return rows


def notes(plan: LadderPlan, finished: Sequence[Finished], checked: Check | None) -> list[str]:
    """Return what is to be known beside the verdicts, a sentence each."""
    rungs = [one for one, _ in plan.ordered()]
    plain = [one for one in rungs if one.longer == 1]
    made = design.repeats(rungs, plan.data)
    top = max(one.parameters for one in plain)
    if plan.target <= top:
        made.append(f"The target lies inside the ladder, which goes up to {top:,} parameters: its verdicts are read "
                    "off between rungs.")
    for arm, where in diverged(finished).items():
        made.append(f"{arm} diverged at {', '.join(where)}: it has no difference there.")
    if checked is not None:
        made += rates_that_moved(plan, checked)
    return made + _longer(finished) + _changes(plan, horizon(plan, finished))


def rates_that_moved(plan: LadderPlan, checked: Check) -> list[str]:
    """Return what best rates that moved away from the carried ones mean for the differences and for the target."""
    moved = [arm for arm in checked.moved if checked.surely(arm)]
    if not moved:
        return []
    wider = max((checked.widening(plan.baseline, arm, plan.target) for arm in plan.arms if arm in checked.moved),
                default=0.0)
    meaning = (f"They moved more unlike than chance explains: the intervals are wider by up to {wider:.4f} at the "
               "target." if wider > 0.0 else "They moved alike within chance, which changes no difference.")
    cost = max(checked.cost(arm, plan.target) for arm in moved)
    tune = (f" At the target the carried rates would cost up to {cost:.2f} bits per byte: tune the rate there."
            if cost > plan.rule["margin"] else "")
    return [f"The best rates of {', '.join(moved)} moved away from the carried ones at the checked rung. "
            f"{meaning}{tune}"]


def _pairs(finished: Sequence[Finished]) -> list[tuple[design.Rung, Mapping[str, Any], Mapping[str, Any]]]:
    """Return each rung of longer horizon with its results, and those of the same model's shorter runs."""
    plain = {one.parameters: found for one, found in finished if one.longer == 1}
    return [(one, found, plain[one.parameters]) for one, found in finished
            if one.longer != 1 and one.parameters in plain]


def _each(found: Mapping[str, Any], baseline: str) -> dict[str, dict[int, float]]:
    """Return each arm's differences to the baseline by seed."""
    losses = {arm["name"]: {run["seed"]: run["bits_per_byte"] for run in arm["judged"]
                            if run["bits_per_byte"] is not None} for arm in found["arms"]}
    base = losses.get(baseline, {})
    return {arm: {seed: loss - base[seed] for seed, loss in own.items() if seed in base} for arm, own in losses.items()}


def horizon(plan: LadderPlan, finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """Return how each arm's difference changes with longer training: the mean over sizes of paired changes.

    Its interval is Student's, over the seeds of all sizes, and all arms' hold at once (Bonferroni's correction).
    """
    changes: dict[str, list[tuple[design.Rung, np.ndarray]]] = {}
    for one, long, short in _pairs(finished):
        after, before = _each(long, plan.baseline), _each(short, plan.baseline)
        for arm in after:
            both = sorted(after[arm].keys() & before.get(arm, {}).keys())
            if arm != plan.baseline and len(both) > 1:
                changes.setdefault(arm, []).append((one, np.array([after[arm][s] - before[arm][s] for s in both])))
    rows, level = [], (1 - plan.rule["confidence"]) / max(1, len(plan.arms) - 1)
    for arm, some in changes.items():
        mean = float(np.mean([values.mean() for _, values in some]))
        variance = math.fsum(float(values.var(ddof=1)) / len(values) for _, values in some) / len(some) ** 2
        half = -float(special.stdtrit(sum(len(values) - 1 for _, values in some), level / 2)) * math.sqrt(variance)
        rows.append({"arm": arm, "longer": some[0][0].longer, "mean": mean, "low": mean - half, "high": mean + half,
                     "sizes": [one.parameters for one, _ in some]})
    return rows


def _changes(plan: LadderPlan, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence on the arms whose difference surely depends on the horizon, which the forecast does not know of."""
    sure = [f"{row['arm']} {number(row['mean'], '+.3f')} ({interval(row['low'], row['high'], '+.3f')})" for row in rows
            if max(row["low"], -row["high"]) > 0 and abs(row["mean"]) > plan.rule["margin"]]
    return [f"With {rows[0]['longer']:g} times the tokens differences change: {', '.join(sure)}. The forecast is for "
            f"{plan.steady.tokens_per_parameter:g} tokens per parameter."] if sure else []


def _longer(finished: Sequence[Finished]) -> list[str]:
    """A sentence for each rung of longer horizon: its differences beside those of the shorter runs."""
    made = []
    for one, found, before in _pairs(finished):
        short = {arm["name"]: arm["difference"] for arm in before["arms"]}
        says = [f"{arm['name']} {number(arm['difference']['mean'], '+.3f')} "
                f"(before {number(short[arm['name']]['mean'], '+.3f')})"
                for arm in found["arms"] if arm["difference"] and short.get(arm["name"])]
        if says:
            made.append(f"{one.longer:g} times the tokens at {one.name.split('-')[0]}: {', '.join(says)}.")
    return made


def curves(plan: LadderPlan, there: Mapping[str, Sequence[Point]], widening: Widening | None) -> list[dict[str, Any]]:
    """Return the forms over sizes, from the smallest rung to the target, as all rungs make them: to draw."""
    sizes = sorted({p.parameters for rungs in there.values() for p in rungs})
    if len(sizes) < forecast.FEWEST_RUNGS:
        return []
    ends = math.log(min(sizes[0], plan.target)), math.log(1.02 * max(sizes[-1], plan.target))
    made = []
    for at in np.linspace(*ends, _DRAWN):
        size = math.exp(float(at))
        found = forecast.forecast(there, size, rule_of(plan), widening)
        made.append({"parameters": size, "arms": {arm: {
            "low": one.low, "high": one.high, "forms": {form.form: form.mean for form in one.forms},
            "rejected": [form.form for form in one.forms if form.rejected]} for arm, one in found.items()}})
    return made


def narrowing(plan: LadderPlan, there: Mapping[str, Sequence[Point]]) -> list[dict[str, Any]]:
    """Return what would narrow the intervals at the target, the most for its minutes first: seeds, or a rung above.

    "share" is the half width after it, of that before: the mean over arms.
    """
    known = {arm: list(rungs) for arm, rungs in there.items() if len(rungs) >= forecast.FEWEST_RUNGS}
    if not known:
        return []
    noise, rule, settings = noises(known), rule_of(plan), plan.steady
    count, options = len(plan.arms) - 1, []

    def after(change: Any, seeds: int) -> float:
        now = [forecast.half_width(rungs, noise[arm], plan.target, rule, count) for arm, rungs in known.items()]
        then = [forecast.half_width(change(rungs), noise[arm], plan.target, replace(rule, seeds=seeds), count)
                for arm, rungs in known.items()]
        return float(np.mean(np.array(then) / np.array(now)))

    for more in (1, 3, 6):
        seeds = settings.seeds + more
        share = after(lambda rungs, seeds=seeds: [replace(p, seeds=seeds) for p in rungs], seeds)
        cost = math.fsum(_minutes(plan, one) for one, _ in plan.ordered() if one.longer == 1) * more
        options.append({"what": f"{more} more seed{'s' * (more > 1)} at every rung", "minutes": cost, "share": share,
                        "option": f"--seeds {seeds}"})
    plain = sorted((one for one, _ in plan.ordered() if one.longer == 1), key=lambda one: one.parameters)
    for steps in (1, 2):
        above = _above(plan, plain[-1].parameters * _STEP_UP**steps)
        if above is None:
            continue
        share = after(lambda rungs, above=above: [*rungs, Point(above.parameters, 0.0, 0.0, settings.seeds)],
                      settings.seeds)
        sizes = ",".join(str(one.parameters) for one in [*plain, above])
        options.append({"what": f"a rung of {above.parameters:,} parameters",
                        "minutes": _minutes(plan, above) * settings.seeds, "share": share,
                        "option": f"--sizes {sizes}"})
    return sorted(options, key=lambda o: -(1 - o["share"]) / max(o["minutes"], 1e-9))


def _above(plan: LadderPlan, size: float) -> design.Rung | None:
    """Return a rung of about so many parameters; None where there is none."""
    try:
        one = plan.shapes.rung(size, "carried", plan.head_width, plan.steady)
    except UserError:
        return None
    return one if one.parameters <= design.LARGEST else None


def _minutes(plan: LadderPlan, one: design.Rung) -> float:
    """Return how long one seed of all arms takes at a rung, by the measured speeds."""
    return seconds_of(plan.timing)(one) * len(plan.arms) / plan.workers / 60


def seconds_of(timing: Mapping[str, Any]) -> design.Seconds:
    """Return how long a run of a rung takes, from speeds measured at several sizes: a line between their logarithms."""
    sizes = [math.log(row["parameters"]) for row in timing["speeds"]]
    speeds = [math.log(row["tokens_per_second"]) for row in timing["speeds"]]

    def seconds(one: design.Rung) -> float:
        at = math.log(one.parameters)
        if len(sizes) > 1 and at > sizes[-1]:  # beyond the largest, as from the one before to it
            along = (at - sizes[-1]) * (speeds[-1] - speeds[-2]) / (sizes[-1] - sizes[-2])
            speed = speeds[-1] + min(0.0, along)
        else:
            speed = float(np.interp(at, sizes, speeds))
        return timing["seconds_overhead"] + one.tokens * timing["mean_over_baseline"] / math.exp(speed)

    return seconds


def advice(plan: LadderPlan, verdicts: Sequence[Mapping[str, Any]], status: str) -> str:
    """Return one sentence on the target, no surer than the forecast is."""
    size = f"{plan.target:,.0f} parameters"
    if status != "complete":
        return f"No forecast for {size} yet: rungs are missing; give the same command again to continue."
    open_ = [v["arm"] for v in verdicts if v["verdict"] == "undecided"]
    best = min((v for v in verdicts if v["verdict"] == "better"), key=lambda v: v["mean"], default=None)
    if best is not None:
        return (f"At {size}: {best['arm']}, {-best['mean']:.3f} bits per byte better than {plan.baseline} "
                f"({percent(plan.rule['confidence'])} interval {-best['high']:.3f} to {-best['low']:.3f}).")
    if open_:
        return (f"At {size}: keep {plan.baseline}; none is forecast to be better, and {', '.join(open_)} "
                f"{'is' if len(open_) == 1 else 'are'} undecided.")
    return f"At {size}: keep {plan.baseline}; no other activation is forecast to be better."
