"""Claim 2: with activations a network can approximate any function."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from nonlin.claims import draw
from nonlin.claims.definition import DEPENDS, FAILS, HOLDS, OPEN, Claim, Experiment, Found, Table, Verdict, experiment
from nonlin.functions import get
from nonlin.functions.catalog import CATALOG

WIDTHS = (4, 8, 16, 32, 64, 128, 256)
FROM, LINE = 16, 0.75
POINTS, RIDGE = 1600, 1e-7


def experiments(plan: Any) -> list[Experiment]:
    """One run per activation that has a formula of its own input."""
    seeds = plan.seeds[:3] if plan.short else plan.seeds[:5]
    return [experiment("n02_approximation", "errors", f"approximation, {d.name}", 0.6, activation=d.name,
                       seeds=seeds) for d in CATALOG if d.expr is not None]


def errors(config: dict[str, Any]) -> dict[str, Any]:
    """Return the relative error by seed, width and function: hidden weights random, output weights by least squares.

    Each hidden unit has a steepness of its own, log-uniform from 1 to 10.
    """
    import torch

    from nonlin.claims.networks import hard_functions, points, relative_errors
    from nonlin.functional import activation

    name = config["activation"]
    function, gates = activation(name), 2 if get(name).gated else 1
    found = []
    for seed in config["seeds"]:
        random = torch.Generator().manual_seed(seed)
        train, test = points(POINTS, seed, torch.float64), points(POINTS, seed + 500, torch.float64)
        inputs = []
        for _ in range(gates):
            steep = 10 ** torch.rand(1, WIDTHS[-1], generator=random, dtype=torch.float64)
            turn = torch.randn(2, WIDTHS[-1], generator=random, dtype=torch.float64)
            shift = 2 * torch.rand(1, WIDTHS[-1], generator=random, dtype=torch.float64) - 1
            inputs.append((steep * turn, steep * shift))

        def features(x: Any, width: int, inputs: list[Any] = inputs) -> Any:
            hidden = function(*((x @ w[:, :width]) + b[:, :width] for w, b in inputs))
            return torch.cat([hidden, x.new_ones(len(x), 1)], dim=1)

        by_width = []
        for width in WIDTHS:
            phi = features(train, width)
            scale = phi.square().mean(0).sqrt().clamp_min(1e-12)
            phi = phi / scale
            normal = phi.T @ phi / len(train) + RIDGE * torch.eye(width + 1, dtype=torch.float64)
            weights = torch.linalg.solve(normal, phi.T @ hard_functions(train) / len(train))
            fitted = features(test, width) / scale @ weights
            by_width.append(relative_errors(fitted[None], hard_functions(test))[0].tolist())
        found.append(by_width)
    return {"errors": found}


EXPERIMENTS = {"errors": errors}


def measure(found: Found) -> dict[str, Any]:
    """Return by activation the error at each width (geometric mean of functions), and its fall for each seed."""
    import numpy as np

    rows = {}
    for run in experiments(found.plan):
        log_SWF = np.log(np.array(found.record(run)["measured"]["errors"], dtype=float))
        log_SW = log_SWF.mean(axis=2)
        falls = np.exp(log_SW[:, -1] - log_SW[:, WIDTHS.index(FROM)])
        rows[run.config["activation"]] = {
            "errors": np.exp(log_SW.mean(axis=0)).tolist(), "falls": falls.tolist(),
            "by_function": np.exp(log_SWF.mean(axis=0))[-1].tolist(),
            "polynomial": _polynomial(run.config["activation"])}
    return {"widths": list(WIDTHS), "activations": rows}


def _polynomial(name: str) -> bool:
    definition = get(name)
    return definition.expr is not None and bool(definition.expr.is_polynomial())


def improves(falls: list[float]) -> bool | None:
    """Return whether the error keeps falling with width: for every seed, for no seed, or None where they disagree."""
    return True if max(falls) < LINE else False if min(falls) > LINE else None


def decide(measures: Mapping[str, Any]) -> Verdict:
    """Apply the rule."""
    rows = measures["activations"]
    good = [n for n, r in rows.items() if improves(r["falls"])]
    bad = [n for n, r in rows.items() if improves(r["falls"]) is False]
    open_ = [n for n in rows if n not in good and n not in bad]
    best = min(good, key=lambda n: rows[n]["errors"][-1], default=None)
    summary = (f"The error keeps falling with width for {len(good)} of {len(rows)} activations"
               + (f" (at {WIDTHS[-1]} units least with {best}: {rows[best]['errors'][-1]:.2f} of the functions' own "
                  "spread)" if best else "")
               + (f"; it stops for {' and '.join(bad)}" if bad else "")
               + (f"; unclear for {', '.join(open_)}" if open_ else "") + ".")
    if open_ or "identity" not in bad:
        return Verdict(OPEN if open_ else FAILS, summary)
    others = [n for n in bad if n != "identity"]
    if not others:
        return Verdict(HOLDS, summary)
    if len(others) > len(good):
        return Verdict(FAILS, summary)
    polynomials = [n for n in others if rows[n]["polynomial"]]
    rest = [n for n in others if n not in polynomials]
    why = [f"it must not be a polynomial ({', '.join(polynomials)} is)"] if polynomials else []
    why += [f"{', '.join(rest)} cannot with one such layer"] if rest else []
    return Verdict(DEPENDS, summary, "the activation: " + "; ".join(why))


def figure(measures: Mapping[str, Any]) -> Figure:
    """Error against width: every activation grey, the well-known ones in colour."""
    made, axes = draw.figure(3.9)
    shown = ("identity", "bilinear", "relu", "gelu", "silu", "tanh", "sigmoid", "swiglu", "relu_squared")
    for name, row in measures["activations"].items():
        if name not in shown:
            axes.plot(measures["widths"], row["errors"], color="#7f7f7f", lw=0.7, alpha=0.45)
    for name in shown:
        row = measures["activations"].get(name)
        if row:
            axes.plot(measures["widths"], row["errors"], color=draw.colour(name), marker=draw.marker(name), label=name)
    draw.plain_log(axes)
    axes.set_xticks(measures["widths"], map(str, measures["widths"]))
    axes.set_yticks([0.1, 0.2, 0.3, 0.5, 0.7, 1.0], ["0.1", "0.2", "0.3", "0.5", "0.7", "1"])
    axes.set_xlabel("hidden units")
    axes.set_ylabel("error / spread of the function")
    axes.legend(fontsize=8, ncols=3)
    return made


def table(measures: Mapping[str, Any]) -> Table:
    """Every activation's error at every width."""
    rows = [[name, *(f"{v:.3f}" for v in row["errors"]), f"{sum(row['falls']) / len(row['falls']):.2f}"]
            for name, row in measures["activations"].items()]
    return ["activation", *map(str, measures["widths"]), f"{WIDTHS[-1]} against {FROM}"], rows


CLAIM = Claim(
    number=2, slug="approximation",
    statement="With activations a network can approximate any function.",
    background="The universal approximation theorem: one hidden layer is enough if it is wide enough, for every "
    "continuous function, as long as the activation is not a polynomial.",
    tested="Three functions on a square that a straight line cannot follow: a wave, a jump, and two narrow hills. One "
    f"hidden layer of 4 to {WIDTHS[-1]} units with random weights; only the output weights are fitted, exactly, by "
    f"least squares on {POINTS} points and judged on {POINTS} others. That is less than training can reach, so that "
    "an error that falls here is a proof that width helps. Every activation of the catalog that is a function of one "
    "unit's own inputs, five seeds.",
    rule=f"The error at {WIDTHS[-1]} units over that at {FROM}, the three functions' geometric mean: below {LINE} for "
    "every seed is 'keeps falling', above it for every seed is 'stops', anything else unclear. The claim holds if "
    "identity stops and everything else keeps falling; it depends if a minority of activations stops too; it fails "
    "if identity does not stop or most others do; it is not settled if any is unclear.",
    change="Deeper networks approximate with polynomials too, since a product of polynomials has a higher degree; and "
    "being able to approximate says nothing about being found by training.",
    caption="Error against width; grey lines are the other activations of the catalog. A polynomial of degree one "
    "(identity) or two (bilinear) has learned all it can at a handful of units.",
    experiments=experiments, measure=measure, decide=decide, draw=figure, table=table)
