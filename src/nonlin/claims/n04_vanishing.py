"""Claim 4: sigmoid and tanh suffer vanishing gradients with depth; ReLU mitigated it."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from nonlin.claims import draw
from nonlin.claims.definition import (
    NO,
    UNSURE,
    YES,
    Claim,
    Experiment,
    Found,
    Table,
    Verdict,
    combine,
    effects,
    experiment,
)

DEPTHS = (2, 4, 8, 16, 32, 64)
ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu", "gelu", "silu", "selu")
GAINS = {"common": 1.0, "proper": None}
WIDTH, JUDGED, TRAINED_DEPTH, TRAIN_STEPS = 64, 32, 16, 150
VANISHED = -3.0  # decades from the last layer to the first


def gradient_run(plan: Any, activation: str, gain: str) -> Experiment:
    """Return the run that measures gradients by depth; claim 6 reads it too."""
    steps = TRAIN_STEPS // 2 if plan.short else TRAIN_STEPS
    return experiment("n04_vanishing", "gradients", f"gradients, {activation}, {gain} gain", 3.0,
                      activation=activation, gain=GAINS[gain], seeds=plan.seeds, steps=steps,
                      engine=plan.machine["engine"])


def experiments(plan: Any) -> list[Experiment]:
    """One run per activation and initialization."""
    return [gradient_run(plan, name, gain) for name in ACTIVATIONS for gain in GAINS]


def _decades(nets: Any, x: Any, y: Any) -> Any:
    """log10 of the gradient's root mean square at each hidden layer's input, by replica: (layers, R)."""
    import torch

    from nonlin.claims.networks import squared_error

    watch: list[Any] = []
    loss = squared_error(nets.forward(x, watch), y).sum()
    gradients = torch.autograd.grad(loss, [parts[0] for parts in watch])
    return torch.stack([g.double().square().flatten(1).mean(1).sqrt().clamp_min(1e-40).log10() for g in gradients])


def gradients(config: dict[str, Any]) -> dict[str, Any]:
    """Return decades from the last hidden layer's gradient to the first's: by depth at the start, and trained."""
    import torch

    from nonlin.claims.networks import Networks, finite_values, hard_functions, points, squared_error, train

    seeds = config["seeds"]
    features = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seeds[0]))
    x2 = points(512, seeds[0])
    x, y = torch.cos(3 * x2 @ features) * math.sqrt(2), hard_functions(x2)  # unit variance, as wide as the layers

    def make(depth: int) -> Any:
        return Networks(config["activation"], WIDTH, WIDTH, depth, 3, seeds, config["gain"], engine=config["engine"],
                        bias=False)

    by_depth = []
    for depth in DEPTHS:
        layers_LR = _decades(make(depth), x[:128], y[:128])
        by_depth.append((layers_LR[0] - layers_LR[-1]).tolist())
        if depth == JUDGED:
            profile = (layers_LR - layers_LR[-1]).mean(1).tolist()
    nets = make(TRAINED_DEPTH)
    train(nets, x, y, [1e-3] * len(seeds), config["steps"], 64, seeds[0], squared_error)
    layers_LR = _decades(nets, x[:128], y[:128])
    with torch.no_grad():
        loss = squared_error(nets.forward(x), y) / y.var(0, correction=0).mean()
    return finite_values({"by_depth": by_depth, "profile": profile, "trained": layers_LR[0] - layers_LR[-1],
                          "loss": loss})


EXPERIMENTS = {"gradients": gradients}


def measure(found: Found) -> dict[str, Any]:
    """Return each activation's decades under both initializations, with intervals at the judged depth."""
    rows: dict[str, Any] = {gain: {} for gain in GAINS}
    for gain in GAINS:
        each = {name: found.record(gradient_run(found.plan, name, gain))["measured"] for name in ACTIVATIONS}
        at = effects({name: m["by_depth"][DEPTHS.index(JUDGED)] for name, m in each.items()})
        for name, m in each.items():
            rows[gain][name] = {
                "decades": [sum(d) / len(d) for d in m["by_depth"]], "at": at[name], "profile": m["profile"],
                "trained": sum(m["trained"]) / len(m["trained"]), "loss": sum(m["loss"]) / len(m["loss"])}
    return {"depths": list(DEPTHS), "gains": rows}


def vanishes(effect: Mapping[str, float]) -> str:
    """Return whether the interval of decades lies below the limit (yes), above it (no), or across (open)."""
    return YES if effect["high"] < VANISHED else NO if effect["low"] > VANISHED else UNSURE


def decide(measures: Mapping[str, Any]) -> Verdict:
    """Apply the rule."""
    parts, said = {}, {}
    for gain, rows in measures["gains"].items():
        answers = {name: vanishes(row["at"]) for name, row in rows.items()}
        said[gain] = [n for n in ACTIVATIONS if answers.get(n) == YES]
        for name in ("sigmoid", "tanh"):
            parts[f"{name} vanishes, {gain} gain"] = answers[name]
        parts[f"relu does not, {gain} gain"] = {YES: NO, NO: YES}.get(answers["relu"], UNSURE)
    common, proper = said["common"], said["proper"]
    ratio = {(gain, n): _times(rows[n]["at"]["mean"]) for gain, rows in measures["gains"].items()
             for n in ("relu", "tanh")}
    summary = (f"Through {JUDGED} layers the gradient falls more than a thousandfold with {_and(common)} under a "
               f"common initialization (ReLU: {ratio['common', 'relu']}; tanh: {ratio['common', 'tanh']}), and with "
               f"{_and(proper)} under each activation's own (ReLU: {ratio['proper', 'relu']}; tanh: "
               f"{ratio['proper', 'tanh']}).")
    either, one = [n for n in common if n in proper], [n for n in common if n not in proper]
    return combine(parts, summary, f"the initialization: {_and(either)} vanishes either way, {_and(one)} only with "
                   "weights that do not fit")


def _times(decades: float) -> str:
    """A power of ten in words.

    >>> _times(-3.0), _times(1.0)
    ('to 1/1,000', 'to 10 times')
    """
    if decades < -1:
        return f"to 1/{float(f'{10 ** -decades:.2g}'):,.0f}"
    return f"to {10 ** decades:.2g} times"


def _and(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items) or "none"


def figure(measures: Mapping[str, Any]) -> Figure:
    """Decades against depth, one panel an initialization."""
    made, panels = draw.figure(3.9, 2, sharey=True)
    titles = {"common": "the same weights for all (gain 1)", "proper": "each activation's own gain"}
    for axes, (gain, rows) in zip(panels, measures["gains"].items(), strict=True):
        for name, row in rows.items():
            axes.plot(measures["depths"], row["decades"], color=draw.colour(name), marker=draw.marker(name), label=name)
        axes.axhline(VANISHED, color=draw.MUTED, lw=1, ls="--")
        draw.plain_log(axes, "x")
        axes.set_xticks(measures["depths"], map(str, measures["depths"]))
        axes.set_xlabel("hidden layers")
        axes.set_title(titles[gain])
        axes.set_ylim(-20, 4)
        axes.set_yticks([0, -3, -10, -20], ["1", "1/1000", "$10^{-10}$", "$10^{-20}$"])
    panels[0].set_ylabel("gradient, first layer / last layer")
    panels[1].legend(fontsize=8, ncols=2, loc="lower left")
    return made


def table(measures: Mapping[str, Any]) -> Table:
    """Decades by depth, and after training."""
    rows = [[name, gain, *(f"{d:+.2f}" for d in row["decades"]), f"{row['trained']:+.2f}", f"{row['loss']:.2f}"]
            for gain, by_name in measures["gains"].items() for name, row in by_name.items()]
    return ["activation", "gain", *(f"depth {d}" for d in measures["depths"]), f"depth {TRAINED_DEPTH}, trained",
            "loss left there"], rows


CLAIM = Claim(
    number=4, slug="vanishing",
    statement="Sigmoid and tanh suffer from vanishing gradients in deep networks; ReLU mitigated the problem.",
    background="Going backward, a gradient is multiplied in every layer by the weights and by the activation's "
    "derivative. If that product is smaller than one on average, little is left after many layers.",
    tested=f"Plain networks, {WIDTH} wide and 2 to 64 layers deep, without normalization or residual connections. "
    "Measured is the gradient at the first hidden layer over that at the last, for eight random initializations. "
    "Twice: with the same weights for all (standard deviation 1/√inputs), and with weights scaled so that this "
    "activation keeps its signal's size (for ReLU √2 larger, computed from the definition for each). Networks of "
    f"{TRAINED_DEPTH} layers are also trained, and measured again.",
    rule=f"An activation vanishes at depth {JUDGED} where the 95 % interval (Holm) of the ratio lies below 1/1000; it "
    "does not where it lies above. Six questions: sigmoid vanishes, tanh vanishes, ReLU does not, under each "
    "initialization. All yes: holds; all no: fails; both: depends; one undecided: not settled.",
    change="Residual connections and normalization, which every language model has, carry the gradient past the "
    "activations: there the problem is gone for all of them.",
    caption="How much of the gradient reaches the first layer; the dashed line is a thousandth. Left, one "
    "initialization for all: ReLU halves the signal's energy in every layer and vanishes as well. Right, each with "
    "the weights that fit it: only sigmoid is left.",
    experiments=experiments, measure=measure, decide=decide, draw=figure, table=table)
