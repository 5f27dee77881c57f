"""How a trained model recovers from another activation: loss against tokens, beside its loss before the swap."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nonlin.report.records import Study
from nonlin.report.style import MUTED, colours, markers, narrow, new_figure

TITLE = "Recovery from the swap"


def has(study: Study) -> bool:
    """Whether the study began with trained weights and has judged runs."""
    return any(arm.get("recovery") for arm in study.arms)


def figure(study: Study) -> Figure:
    """Held-out loss since the swap, averaged over seeds; the broken line is the model before it."""
    drawn = new_figure(3.4)
    axes = drawn.subplots()
    names = [arm["name"] for arm in study.results["arms"]]  # the plan's order, by which colours are given
    paint, marks = colours(names), markers(names)
    for arm in study.arms:
        if found := arm.get("recovery"):
            tokens, losses = zip(*found["points"], strict=True)
            axes.plot(tokens, losses, color=paint[arm["name"]], marker=marks[arm["name"]], ms=4, label=arm["name"])
            axes.axhline(found["before"], color=MUTED, lw=1, ls="--")
    axes.set_xlabel("tokens since the swap")
    axes.set_ylabel("bits per byte")
    axes.xaxis.set_major_locator(MaxNLocator(3 if narrow() else 6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    drawn.legend(loc="outside lower center", ncols=min(len(names), 3 if narrow() else 5))
    return drawn


def table(study: Study) -> tuple[list[str], list[list[str]]]:
    """Each arm's loss at each evaluation, and when it was back."""
    found = [(arm["name"], arm["recovery"]) for arm in study.arms if arm.get("recovery")]
    tokens = sorted({int(point[0]) for _, one in found for point in one["points"]})
    rows = []
    for name, one in found:
        at = {int(t): loss for t, loss in one["points"]}
        back = one["back_at_tokens"]
        rows.append([name, f"{one['before']:.4f}", *(f"{at[t]:.4f}" if t in at else "–" for t in tokens),
                     "not yet" if back is None else f"{back:,}"])
    return ["activation", "before", *(f"{t:,}" for t in tokens), "back at tokens"], rows
