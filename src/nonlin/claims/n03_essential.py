"""Claim 3: activations are essential for image recognition and for language."""

import importlib.util
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from nonlin.claims import draw
from nonlin.claims.definition import (
    NO,
    OPEN,
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
from nonlin.claims.n07_silu import judged
from nonlin.numbers import number

ACTIVATIONS = ("identity", "relu", "gelu", "silu", "tanh", "swiglu")
TASKS = {"read a digit": 10, "do two digits match": 2}
CHANCE = {"read a digit": 0.1, "do two digits match": 0.5}
RATES = (1e-3, 3e-3, 1e-2)
WIDTH, DEPTH, STEPS, HELD = 64, 2, 400, 500
ESSENTIAL = 0.5  # share of what is learned that is left without activations
LANGUAGE = "predict text"


def missing() -> str | None:
    """Return what to install where scikit-learn is not there."""
    if importlib.util.find_spec("sklearn"):
        return None
    return "the images come with scikit-learn: pip install 'nonlin[claims]'"


def experiments(plan: Any) -> list[Experiment]:
    """One run per activation and task; none where scikit-learn is missing."""
    if missing():
        return []
    steps = STEPS // 2 if plan.short else STEPS
    return [experiment("n03_essential", "digits", f"{task}, {name}", 4.0, activation=name, task=task,
                       seeds=plan.seeds[:6], steps=steps, engine=plan.machine["engine"])
            for task in TASKS for name in ACTIVATIONS]


def _images(task: str, seed: int) -> tuple[Any, Any, Any, Any]:
    """Return (training inputs, classes, held-out inputs, classes); no image is in both."""
    import torch
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 8 - 1
    y = torch.tensor(data.target)
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=random)
    held, train = order[:HELD], order[HELD:]
    if task == "read a digit":
        return x[train], y[train], x[held], y[held]

    def pairs(rows: Any, count: int) -> tuple[Any, Any]:
        first, second = (rows[torch.randint(len(rows), (8 * count,), generator=random)] for _ in range(2))
        same = y[first] == y[second]
        chosen = torch.cat([same.nonzero()[:count // 2, 0], (~same).nonzero()[:count // 2, 0]])  # half of each
        return torch.cat([x[first[chosen]], x[second[chosen]]], dim=1), same[chosen].long()

    return (*pairs(train, 8000), *pairs(held, 2000))


def digits(config: dict[str, Any]) -> dict[str, Any]:
    """Return the held-out error rate by learning rate and seed."""
    import torch

    from nonlin.claims.networks import Networks, cross_entropy, train

    x, y, held, classes = _images(config["task"], config["seeds"][0])
    replicas = [(rate, seed) for rate in RATES for seed in config["seeds"]]
    nets = Networks(config["activation"], x.shape[1], WIDTH, DEPTH, TASKS[config["task"]], [s for _, s in replicas],
                    engine=config["engine"])
    train(nets, x, y, [r for r, _ in replicas], config["steps"], 128, config["seeds"][0], cross_entropy)
    with torch.no_grad():
        wrong = (nets.forward(held).argmax(-1) != classes).float().mean(1)
    return {"wrong": wrong.view(len(RATES), -1).tolist()}


EXPERIMENTS = {"digits": digits}


def measure(found: Found) -> dict[str, Any]:
    """Return each task's share of the learned that is left without activations, by seed, and all results."""
    tasks: dict[str, Any] = {}
    for run in experiments(found.plan):
        config = run.config
        tasks.setdefault(config["task"], {})[config["activation"]] = judged(found.record(run)["measured"]["wrong"])
    kept: dict[str, list[float]] = {}
    for task, rows in tasks.items():
        best = min((n for n in rows if n != "identity"), key=lambda n: sum(rows[n]))
        kept[task] = [(CHANCE_ERROR[task] - a) / (CHANCE_ERROR[task] - b)
                      for a, b in zip(rows["identity"], rows[best], strict=True)]
    arms = {a["name"]: a for a in found.study("core")["arms"]}
    losses = {name: [run["bits_per_byte"] for run in arm["judged"]] for name, arm in arms.items()}
    start = max(t["initial_bits_per_byte"] for t in arms["gelu"]["tuning"])
    without, with_ = ({run["seed"]: run["bits_per_byte"] for run in arms[name]["judged"]
                       if run["bits_per_byte"] is not None} for name in ("identity", "gelu"))
    kept[LANGUAGE] = [(start - without[seed]) / (start - with_[seed]) for seed in sorted(without.keys() & with_.keys())]
    return {"tasks": tasks, "language": losses, "initial": start, "kept": effects(kept), "each": kept,
            "missing": missing()}


CHANCE_ERROR = {task: 1 - chance for task, chance in CHANCE.items()}


def decide(measures: Mapping[str, Any]) -> Verdict:
    """Apply the rule."""
    kept = measures["kept"]
    parts = {f"essential to {task}": YES if e["high"] < ESSENTIAL else NO if e["low"] > ESSENTIAL else UNSURE
             for task, e in kept.items()}
    summary = "Of what a network learns with activations, this is left without: " + "; ".join(
        f"{task}, {e['mean']:.0%} ({e['low']:.0%} to {e['high']:.0%})" for task, e in kept.items()) + "."
    if measures["missing"]:
        return Verdict(OPEN, f"{summary} Not run: {measures['missing']}.", None, parts)
    essential = [task for task in kept if parts[f"essential to {task}"] == YES]
    return combine(parts, summary, f"the task: essential only to {', '.join(essential)}")


def figure(measures: Mapping[str, Any]) -> Figure:
    """Held-out errors of each task, and bits per byte of the language model."""
    tasks = measures["tasks"]
    made, panels = draw.figure(3.2, len(tasks) + 1)
    panels = panels if len(tasks) else [panels]
    for axes, (task, rows) in zip(panels, [*tasks.items(), (LANGUAGE, measures["language"])], strict=True):
        for i, (name, values) in enumerate(rows.items()):
            known = [v for v in values if v is not None]
            axes.plot([i] * len(known), known, "o", ms=4, alpha=0.4, color=draw.colour(name), mec="none")
            if known:
                axes.plot(i, sum(known) / len(known), "D", ms=7, color=draw.colour(name), mec=draw.PAPER)
        axes.set_xticks(range(len(rows)), list(rows), rotation=40, ha="right")
        axes.set_title(task + (", bits per byte" if task == LANGUAGE else ", errors"))
        axes.grid(axis="x", visible=False)
        axes.margins(x=0.12)
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
        if task != LANGUAGE:
            axes.axhline(CHANCE_ERROR[task], color=draw.MUTED, lw=1, ls="--")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v, ".0%")))
    return made


def table(measures: Mapping[str, Any]) -> Table:
    """Return mean results by activation, and the share without activations."""
    names = list(dict.fromkeys([*ACTIVATIONS, *measures["language"]]))
    rows = []
    for name in names:
        values = [t.get(name) for t in measures["tasks"].values()]
        words = [f"{sum(v) / len(v):.2%}" if v else "–" for v in values]
        losses = [v for v in measures["language"].get(name, []) if v is not None]
        rows.append([name, *words, f"{sum(losses) / len(losses):.4f}" if losses else "–"])
    rows.append(["kept by identity", *(f"{e['mean']:.1%}" for e in measures["kept"].values())])
    return ["activation", *(f"{t}, errors" for t in measures["tasks"]), "text, bits per byte"], rows


CLAIM = Claim(
    number=3, slug="essential",
    statement="Activations are essential for image recognition and for language understanding.",
    background="A linear model separates classes by flat boundaries. Whether that suffices depends on the task, not "
    "on whether its input is an image or a text.",
    tested=f"Images: 1,797 handwritten digits of 8 × 8 pixels, {HELD} held out, networks of two layers of {WIDTH}. "
    "Two tasks: read a digit; and say whether two digits are the same, which no linear model can since it depends on "
    "how two images go together. Language: the small language model with and without activations in its blocks, each "
    "at its own learning rate, on fresh seeds. Digits are judged at the rate that the other seeds found best.",
    rule="What is kept is (chance - without) / (chance - with the best activation; for language GELU), in errors or "
    "bits per byte, where chance is guessing or the untrained model. Activations are essential to a task where the "
    f"95 % interval (Holm) lies below {ESSENTIAL:.0%}, not where it lies above. All: holds; none: fails; some: "
    "depends; one undecided: not settled.",
    change="Photographs instead of 8 × 8 digits; larger language models, whose blocks carry more of the work; a "
    "language model without attention's own non-linearity.",
    caption="Every seed's result and the mean; the dashed line is guessing. The language model keeps attention and "
    "normalization, which are not linear, when its activations are taken away.",
    experiments=experiments, studies=("core",), measure=measure, decide=decide, draw=figure, table=table,
    missing=missing)
