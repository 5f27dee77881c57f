"""Claim 5: ReLU units die."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

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
    above,
    combine,
    effects,
    experiment,
)
from nonlin.errors import UserError
from nonlin.numbers import number

ACTIVATIONS = ("relu", "leaky_relu", "gelu", "silu", "relu_squared")
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
WIDTH, DEPTH, STEPS = 64, 3, 300
MARGIN = 0.05  # share of units
PROBES = 6


def experiments(plan: Any) -> list[Experiment]:
    """One run per activation: all learning rates and seeds at once."""
    seeds, steps = (plan.seeds[:4], STEPS // 2) if plan.short else (plan.seeds[:6], STEPS)
    return [experiment("n05_dying", "dead", f"dead units, {name}", 12.0, activation=name, seeds=seeds, steps=steps,
                       engine=plan.machine["engine"]) for name in ACTIVATIONS]


def dead(config: dict[str, Any]) -> dict[str, Any]:
    """Return the share of dead units by probe, rate and seed, and the loss at the end by rate and seed."""
    import torch

    from nonlin.claims.networks import Networks, finite_values, hard_functions, points, squared_error, train
    from nonlin.training.probes import dead_units

    seeds, steps = config["seeds"], config["steps"]
    replicas = [(rate, seed) for rate in RATES for seed in seeds]
    nets = Networks(config["activation"], 2, WIDTH, DEPTH, 3, [s for _, s in replicas], engine=config["engine"])
    x, held = points(1024, seeds[0]), points(1024, seeds[0] + 500)
    y, every = hard_functions(x), max(1, steps // (PROBES - 1))
    shares: list[Any] = []

    def probe(step: int) -> None:
        if step and step % every:
            return
        with torch.no_grad():
            watch: list[Any] = []
            nets.forward(held, watch)
        by_layer = [torch.stack([dead_units(nets.activation, tuple(p[r] for p in parts)) for r in range(len(replicas))])
                    for parts in watch]
        shares.append(torch.stack(by_layer).float().mean((0, 2)).view(len(RATES), len(seeds)))

    probe(0)
    train(nets, x, y, [rate for rate, _ in replicas], steps, 128, seeds[0], squared_error, probe)
    with torch.no_grad():
        loss = squared_error(nets.forward(held), hard_functions(held)).view(len(RATES), len(seeds))
    return finite_values({"dead": torch.stack(shares), "loss": loss})


EXPERIMENTS = {"dead": dead}


def measure(found: Found) -> dict[str, Any]:
    """Return shares and losses by rate, and how many units died at each one's best rate, at the highest, in text."""
    rows = {}
    for run in experiments(found.plan):
        measured = found.record(run)["measured"]
        losses = [None if None in row else sum(row) / len(row) for row in measured["loss"]]
        trained = [i for i, v in enumerate(losses) if v is not None]
        best = min((v, i) for i, v in enumerate(losses) if v is not None)[1]
        rows[run.config["activation"]] = {
            "dead": [[sum(r) / len(r) for r in p] for p in measured["dead"]], "loss": losses, "best": best,
            "at_best": _died(measured["dead"], best), "at_high": _died(measured["dead"], trained[-1])}
    shares = {key: effects({name: row[key] for name, row in rows.items()}) for key in ("at_best", "at_high")}
    relu = next(arm for arm in found.study("core")["arms"] if arm["name"] == "relu")
    language = {}
    for rate in sorted({*good_rates(relu), relu["learning_rate"]}):  # the judged one lies between those of the grid
        runs = [run for run in relu["tuning"] if run["learning_rate"] == rate]
        runs += relu["judged"] if rate == relu["learning_rate"] else []
        died = [found.records[run["config_hash"]]["dead_share"] for run in runs if run["bits_per_byte"] is not None]
        language[f"{rate:.3g}"] = effects({"relu": died})["relu"]
    return {"rates": list(RATES), "activations": rows, "shares": shares, "language": language}


def good_rates(arm: Mapping[str, Any]) -> list[float]:
    """Return the tuned rates whose loss cannot be told from the best one's, by the paired tuning runs."""
    if arm["learning_rate"] is None:
        raise UserError(f"{arm['name']} diverged at every learning rate. Use smaller ones.")
    losses: dict[float, dict[int, float]] = {}
    for run in arm["tuning"]:
        losses.setdefault(run["learning_rate"], {})[run["seed"]] = (
            math.inf if run["bits_per_byte"] is None else run["bits_per_byte"])
    best = min(losses, key=lambda rate: sum(losses[rate].values()))
    worse = {rate: [by_seed[s] - losses[best][s] for s in losses[best]] for rate, by_seed in losses.items()}
    return [rate for rate, more in worse.items() if rate == best or (
        math.isfinite(sum(more)) and effects({"": more})[""]["low"] <= 0)]


def _died(dead: list[Any], rate: int) -> list[float]:
    """The share of units by seed that are dead at the end, less those that were at the start."""
    return [end - start for end, start in zip(dead[-1][rate], dead[0][rate], strict=True)]


def decide(measures: Mapping[str, Any]) -> Verdict:
    """Apply the rule."""
    shares, rows = measures["shares"], measures["activations"]
    parts = {"in a plain network at its best learning rate": above(shares["at_best"]["relu"], MARGIN),
             "in a plain network at the highest one": above(shares["at_high"]["relu"], MARGIN),
             "in the language model": _at_all([above(e, MARGIN) for e in measures["language"].values()])}
    best = measures["rates"][rows["relu"]["best"]]
    others = ", ".join(f"{n} {shares['at_best'][n]['mean']:.0%}" for n in rows if n != "relu")
    text = [(effect["mean"], rate) for rate, effect in measures["language"].items()]
    summary = (f"In a plain network {shares['at_best']['relu']['mean']:.0%} of ReLU's units die at its best learning "
               f"rate ({best:g}) and {shares['at_high']['relu']['mean']:.0%} at the highest; of others' at their best: "
               f"{others}. In the language model, which normalizes before its blocks, "
               + (f"{text[0][0]:.1%} of ReLU's are dead." if len(text) == 1 else "ReLU's dead share is "
                  + ", ".join(f"{share:.1%} (rate {rate})" for share, rate in text)
                  + ": these rates' losses cannot be distinguished."))
    return combine(parts, summary, "the network: they die " + ", ".join(k for k, v in parts.items() if v == YES)
                   + ", not " + ", ".join(k for k, v in parts.items() if v == NO))


def _at_all(answers: list[str]) -> str:
    """Whether it is so at every one: a single no is enough for no."""
    return NO if NO in answers else UNSURE if UNSURE in answers else YES


def figure(measures: Mapping[str, Any]) -> Figure:
    """Dead share against learning rate, and through training at the best and the highest rate."""
    made, (left, right) = draw.figure(3.7, 2, sharey=True)
    rates = measures["rates"]
    for name, row in measures["activations"].items():
        left.plot(rates, row["dead"][-1], color=draw.colour(name), marker=draw.marker(name), label=name)
        left.plot(rates[row["best"]], row["dead"][-1][row["best"]], "o", ms=13, mfc="none", mec=draw.colour(name))
    ends = list(measures["activations"]["relu"]["dead"][-1])
    for i, (rate, place) in enumerate(zip(rates, draw.apart(ends, 0.05 * max(1.0, *ends)), strict=True)):
        values = [p[i] for p in measures["activations"]["relu"]["dead"]]
        right.plot(range(len(values)), values, color=draw.colour("relu"), alpha=0.25 + 0.75 * i / len(rates))
        right.annotate(f"{rate:g}", (len(values) - 1, place), xytext=(4, -3), textcoords="offset points", fontsize=8)
    draw.plain_log(left, "x")
    left.set_xticks(rates, [f"{r:g}" for r in rates])
    left.set_xlabel("learning rate   (circle: the best one)")
    left.set_title("dead units after training")
    left.yaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v, ".0%")))
    left.legend(fontsize=8)
    right.set_title("ReLU's, through training, by learning rate")
    right.set_xticks([0, PROBES - 1], ["start", "end"])
    right.margins(x=0.12)
    return made


def table(measures: Mapping[str, Any]) -> Table:
    """Dead share and loss by rate."""
    rows = []
    for name, row in measures["activations"].items():
        rows.append([name, "dead", *(f"{v:.1%}" for v in row["dead"][-1])])
        rows.append([name, "loss", *("–" if v is None else f"{v:.3f}" for v in row["loss"])])
    return ["activation", "", *(f"{r:g}" for r in measures["rates"])], rows


CLAIM = Claim(
    number=5, slug="dying",
    statement="ReLU units die: they output zero for every input, and get no gradient to come back.",
    background="A ReLU unit whose input is negative everywhere has derivative zero everywhere. One large step of its "
    "bias can put it there for good.",
    tested=f"Plain networks of {DEPTH} hidden layers, {WIDTH} wide, are trained by Adam to follow three curved "
    "functions of two variables, at seven learning rates and several seeds. A unit counts as dead where its output "
    "and its derivative are below 0.001 on all of 1,024 held-out points; those dead from the start are not counted as "
    "having died. Leaky ReLU, GELU, SiLU and ReLU² get the same. In the small language model the dead units are "
    "counted on a batch of text at the end of training, in tuning runs and judged ones.",
    rule="ReLU's units die where the 95 % interval (Holm) of the share that died leaves out zero and its mean exceeds "
    f"{MARGIN:.0%}; they do not where the interval ends below it. Asked in a plain network at ReLU's best learning "
    "rate (least loss) and at the highest that trains at all; and in the language model at every rate whose loss "
    "cannot be told from the best one's (paired tuning runs, 95 %), where units that live at one of them are a no. All "
    "three: holds; none: fails; some: depends on the network; one undecided: not settled.",
    change="Normalization before the units keeps their inputs near zero; warm-up, weight decay and a lower learning "
    "rate help too. Networks lose many units before they lose accuracy: look at the loss beside the dead share.",
    caption="Left: units dead after training against the learning rate; circles mark each activation's best rate. "
    "Right: ReLU's dead share from the start to the end of training, one line a learning rate.",
    experiments=experiments, studies=("core",), measure=measure, decide=decide, draw=figure, table=table)
