"""Claim 7: SiLU is smooth, non-monotonic and more expressive than GELU."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from nonlin.claims import draw
from nonlin.claims.definition import (
    DEPENDS,
    FAILS,
    HOLDS,
    NO,
    OPEN,
    UNSURE,
    YES,
    Claim,
    Experiment,
    Found,
    Table,
    Verdict,
    effects,
    experiment,
)

ACTIVATIONS = ("silu", "gelu", "relu")
RATES = (2e-3, 5e-3, 1.2e-2, 3e-2)
WIDTHS, DEPTH, STEPS = (16, 64), 2, 400
MARGIN = 0.05  # of ln(error)


def experiments(plan: Any) -> list[Experiment]:
    """One run per activation and width: all rates and seeds at once."""
    steps = STEPS // 2 if plan.short else STEPS
    return [experiment("n07_silu", "fits", f"fits, {name}, width {width}", 4.0 if width < 32 else 8.0,
                       activation=name, width=width, seeds=plan.seeds, steps=steps, engine=plan.machine["engine"])
            for name in ACTIVATIONS for width in WIDTHS]


def fits(config: dict[str, Any]) -> dict[str, Any]:
    """Return ln(relative error), the mean over functions, by rate and seed after training."""
    import torch

    from nonlin.claims.networks import (
        Networks,
        finite_values,
        hard_functions,
        points,
        relative_errors,
        squared_error,
        train,
    )

    seeds = config["seeds"]
    replicas = [(rate, seed) for rate in RATES for seed in seeds]
    nets = Networks(config["activation"], 2, config["width"], DEPTH, 3, [s for _, s in replicas],
                    engine=config["engine"])
    x, held = points(2048, seeds[0]), points(2048, seeds[0] + 500)
    train(nets, x, hard_functions(x), [r for r, _ in replicas], config["steps"], 128, seeds[0], squared_error)
    with torch.no_grad():
        errors = relative_errors(nets.forward(held), hard_functions(held))
    return finite_values({"log_error": errors.log().mean(1).view(len(RATES), len(seeds))})


EXPERIMENTS = {"fits": fits}


def judged(by_rate: list[list[float | None]]) -> list[float]:
    """Return each seed's value at the rate that is best for all other seeds: chosen without looking at it."""
    def total(rate: int, left_out: int) -> float:
        others = [v for i, v in enumerate(by_rate[rate]) if i != left_out]
        return math.inf if None in others else sum(others)  # type: ignore[arg-type]

    found = []
    for seed in range(len(by_rate[0])):
        value = by_rate[min(range(len(by_rate)), key=lambda r: total(r, seed))][seed]
        found.append(math.inf if value is None else value)
    return found


def measure(found: Found) -> dict[str, Any]:
    """Return the computed facts of SiLU and GELU, the errors, and the paired differences to GELU's."""
    from nonlin.functions import get

    errors: dict[str, dict[str, list[float]]] = {}
    for run in experiments(found.plan):
        config = run.config
        errors.setdefault(str(config["width"]), {})[config["activation"]] = judged(
            found.record(run)["measured"]["log_error"])
    less = {f"width {w}": [a - b for a, b in zip(rows["silu"], rows["gelu"], strict=True)]
            for w, rows in errors.items()}
    facts = {name: get(name).properties for name in ACTIVATIONS}
    about = {name: {"smoothness": p.smoothness, "monotonic": p.monotonic, "minimum": p.minimum}
             for name, p in facts.items()}
    return {"properties": about, "log_errors": errors, "differences": effects(less), "each": less}


def decide(measures: Mapping[str, Any]) -> Verdict:
    """Apply the rule."""
    silu, gelu = measures["properties"]["silu"], measures["properties"]["gelu"]
    parts = {"smooth": YES if silu["smoothness"] == "smooth" else NO,
             "non-monotonic": NO if silu["monotonic"] else YES}
    for name, effect in measures["differences"].items():
        better = effect["high"] < 0 and effect["mean"] < -MARGIN
        parts[f"fits better, {name}"] = YES if better else NO if effect["low"] > -MARGIN else UNSURE
    found = ", ".join(f"{100 * math.expm1(e['mean']):+.0f} % ({100 * math.expm1(e['low']):+.0f} to "
                      f"{100 * math.expm1(e['high']):+.0f}) at {name}" for name, e in measures["differences"].items())
    at = silu["minimum"] or (math.nan, math.nan)
    shared = "" if gelu["monotonic"] else "; so does GELU"
    summary = (f"SiLU is {silu['smoothness']} and falls to {at[1]:.3f} at {at[0]:.3f}{shared}. Its error after "
               f"training, against GELU's: {found}.")
    facts, fits_ = list(parts.values())[:2], list(parts.values())[2:]
    if UNSURE in fits_:
        return Verdict(OPEN, summary, None, parts)
    if NO in facts or set(fits_) == {NO}:
        return Verdict(FAILS, summary, None, parts)
    if set(fits_) == {YES}:
        return Verdict(HOLDS, summary, None, parts)
    return Verdict(DEPENDS, summary, "the width", parts)


def figure(measures: Mapping[str, Any]) -> Figure:
    """Errors of every seed at both widths, and the paired differences."""
    made, (left, right) = draw.figure(3.2, 2, width_ratios=(1, 1.2))
    for name in ACTIVATIONS:
        means = []
        for width, rows in measures["log_errors"].items():
            values = [math.exp(v) for v in rows[name]]
            left.plot([int(width)] * len(values), values, "o", ms=4, alpha=0.4, color=draw.colour(name), mec="none")
            means.append((int(width), math.exp(sum(rows[name]) / len(rows[name]))))
        left.plot(*zip(*means, strict=True), color=draw.colour(name), marker=draw.marker(name), label=name)
    draw.plain_log(left, "x")
    left.set_xticks(WIDTHS, map(str, WIDTHS))
    left.set_xlabel("units in each of two layers")
    left.set_title("error / spread of the function")
    left.set_ylim(bottom=0)
    left.legend(fontsize=8)
    draw.intervals(right, measures["differences"], dict.fromkeys(measures["differences"], draw.colour("silu")), MARGIN,
                   measures["each"])
    right.set_xlabel("ln(error), SiLU less GELU   (left of zero: SiLU fits better)")
    right.legend(fontsize=8)
    return made


def table(measures: Mapping[str, Any]) -> Table:
    """Errors by width, and the paired differences."""
    rows = [[name, *(f"{math.exp(sum(r[name]) / len(r[name])):.4f}" for r in measures["log_errors"].values())]
            for name in ACTIVATIONS]
    rows.append(["ln error, SiLU less GELU", *(draw.span(e) for e in measures["differences"].values())])
    return ["activation", *(f"width {w}" for w in measures["log_errors"])], rows


CLAIM = Claim(
    number=7, slug="silu",
    statement="SiLU is smooth, non-monotonic and more expressive than GELU.",
    background="SiLU, x σ(x), looks much like GELU, x Φ(x): both follow ReLU far out and dip below zero to the left "
    "of it.",
    tested="Smoothness and the minimum are computed from the definitions. Expressiveness is how well a network of a "
    f"given width fits: {DEPTH} layers of {WIDTHS[0]} or {WIDTHS[1]} units are trained on three curved functions of "
    "two variables at four learning rates and eight seeds; each seed is judged at the rate that the other seven "
    "found best.",
    rule="SiLU fits better where the paired 95 % interval (Holm) of ln(error), SiLU less GELU, lies below zero and "
    f"its mean below -{MARGIN:g}; it does not where the interval lies above -{MARGIN:g}. The claim holds if SiLU is "
    "smooth, non-monotonic and fits better at both widths; fails if one of the two facts is wrong or it fits better "
    "at neither; depends on the width if at one; is not settled if one is undecided.",
    change="On functions with sharper or flatter features the steeper or the gentler of the two wins; scaling the "
    "weights by 1.7 turns one nearly into the other.",
    caption="Left: every seed's error after training. Right: SiLU's less GELU's on the same seed.",
    experiments=experiments, measure=measure, decide=decide, draw=figure, table=table)
