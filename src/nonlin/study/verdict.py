"""The rule that turns judged runs into verdicts; it is written into the plan before the first run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nonlin.errors import UserError, rule
from nonlin.numbers import number, percent
from nonlin.study import defaults, response, stages, statistics
from nonlin.study.needed import seeds_needed

#: Bits per byte by judged seed; None where the run diverged.
Runs = Mapping[int, float | None]


@dataclass(frozen=True)
class Verdict:
    """The study's answer about one arm; ``difference`` is arm − baseline in bits per byte: less is better."""

    verdict: str
    mean: float | None
    difference: dict[str, float] | None
    seeds_needed: int | None
    reason: str | None


def rule_text(margin: float, confidence: float, looks: Sequence[int]) -> str:
    """Return the rule in words; ``looks`` are the numbers of seeds at each look."""
    seeds, error = looks[-1], 100 * (1 - confidence)
    pairs = (f" Those found better are compared with each other by the same fit, corrected by Holm across their pairs: "
             f"at {error:g} % of error where every activation differs from the baseline, else at "
             f"{error * defaults.PAIRS_SHARE:g} %, which come on top.")
    return (
        "Each activation is compared with the baseline, each at its own best learning rate, by bits per byte on "
        "held-out text. Near its best rate an activation's loss is a parabola over the log of the rate. One model, of "
        "an effect of each seed, a level and a linear term of each activation and a common curvature, is fitted to "
        f"{seeds} judged seeds and to the tuning runs at the best rates, each seed counting once. The difference is "
        "that of the parabolas' least values; its standard error is the jackknife's over seeds, so that it covers the "
        "choice of the rate. "
        f"The test is Student's with {seeds - 1} degrees of freedom at {100 * confidence:g} % confidence, corrected by "
        "Holm across the activations, and an interval is that of its test. Better or worse: the interval lies wholly "
        f"on one side of zero and the measured difference exceeds {margin:g}. Tie: the interval lies within "
        f"±{margin:g}. Undecided: anything else. A judged run that diverges makes its activation worse; where runs of "
        "the baseline diverge too, undecided, unless all of them do and none of the activation's: then better."
        + pairs + _stages_text(error, looks))


def rule_sentence(rule_: Mapping[str, Any], baseline: str) -> str:
    """Return the rule in short, for a terminal: what the verdicts mean, and where all of it stands.

    >>> rule_sentence({"margin": 0.005, "confidence": 0.95}, "gelu")[:64]
    'better or worse than gelu: the 95 % interval of the difference ('
    """
    return (f"better or worse than {baseline}: the {percent(rule_['confidence'])} interval of the difference (by "
            f"Holm's method) leaves out 0, and the difference exceeds {rule_['margin']:g}. Tie: the interval lies "
            f"within ±{rule_['margin']:g}. Else undecided. All of the rule stands in plan.json.")


def _stages_text(error: float, looks: Sequence[int]) -> str:
    if len(looks) < 2:
        return ""
    spent = error * math.fsum(stages.shares(len(looks)))
    before = " and ".join(map(str, looks[:-1]))
    return (f" Seeds were added after looks at {before}: a test's level at {looks[-1]} seeds is such that all "
            f"looks together err in {spent:g} % (of one comparison alone, "
            f"{100 * stages.level(error / 100, looks):.2g} % in place of {error:g} %).")


def calibration_text() -> str:
    """Return the evidence behind the rule, in words: how often it was wrong where nothing differed."""
    return (f"The rule was tried on simulated studies without any difference: {_false(defaults.SIMULATED)}; and on "
            f"real ones of one activation under six names: {_false(defaults.AA_STUDIES)}. nonlin compare --aa N tries "
            "it on your own set-up.")


def _false(tried: Sequence[tuple[str, int, int]]) -> str:
    parts = []
    for world, studies, false in tried:
        low, high = (number(share, ".1%") for share in statistics.share_interval(false, studies))
        parts.append(f"{false} of {studies:,} had a false verdict ({world}; 95 % interval {low} to {high})")
    return "; ".join(parts)


def judge(rule_: Mapping[str, Any], runs: Mapping[str, Runs], baseline: str,
          responses: Mapping[str, Sequence[response.Run]] | None = None) -> dict[str, Verdict]:
    """Return the verdict of each arm by the rule {"margin", "confidence", "seeds", "method"}.

    With the method "response", ``responses`` has each arm's finished runs, those of tuning at the rates near its best
    among them (:mod:`nonlin.study.response`). Rules without a method, of older studies, take the paired differences of
    the judged runs as they are.

    While any arm has fewer judged runs than the rule's seeds, all are undecided whatever their numbers say. Looking
    early and stopping on a good look would find winners where there are none. Holm's correction needs every arm.

    >>> found = judge({"margin": 0.005, "confidence": 0.95, "seeds": 4}, {
    ...     "gelu": {1: 2.10, 2: 2.11, 3: 2.12, 4: 2.10}, "swiglu": {1: 2.05, 2: 2.06, 3: 2.08, 4: 2.05},
    ...     "twin": {1: 2.10, 2: 2.11, 3: 2.12, 4: 2.10}}, baseline="gelu")
    >>> {name: verdict.verdict for name, verdict in found.items()}
    {'gelu': 'baseline', 'swiglu': 'better', 'twin': 'tie'}
    """
    if baseline not in runs:
        raise UserError(rule("judge", "baseline", f"be one of the arms ({', '.join(runs)})", baseline,
                             "Name one of the arms."))
    effects = corrected(rule_, 1 - rule_["confidence"], _effects(rule_, runs, baseline, responses))
    return {arm: _verdict(rule_, arm, runs, baseline, effects.get(arm)) for arm in runs}


def _effects(rule_: Mapping[str, Any], runs: Mapping[str, Runs], baseline: str,
             responses: Mapping[str, Sequence[response.Run]] | None) -> dict[str, statistics.Effect | None]:
    """Return each arm's difference to the baseline; None where fewer than two pairs are there."""
    pairs = {arm: _differences(runs[arm], runs[baseline]) for arm in runs if arm != baseline}
    enough = [arm for arm, found in pairs.items() if len(found) >= 2]
    if rule_.get("method") == "response" and enough:
        assert responses is not None
        found = response.differences({arm: responses[arm] for arm in (baseline, *enough)}, baseline)
    else:
        found = {arm: statistics.paired_effect(pairs[arm]) for arm in enough}
    return {arm: found.get(arm) for arm in pairs}


@dataclass(frozen=True)
class Corrected:
    """An effect of a family of them: its interval at the level of its test, Holm's p-value, the error it may spend."""

    effect: statistics.Effect
    p_value: float
    error: float


def corrected(rule_: Mapping[str, Any], error: float, effects: Mapping[Any, statistics.Effect | None]
              ) -> dict[Any, Corrected]:
    """Return a family's effects by Holm's method at a family-wise error, those of earlier looks taken into account.

    One that cannot be tested stays in the family: how many arms diverged must not sharpen the others' test.
    """
    looks = rule_.get("looks") or [rule_["seeds"]]
    p_values = [stages.error_of(effect.p_value, looks) if effect else 1.0 for effect in effects.values()]
    errors = [1 - confidence for confidence in statistics.holm_confidences(p_values, 1 - error)]
    return {name: Corrected(statistics.effect_of(effect.mean, effect.standard_error, effect.seeds,
                                                 1 - stages.level(own, looks)), p_value, own)
            for (name, effect), own, p_value in zip(effects.items(), errors, statistics.holm(p_values), strict=True)
            if effect}


def _differences(runs: Runs, baseline: Runs) -> list[float]:
    both = ((runs[seed], baseline[seed]) for seed in sorted(set(runs) & set(baseline)))
    return [a - b for a, b in both if a is not None and b is not None]


def _verdict(rule_: Mapping[str, Any], arm: str, runs: Mapping[str, Runs], baseline: str,
             found: Corrected | None) -> Verdict:
    finished = [value for value in runs[arm].values() if value is not None]
    mean = math.fsum(finished) / len(finished) if finished else None
    difference = None if found is None else difference_of(found, rule_["confidence"])
    forced = _forced(rule_["seeds"], arm, runs, baseline)
    if forced is not None:
        return Verdict(forced[0], mean, difference, None, forced[1])
    assert found is not None  # complete runs have their pairs
    verdict, needed, reason = by_interval(rule_, found, 1 - rule_["confidence"])
    return Verdict(verdict, mean, difference, needed, reason)


def difference_of(found: Corrected, confidence: float) -> dict[str, float]:
    """Return an effect of a family of that confidence as the values of results.json."""
    effect = found.effect
    return {"mean": effect.mean, "low": effect.low, "high": effect.high, "confidence": confidence,
            "interval_confidence": effect.confidence, "p_value": found.p_value,
            "p_value_uncorrected": effect.p_value, "seeds": effect.seeds,
            "standard_error": effect.standard_error}


def _forced(seeds: int, arm: str, runs: Mapping[str, Runs], baseline: str) -> tuple[str, str | None] | None:
    """Return the verdict where the numbers do not decide: the baseline, missing runs, diverged runs."""
    lost, lost_baseline = (sum(v is None for v in runs[name].values()) for name in (arm, baseline))
    if arm == baseline:
        return "baseline", f"{lost} of {len(runs[arm])} judged runs diverged" if lost else None
    short = [name for name in (arm, baseline, *runs) if len(runs[name]) < seeds]
    if short:
        done = len(runs[short[0]])
        return "undecided", f"the study is not finished: {done} of {seeds} judged runs of {short[0]}"
    if lost and lost_baseline:
        return "undecided", f"judged runs diverged: {lost} of {arm}, {lost_baseline} of {baseline}"
    if lost:
        return "worse", f"{lost} of {seeds} judged runs diverged"
    if lost_baseline == seeds:
        return "better", f"every judged run of {baseline} diverged, none of this"
    if lost_baseline:
        return "undecided", (f"{lost_baseline} of {seeds} judged runs of {baseline} diverged: "
                             "take another baseline")
    return None


def by_interval(rule_: Mapping[str, Any], found: Corrected, error: float) -> tuple[str, int | None, str | None]:
    """Return (verdict, seeds needed, reason) of an effect of a family with that error."""
    margin, effect = rule_["margin"], found.effect
    if -margin <= effect.low and effect.high <= margin:
        return "tie", None, None
    # The p-value says what the interval does (see holm_confidences), without rounding at the edge.
    if found.p_value <= error and abs(effect.mean) > margin:
        return "better" if effect.mean < 0 else "worse", None, None
    looks = rule_.get("looks") or [rule_["seeds"]]
    needed = seeds_needed(effect, margin, found.error, looks, defaults.POWER)
    if needed is None:
        return "undecided", None, "more seeds than a study may have would be needed to decide it"
    chance = percent(defaults.POWER)
    return "undecided", needed, f"about {needed} seeds in all would decide it, with a chance of {chance}"
