"""The forecast of each activation's difference to the baseline at a size that no rung has.

Differences are forecast, not losses. The effects that all arms share (of the text, the recipe, the seed) cancel in
them, and so does the part of a law of scaling that is hardest to extrapolate.

1. Every form of :mod:`nonlin.ladder.forms` is fitted to the rungs. One that the rungs reject at 1 % is set aside,
   unless they reject all. A form that fits worse than its seeds say gets a wider interval.
2. Each form's interval is Student's, for the mean that as many seeds as a rung has would show at that size. It covers
   the fit, the noise of the seeds measured there, and nothing else.
3. The forecast's interval is the hull of the accepted forms' intervals, so that it covers the choice of the form. It is
   widened by what a best learning rate that moves away from the carried one costs (:mod:`nonlin.ladder.rates`).
4. All intervals of a forecast hold at once with the stated confidence (Bonferroni's correction over the arms).
5. Better, worse, tie or undecided follow from the interval, as in a study. Beyond ten times the compute of the largest
   rung, or below a tenth of the smallest, every form must agree, the rejected ones too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from scipy import special

from nonlin.ladder.forms import FORMS, Fit, Noise, Point, fits, noises
from nonlin.numbers import percent

FEWEST_RUNGS = 3
REACH = 10.0  # times the largest rung's compute
_SHARE_OF_COMPUTE = 2.0  # compute is proportional to this power of the parameters at fixed tokens per parameter

#: By arm and size, what an optimum that moved may cost at that size, in bits per byte.
Widening = Callable[[str, float], float]


@dataclass(frozen=True)
class Rule:
    """How forecasts are judged: the margin in bits per byte, the confidence, the seeds of a rung."""

    margin: float
    confidence: float
    seeds: int


@dataclass(frozen=True)
class FormForecast:
    """One form's say: its mean and interval in bits per byte, and the verdict by it alone."""

    form: str
    mean: float
    low: float
    high: float
    verdict: str
    rejected: bool


@dataclass(frozen=True)
class ArmForecast:
    """What is forecast of one arm: arm − baseline in bits per byte, below zero is better.

    ``low`` to ``high`` is the interval for the mean of a rung of as many seeds. ``widening`` is the part of its half
    width that stands for learning rates. ``mean`` is None where too few rungs are there; ``reason`` says so.
    """

    arm: str
    mean: float | None
    low: float | None
    high: float | None
    verdict: str
    reason: str | None = None
    widening: float = 0.0
    noise: float | None = None
    forms: tuple[FormForecast, ...] = ()

    def holds(self, value: float) -> bool:
        """Whether the interval holds a value; no interval holds none."""
        return self.low is not None and self.high is not None and bool(self.low <= value <= self.high)

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def as_dict(self) -> dict[str, Any]:
        """Return the forecast as JSON values."""
        return asdict(self) | {"forms": [asdict(form) for form in self.forms]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ArmForecast":
        """Return the forecast of :meth:`as_dict`."""
        return cls(**{**values, "forms": tuple(FormForecast(**form) for form in values["forms"])})


def decide(mean: float, low: float, high: float, margin: float) -> str:
    """Return the verdict by an interval.

    >>> decide(-0.02, -0.03, -0.01, 0.005), decide(0.0, -0.004, 0.004, 0.005), decide(0.01, -0.01, 0.03, 0.005)
    ('better', 'tie', 'undecided')
    """
    if -margin <= low and high <= margin:
        return "tie"
    if high < 0 and mean < -margin:
        return "better"
    return "worse" if low > 0 and mean > margin else "undecided"


def compute_ratio(size: float, other: float) -> float:
    """Return the compute of a size over that of another, at fixed tokens per parameter."""
    return (size / other) ** _SHARE_OF_COMPUTE


def forecast(points: Mapping[str, Sequence[Point]], size: float, rule: Rule, widening: Widening | None = None,
             fewest: int = FEWEST_RUNGS) -> dict[str, ArmForecast]:
    """Return the forecast of each arm's difference at ``size`` parameters, by arm.

    ``points``: each arm's differences at the rungs that it trained at, the held-out rung left out.

    >>> rungs = [Point(size, -0.04, 0.002, 3) for size in (5e4, 1e5, 2e5, 4e5)]
    >>> found = forecast({"swiglu": rungs}, 8e5, Rule(0.005, 0.95, 3))["swiglu"]
    >>> found.verdict, round(found.mean, 2)
    ('better', -0.04)
    """
    enough = {arm: list(rungs) for arm, rungs in points.items() if len(rungs) >= fewest}
    noise = noises(enough) if enough else {}
    fitted = fits(enough, noise, size) if enough else {}
    level = 1 - (1 - rule.confidence) / max(1, len(points))
    made = {}
    for arm in points:
        if arm not in enough:
            made[arm] = ArmForecast(arm, None, None, None, "undecided",
                                    f"a forecast needs {fewest} rungs; {len(points[arm])} can be compared")
            continue
        extra = widening(arm, size) if widening else 0.0
        made[arm] = _arm(arm, fitted[arm], noise[arm], enough[arm], size, level, rule, extra)
    return made


def _arm(arm: str, fitted: Sequence[Fit], noise: Noise, rungs: Sequence[Point], size: float, level: float, rule: Rule,
         widening: float) -> ArmForecast:
    at_size = noise.variance(size, rule.seeds)
    quantile = -float(special.stdtrit(noise.freedom, (1 - level) / 2))
    forms, errors = [], []
    for fit in fitted:
        error = math.sqrt(fit.error**2 + at_size)
        half = quantile * error + widening
        forms.append(FormForecast(fit.form, fit.mean, fit.mean - half, fit.mean + half,
                                  decide(fit.mean, fit.mean - half, fit.mean + half, rule.margin), fit.rejected))
        errors.append(error)
    taken = [i for i, form in enumerate(forms) if not form.rejected] or list(range(len(forms)))
    weights = [1 / max(errors[i], 1e-12) ** 2 for i in taken]
    mean = math.fsum(w * forms[i].mean for w, i in zip(weights, taken, strict=True)) / math.fsum(weights)
    low, high = min(forms[i].low for i in taken), max(forms[i].high for i in taken)
    verdict, reason = decide(mean, low, high, rule.margin), None
    if outside(size, rungs):
        verdict, reason = _agreed(forms, verdict, size, rungs)
    elif verdict == "undecided":
        reason = "the interval holds more than one answer"
    return ArmForecast(arm, mean, low, high, verdict, reason, widening, math.sqrt(at_size * rule.seeds), tuple(forms))


def outside(size: float, rungs: Sequence[Point]) -> bool:
    """Whether a size lies beyond ten times the compute of the largest rung, or below a tenth of the smallest's."""
    return (compute_ratio(size, max(p.parameters for p in rungs)) > REACH
            or compute_ratio(min(p.parameters for p in rungs), size) > REACH)


def _agreed(forms: Sequence[FormForecast], verdict: str, size: float, rungs: Sequence[Point]) -> tuple[str, str | None]:
    largest, least = max(p.parameters for p in rungs), min(p.parameters for p in rungs)
    far = (f"{compute_ratio(size, largest):,.0f} times the compute of the largest rung" if size > largest else
           f"1/{compute_ratio(least, size):,.0f} of the compute of the smallest rung")
    if all(form.verdict == verdict != "undecided" for form in forms):
        return verdict, f"{far}, and every form agrees"
    if all(form.verdict == "undecided" for form in forms):
        return "undecided", f"{far}, and no form decides it"
    says = ", ".join(f"{form.form} {form.verdict}" for form in forms)
    return "undecided", f"{far}, and the forms do not agree: {says}"


def leave_one_out(points: Mapping[str, Sequence[Point]], rule: Rule, widening: Widening | None = None
                  ) -> list[dict[str, Any]]:
    """Return how the rungs forecast each of themselves that is left out: one for each arm and rung.

    "measured" less "mean" is "error" in bits per byte; "covered" says whether the interval holds what was measured.
    """
    rows = []
    for size in sorted({p.parameters for rungs in points.values() for p in rungs}):
        others = {arm: [p for p in rungs if p.parameters != size] for arm, rungs in points.items()}
        others = {arm: rungs for arm, rungs in others.items() if len(rungs) >= FEWEST_RUNGS - 1}
        if not others:
            continue
        made = forecast(others, size, rule, widening, FEWEST_RUNGS - 1)
        for arm in others:
            there = [p for p in points[arm] if p.parameters == size]
            rows += [against(made[arm], there[0])] if there else []
    return rows


def against(made: ArmForecast, measured: Point) -> dict[str, Any]:
    """Return a forecast beside what was measured at its size."""
    return {"arm": made.arm, "parameters": measured.parameters, "measured": measured.mean, "mean": made.mean,
            "low": made.low, "high": made.high, "error": None if made.mean is None else measured.mean - made.mean,
            "covered": None if made.mean is None else made.holds(measured.mean)}


def half_width(rungs: Sequence[Point], noise: Noise, size: float, rule: Rule, arms: int) -> float:
    """Return the half width of the widest form's interval at a size, as these rungs' seeds would make it.

    It asks what more rungs or seeds would be worth: their means do not matter, their noise is that of the others.
    """
    flat = [replace(p, mean=0.0, error=math.sqrt(noise.variance(p.parameters, p.seeds))) for p in rungs]
    freedom = sum(p.seeds - 1 for p in rungs)
    widest = max(fits({"arm": flat}, {"arm": replace(noise, freedom=freedom)}, size)["arm"], key=lambda f: f.error)
    error = math.sqrt(widest.error**2 + noise.variance(size, rule.seeds))
    return -float(special.stdtrit(freedom, (1 - rule.confidence) / arms / 2)) * error


def sentence(margin: float, confidence: float, baseline: str) -> str:
    """Return the rule in short, for a terminal: what is forecast, what the verdicts mean, where all of it stands."""
    return (f"three forms carry the difference to {baseline} to the target; its interval, at {percent(confidence)} for "
            "all together, covers those that the rungs allow. Better or worse: it leaves out 0, and the difference "
            f"exceeds {margin:g}. Tie: it lies within ±{margin:g}. Else undecided. All of the rule stands in "
            "plan.json.")


def text() -> str:
    """Return the rule of the forecast in words."""
    return (
        "Differences to the baseline are forecast by three forms over the parameters without embeddings: "
        f"{', '.join(FORMS[:-1])}, and {FORMS[-1]} (a constant and a power law). Exponents are shared by all "
        "activations. A form that the rungs reject at 1 % is set aside. The interval is the hull of the others' "
        "intervals for the mean of a rung of as many seeds. It is widened by the cost of best learning rates that "
        "moved; with Bonferroni's correction all intervals hold at once. Better or worse: the interval lies on one "
        "side of zero and the mean exceeds the margin. Tie: the interval lies within the margin. Beyond ten times the "
        "compute of the largest rung all forms must agree.")
