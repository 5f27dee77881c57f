"""Claim 1: without activations a network is one linear map, however deep."""

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
    experiment,
)
from nonlin.numbers import number
from nonlin.numbers import parts as parts_of

DEPTHS = (1, 2, 4, 8, 16, 32, 64)
ACTIVATIONS = ("identity", "relu", "gelu", "silu", "tanh", "sigmoid")
WIDTH = 64
LINEAR, NONLINEAR = 1e-4, 1e-2
#: The small language model without activations, and what else is taken away.
MODELS = {"nothing else": {}, "attention": {"attention": False}, "normalization": {"norm": "none"},
          "both": {"attention": False, "norm": "none"}}


def experiments(plan: Any) -> list[Experiment]:
    """One run per activation, and one of the language model."""
    runs = [experiment("n01_linear", "depths", f"depths, {name}", 0.5, activation=name, seeds=plan.seeds[:4])
            for name in ACTIVATIONS]
    return [*runs, experiment("n01_linear", "language_model", "language model", 0.5, seed=plan.seeds[0])]


def _not_additive(function: Any, a: Any, b: Any) -> Any:
    """|f(a+b) - f(a) - f(b) + f(0)| over |f(a+b) - f(0)|: zero where f is linear or affine."""
    zero, both = function(0 * a), function(a + b)
    left = both - function(a) - function(b) + zero
    return left.flatten(1).norm(dim=1) / (both - zero).flatten(1).norm(dim=1).clamp_min(1e-30)


def depths(config: dict[str, Any]) -> dict[str, Any]:
    """Return by depth how far networks are from additive and from the one matrix of their weights' product."""
    import torch

    from nonlin.claims.networks import Networks

    a, b = (torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(s)) for s in config["seeds"][:2])
    additive, matrix = [], []
    with torch.no_grad():
        for depth in DEPTHS:
            nets = Networks(config["activation"], WIDTH, WIDTH, depth, WIDTH, config["seeds"], bias=False)
            additive.append(float(_not_additive(nets.forward, a, b).max()))
            product = torch.eye(WIDTH, dtype=torch.float64)
            for layer in nets.layers:
                product = product @ layer[0][0].double()
            out = nets.forward(a).double()
            matrix.append(float((out - a.double() @ product).norm() / out.norm()))
    return {"additive": additive, "matrix": matrix}


def language_model(config: dict[str, Any]) -> dict[str, Any]:
    """Return how far identity blocks are from one matrix each, and whole models from additive, for each variant."""
    import torch

    from nonlin.functions import get
    from nonlin.model import ModelConfig
    from nonlin.model.language_model import LanguageModel

    found, blocks = {}, 0.0
    random = torch.Generator().manual_seed(config["seed"])
    a, b = (torch.randn(8, 32, 64, generator=random) for _ in range(2))
    for removed, variant in MODELS.items():
        model = LanguageModel(ModelConfig(layers=4, dim=64, heads=2, kv_heads=2, hidden=256, **variant),
                              get("identity"), seed=config["seed"])

        def logits(x: Any, model: LanguageModel = model) -> Any:
            return model.head(model.forward_blocks(x))

        with torch.no_grad():
            found[removed] = float(_not_additive(logits, a, b).max())
            for block in model.blocks:
                part: Any = block.feed_forward
                one = part.down.weight.double() @ part.up.weight.double()
                out = part(a).double()
                blocks = max(blocks, float((out - a.double() @ one.T).norm() / out.norm()))
    return {"additive": found, "block_matrix": blocks}


EXPERIMENTS = {"depths": depths, "language_model": language_model}


def measure(found: Found) -> dict[str, Any]:
    """Return the errors by activation and depth, and those of the language model."""
    *runs, model = experiments(found.plan)
    by_name = {name: found.record(run)["measured"] for name, run in zip(ACTIVATIONS, runs, strict=True)}
    return {"depths": list(DEPTHS), "networks": by_name, "language_model": found.record(model)["measured"]}


def _is_linear(value: float) -> str:
    return YES if value < LINEAR else NO if value > NONLINEAR else UNSURE


def decide(measures: Mapping[str, Any]) -> Verdict:
    """Apply the rule."""
    networks, model = measures["networks"], measures["language_model"]
    plain = networks["identity"]
    worst = max(*plain["additive"], *plain["matrix"], model["block_matrix"])
    others = min(min(v["additive"]) for k, v in networks.items() if k != "identity")
    parts = {"plain networks collapse to one matrix": _is_linear(worst),
             "activations prevent it": {YES: NO, NO: YES}.get(_is_linear(others), UNSURE),
             "the language model becomes linear": _is_linear(model["additive"]["nothing else"])}
    summary = (f"Layers without activations are one matrix to {parts_of(worst)} at every depth "
               f"up to {measures['depths'][-1]}. A language model without activations still departs from linear by "
               f"{number(model['additive']['nothing else'], '.0%')}; without attention and normalization too, by "
               f"{parts_of(model['additive']['both'])}.")
    layers, prevented, whole = parts.values()
    if UNSURE in parts.values():
        return Verdict(OPEN, summary, None, parts)
    if NO in (layers, prevented):
        return Verdict(FAILS, summary, None, parts)
    if whole == YES:
        return Verdict(HOLDS, summary, None, parts)
    return Verdict(DEPENDS, summary, "what else is in the network: attention and normalization are not linear either",
                   parts)


def figure(measures: Mapping[str, Any]) -> Figure:
    """Departure from linear against depth, and of the language model."""
    made, (left, right) = draw.figure(3.5, 2, width_ratios=(3, 2))
    for name, values in measures["networks"].items():
        left.plot(measures["depths"], values["additive"], marker=draw.marker(name), color=draw.colour(name), label=name)
    draw.plain_log(left, "x")
    left.set_yscale("log")
    left.set_xticks(measures["depths"], map(str, measures["depths"]))
    left.set_xlabel("hidden layers")
    left.set_title("departure from linear, plain networks")
    left.legend(fontsize=8, ncols=2)
    model = measures["language_model"]["additive"]
    right.barh(list(model), [max(v, 1e-8) for v in model.values()], left=1e-8, color=draw.colour("identity"),
               height=0.6)
    right.set_xscale("log")
    right.set_xlim(1e-8, 10)
    right.invert_yaxis()
    right.set_title("language model, no activations;\nalso removed:")
    return made


def table(measures: Mapping[str, Any]) -> Table:
    """Every departure from linear."""
    rows = [[name, *(number(v, ".1e") for v in values["additive"])] for name, values in measures["networks"].items()]
    rows += [[f"language model, identity, less {k}", number(v, ".1e"), *[""] * (len(DEPTHS) - 1)]
             for k, v in measures["language_model"]["additive"].items()]
    return ["activation", *(f"depth {d}" for d in measures["depths"])], rows


CLAIM = Claim(
    number=1, slug="linear",
    statement="Without activations a network is one linear map, however deep it is.",
    background="A layer multiplies by a matrix. Two matrices in a row are one matrix, their product, so that depth "
    "without something in between buys nothing.",
    tested="Networks of 1 to 64 layers, 64 wide, with random weights. A linear map f satisfies f(a + b) = f(a) + "
    "f(b); the departure is how far that fails, relative to the output. Without activations the output is also "
    "compared with the single matrix that is the product of all weights. Then the same question is asked of a small "
    "language model (4 layers) whose feed-forward blocks have no activation: once whole, once without attention, "
    "once without normalization, once without both.",
    rule="A departure below 0.0001 counts as linear, above 0.01 as not, anything between as not settled. Three "
    "questions: do networks without activations, and the language model's blocks, collapse to one matrix at every "
    "depth; do activations prevent it; does the whole language model become linear? It fails if one of the first two "
    "is a no, holds if all are yes, and depends if only the last is a no.",
    change="Nothing measured on other data: for plain layers this is algebra. For a whole model it depends on which "
    "other parts are not linear; softmax attention and normalization are not.",
    caption="Left: how far networks are from linear; 1e-7 is the rounding of the arithmetic. Right: a language model "
    "whose blocks have no activation is far from linear until attention and normalization are removed as well.",
    experiments=experiments, measure=measure, decide=decide, draw=figure, table=table)
