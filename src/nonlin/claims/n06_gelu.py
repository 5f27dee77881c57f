"""Claim 6: GELU makes smooth transitions and better gradient flow."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from nonlin.claims import draw
from nonlin.claims.definition import (
    NO,
    YES,
    Claim,
    Experiment,
    Found,
    Table,
    Verdict,
    above,
    combine,
    effects,
    experiment,
)
from nonlin.claims.n04_vanishing import DEPTHS, JUDGED, gradient_run

PAIR = ("relu", "gelu")
WIDTH, DEPTH, SAMPLES = 64, 6, 512
FLOW_MARGIN, NOISE_MARGIN, ZERO_MARGIN, NOISE_SEEDS = 0.1, 0.25, 0.05, 4  # decades, ln(noise / signal), share of zeros


def experiments(plan: Any) -> list[Experiment]:
    """The gradients of claim 4 for the pair, and their zeros and noise."""
    return [gradient_run(plan, name, "proper") for name in PAIR] + [
        experiment("n06_gelu", "noise", f"gradient noise, {name}", 1.0, activation=name,
                   seeds=[s + 100 * i for s in plan.seeds for i in range(NOISE_SEEDS)]) for name in PAIR]


def noise(config: dict[str, Any]) -> dict[str, Any]:
    """Return for each seed the share of derivatives that are zero, and ln(gradient noise / signal) over samples.

    Noise: the trace of the covariance, over samples, of the first layer's gradient; signal: its mean, squared.
    """
    import torch

    from nonlin.claims.networks import Networks, hard_functions, points, squared_error

    x = points(SAMPLES, config["seeds"][0])
    y = hard_functions(x)
    nets = Networks(config["activation"], 2, WIDTH, DEPTH, 3, config["seeds"])
    watch: list[Any] = []
    loss_R = squared_error(nets.forward(x, watch), y)
    delta_RNW = torch.autograd.grad(loss_R.sum(), watch[1][0])[0] * SAMPLES  # of each sample's own loss
    with torch.no_grad():
        h_RNW = nets.activation(watch[0][0])
        squares = delta_RNW.square().sum(-1) * h_RNW.square().sum(-1)
        mean_RWW = torch.einsum("rni,rnj->rij", h_RNW, delta_RNW) / SAMPLES
        signal = mean_RWW.square().sum((1, 2))
        ratio = ((squares.mean(1) - signal) / signal).log()
    leaves = [p[0].detach().requires_grad_() for p in watch]
    derivatives = torch.autograd.grad(sum(nets.activation(z).sum() for z in leaves), leaves)  # type: ignore[arg-type]
    zero = torch.stack([(s == 0).float().mean((1, 2)) for s in derivatives]).mean(0)
    return {"zero": zero.tolist(), "noise": ratio.tolist()}


EXPERIMENTS = {"noise": noise}


def measure(found: Found) -> dict[str, Any]:
    """Return both activations' smoothness, zeros, noise and flow, and the paired differences ReLU less GELU."""
    from nonlin.functions import get

    runs, rows = experiments(found.plan), {}
    for name, flow, other in zip(PAIR, runs[:2], runs[2:], strict=True):
        measured, about = found.record(other)["measured"], get(name).properties
        at = found.record(flow)["measured"]["by_depth"]
        rows[name] = {
            "smoothness": about.smoothness, "zero": measured["zero"], "noise": measured["noise"],
            "flow": [abs(v) for v in at[DEPTHS.index(JUDGED)]], "by_depth": [sum(d) / len(d) for d in at],
            "slope_square_mean": about.derivative_second_moment}
    less = {key: [a - b for a, b in zip(rows["relu"][key], rows["gelu"][key], strict=True)]
            for key in ("zero", "noise", "flow")}
    return {"activations": rows, "differences": effects(less), "each": less, "curves": _curves()}


def _curves() -> dict[str, Any]:
    import numpy as np

    from nonlin.functions import get
    from nonlin.functions.numeric import numeric

    x = np.round(np.linspace(-4, 4, 161), 3)
    return {"x": x.tolist(), **{f"{name}{order}": numeric(get(name), order)(x).tolist()
                                for name in PAIR for order in (0, 1, 2)}}


def decide(measures: Mapping[str, Any]) -> Verdict:
    """Apply the rule."""
    rows, less = measures["activations"], measures["differences"]
    smoother = rows["gelu"]["smoothness"] == "smooth" and rows["relu"]["smoothness"] != "smooth"
    parts = {"smooth": YES if smoother else NO, "fewer slopes of exactly zero": above(less["zero"], ZERO_MARGIN),
             "less gradient noise": above(less["noise"], NOISE_MARGIN),
             "gradient kept better through depth": above(less["flow"], FLOW_MARGIN)}
    zero = {n: sum(r["zero"]) / len(r["zero"]) for n, r in rows.items()}
    summary = (f"GELU is {rows['gelu']['smoothness']}, ReLU {rows['relu']['smoothness']}; derivatives of exactly zero: "
               f"{zero['gelu']:.0%} against {zero['relu']:.0%}; ln(noise/signal) is "
               f"{draw.span(less['noise'], '+.2f')} higher with ReLU; through {JUDGED} layers ReLU's gradient "
               f"strays by {_mean(rows['relu']['flow']):.2f} decades, GELU's by {_mean(rows['gelu']['flow']):.2f}.")
    return combine(parts, summary, "what is meant: " + "; ".join(f"{k}: {v}" for k, v in parts.items()))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def figure(measures: Mapping[str, Any]) -> Figure:
    """Draw the value and derivatives of both, and the gradient's ratio against depth."""
    made, panels = draw.figure(3.2, 4, width_ratios=(1, 1, 1, 1.5))
    curves = measures["curves"]
    for order, title in enumerate(("value", "derivative", "second derivative")):
        for name in PAIR:
            panels[order].plot(curves["x"], curves[f"{name}{order}"], color=draw.colour(name), label=name)
        panels[order].set_title(title)
    panels[0].legend(fontsize=8)
    for name in PAIR:
        panels[3].plot(DEPTHS, measures["activations"][name]["by_depth"], color=draw.colour(name),
                       marker=draw.marker(name))
    panels[3].axhline(0, color=draw.MUTED, lw=1)
    draw.plain_log(panels[3], "x")
    panels[3].set_xticks(DEPTHS, map(str, DEPTHS))
    panels[3].set_title("decades, first / last layer")
    panels[3].set_xlabel("hidden layers")
    return made


def table(measures: Mapping[str, Any]) -> Table:
    """Return each measure of both, and their differences."""
    rows, less = measures["activations"], measures["differences"]
    out = [["smoothness", rows["relu"]["smoothness"], rows["gelu"]["smoothness"], "–"]]
    for key, title in (("zero", "share of derivatives exactly zero"), ("noise", "ln(gradient noise / signal)"),
                       ("flow", f"|decades| at depth {JUDGED}")):
        out.append([title, *(f"{_mean(rows[n][key]):.3f}" for n in PAIR), draw.span(less[key])])
    out.append(["mean squared derivative, unit normal", *(f"{rows[n]['slope_square_mean']:.4f}" for n in PAIR), "–"])
    return ["measure", *PAIR, "ReLU less GELU (95 %, Holm)"], out


CLAIM = Claim(
    number=6, slug="gelu",
    statement="GELU makes smooth transitions and gives better gradient flow than ReLU.",
    background="ReLU has a kink at zero and a derivative of exactly zero to its left. GELU, x Φ(x), bends around and "
    "has a small derivative there, negative at first.",
    tested="Smoothness is read from the definitions by computer algebra. In networks with each activation's own "
    "initialization: the share of derivatives that are exactly zero, the noise of the first layer's gradient over "
    f"single samples relative to its mean ({DEPTH} layers), and how far the gradient grows or shrinks through {JUDGED} "
    "layers (claim 4's measure, growing and shrinking alike); 32 seeds for the first two, eight for the last.",
    rule=f"Four questions: is GELU smooth and ReLU not; are there fewer zero slopes (by more than {ZERO_MARGIN:.0%} "
    f"of units); is there less noise (ln of noise over signal lower by more than {NOISE_MARGIN:g}); is the gradient "
    f"kept better through depth (by more than {FLOW_MARGIN:g} decades)? Each is yes where the paired 95 % interval "
    "(Holm) leaves out zero on that side and the mean exceeds the margin, no where the interval ends below it. All "
    "yes: holds; all no: fails; both: depends; one undecided: not settled.",
    change="Normalization and residual connections make the flow through depth matter less. Claims 9 and 10 ask "
    "for the effect of smoothness on training.",
    caption="GELU's value and derivatives beside ReLU's (ReLU's second derivative is zero but for the kink), and how "
    "the gradient changes through depth: zero is perfect.",
    experiments=experiments, measure=measure, decide=decide, draw=figure, table=table)
