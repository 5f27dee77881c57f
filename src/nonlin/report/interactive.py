"""The data of figures that a person can question: what templates/figures.js draws. Records in, numbers out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from nonlin.numbers import number
from nonlin.report import figures
from nonlin.report.explorer import in_script
from nonlin.report.palette import hidden, paint
from nonlin.report.records import Study, tuned

Panel = dict[str, Any]
_POINTS, _SEED_POINTS = 240, 100  # of a line: a screen shows no more
_DASH = [7, 5]


def data(study: Study, more: Mapping[str, list[Panel]] | None = None) -> Markup:
    """Return everything that the page's figures show, as JSON that can stand in a script element.

    ``more`` are figures whose marks are known by :mod:`nonlin.report.marks`.
    """
    drawn = {name: [panel for panel in make(study) if panel["lines"]] for name, make in PANELS.items()
             if figures.FIGURES[name][2](study)} | dict(more or {})
    arms = [{"name": name, "slot": p.slot} for name, p in paint(figures.names(study)).items()]
    return in_script({"arms": arms, "figures": {name: panels for name, panels in drawn.items() if panels}})


def _some(count: int, most: int) -> list[int]:
    """Return at most so many indices, evenly, the last one among them.

    >>> _some(3, 10), _some(10, 4)
    ([0, 1, 2], [0, 3, 6, 9])
    """
    return list(range(count)) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _short(values: Sequence[float | None], digits: int = 6) -> list[float | None]:
    return [None if v is None else float(f"{v:.{digits}g}") for v in values]


def _line(arm: str, x: Sequence[float], y: Sequence[float | None], **more: Any) -> dict[str, Any]:
    return {"arm": arm, "x": _short(x, 9), "y": _short(y), **more}


def _differences(study: Study) -> list[Panel]:
    arms = list(reversed(figures.effects(study)))
    margin = study.results["rule"]["margin"]
    reach = figures.reach_of([max(abs(a["difference"][end]) for end in ("low", "high")) for a in arms], 2 * margin)
    lines, shown = [], [-2 * margin, 2 * margin]
    for row, arm in enumerate(arms):
        d = arm["difference"]
        each = {value: seed for seed, value in figures.seeds_differences(study, arm)}
        x = sorted(each)
        lines.append(_line(arm["name"], x, [row] * len(x), faint=True, bars=[_short([d["low"], row, d["high"], row])],
                           diamond=_short([d["mean"], row]),
                           text=f"{arm['verdict']}, {figures.interval_words(study, arm)}",
                           words=[f"seed {each[v]}: {number(v, f'+.{figures.digits(study)}f')}" for v in x]))
        if abs(d["mean"]) <= reach:
            shown += [*x, d["low"], d["high"]]
    low, high = min(shown), max(shown)
    return [{"x": {"label": f"bits per byte less {study.baseline}'s on the same seed (left of zero is better; grey: "
                            f"counts as equal, ±{margin:g})",
                   "format": "signed", "range": _short([low - 0.06 * (high - low), high + 0.06 * (high - low)])},
             "y": {"rows": [arm["name"] for arm in arms], "range": [-0.6, max(1, len(arms)) - 0.3]},
             "span": ["x", -margin, margin], "both": False, "lines": lines}]


def _paired(study: Study) -> list[Panel]:
    bands, margin = study.bands(), study.results["rule"]["margin"]
    covered = hidden({name: band.mean for name, band in bands.items()})
    lines, late = [], []
    for name, band in bands.items():
        keep = _some(len(band.tokens), _POINTS)
        low, mean, high = (_short([values[i] for i in keep]) for values in (band.low, band.mean, band.high))
        lines.append(_line(name, [band.tokens[i] for i in keep], mean, low=low, high=high, joined=True,
                           **({"dash": _DASH} if name in covered else {})))
        late.append((min(band.low[len(band.low) // 4:]), max(band.high[len(band.high) // 4:])))
    reach = figures.reach_of([max(abs(low), abs(high)) for low, high in late], 2 * margin)
    near = [pair for pair in late if max(map(abs, pair)) <= reach]
    return [{"title": f"training loss less {study.baseline}'s on the same batches, bits per byte (below 0 is better; "
                      f"grey: counts as equal, ±{margin:g})",
             "x": {"label": "tokens", "format": "tokens"}, "span": ["y", -margin, margin],
             "y": {"format": "signed", "range": _short([min([-2 * margin, *(low for low, _ in near)]),
                                                        max([2 * margin, *(high for _, high in near)])])},
             "lines": lines}]


def _curves(study: Study) -> list[Panel]:
    means = study.means()
    covered = hidden({name: mean[len(mean) // 2:] for name, (_, mean) in means.items()})
    lines, start, end = [], 0, 1
    for name, (tokens, mean) in means.items():
        keep = _some(len(mean), _POINTS)
        lines.append(_line(name, [tokens[i] for i in keep], [mean[i] for i in keep], joined=True,
                           **({"dash": _DASH} if name in covered else {})))
        start, end = max(start, tokens[min(study.FIRST, len(tokens) - 1)]), max(end, tokens[-1])
    for curve in study.curves:
        if curve.tokens:
            keep, loss = _some(len(curve.tokens), _SEED_POINTS), figures.smooth(curve.loss)
            lines.append(_line(curve.arm, [curve.tokens[i] for i in keep], _short([loss[i] for i in keep], 5),
                               joined=True, thin=True))
    return [{"title": "training loss, bits per byte", "lines": lines, "y": {"format": "plain"},
             "x": {"label": "tokens", "format": "tokens", "range": [start if start < end else 0, end]},
             "views": [["from the start", 0, end], ["second half", end / 2, end]]}]


def _recovery(study: Study) -> list[Panel]:
    lines = [_line(arm["name"], *zip(*arm["recovery"]["points"], strict=True), joined=True, points=True)
             for arm in study.arms if arm.get("recovery")]
    return [{"title": "bits per byte", "lines": lines, "y": {"format": "plain"},
             "x": {"label": "tokens since the swap", "format": "tokens"}}]


def _learning_rates(study: Study) -> list[Panel]:
    arms, lines = study.results["arms"], []
    covered = hidden({arm["name"]: [mean for _, mean, _ in tuned(arm)] for arm in arms})
    losses = [run["bits_per_byte"] for arm in arms for run in arm["tuning"] if run["bits_per_byte"] is not None]
    for arm in arms:
        by_rate = [(rate, mean, each) for rate, mean, each in tuned(arm) if mean is not None]
        chosen = [] if None in (arm["learning_rate"], arm["bits_per_byte"]) else _short(
            [arm["learning_rate"], arm["bits_per_byte"]])
        lines.append(_line(arm["name"], [rate for rate, *_ in by_rate], [mean for _, mean, _ in by_rate], joined=True,
                           points=True, **({"dash": _DASH} if arm["name"] in covered else {}),
                           **({"diamond": chosen} if chosen else {})))
        for seed in range(max((len(each) for *_, each in by_rate), default=0)):
            rows = [(rate, each[seed]) for rate, _, each in by_rate if len(each) > seed]
            lines.append(_line(arm["name"], [r for r, _ in rows], [v for _, v in rows], faint=True))
    low = min(losses, default=0.0)
    reach = figures.reach_of([loss - low for loss in losses], 1e-3) if losses else 1.0
    rates = sorted({run["learning_rate"] for arm in arms for run in arm["tuning"]})
    if not rates:
        return []
    return [{"title": "bits per byte after tuning", "x": {"label": "learning rate", "format": "plain", "log": True,
                                                          "range": [rates[0] / 1.2, rates[-1] * 1.2], "ticks": rates},
             "y": {"format": "plain", "range": _short([low - 0.06 * reach, low + 1.06 * reach])}, "lines": lines}]


def _layers(study: Study) -> list[Panel]:
    panels = []
    for key, title, form, log in (("gradient_rms", "gradient at the block's output (root mean square)", "log", True),
                                  ("dead_share", "dead units", "percent", False)):
        values = {arm["name"]: [layer[key] for layer in arm["layers"]] for arm in study.results["arms"]}
        log = log and all(v is None or v > 0 for row in values.values() for v in row)
        covered, depth = hidden(values), max(map(len, values.values()), default=0)
        lines = [_line(name, list(range(1, len(row) + 1)), row, joined=True, points=True,
                       **({"dash": _DASH} if name in covered else {})) for name, row in values.items() if row]
        panels.append({"title": title, "lines": lines,
                       "y": {"format": form, "log": log, **({} if key == "gradient_rms" else {"least": 0.01})},
                       "x": {"label": "layer", "format": "whole", "range": [0.8, depth + 0.2]}})
    return panels


def _quality(study: Study) -> list[Panel]:
    panels = []
    arms = [arm for arm in study.results["arms"] if arm["bits_per_byte"] is not None]
    losses = sorted(arm["bits_per_byte"] for arm in arms)
    reach = figures.reach_of([loss - losses[0] for loss in losses], 0.02) if losses else 1.0
    for name, value, unit, _ in figures.differing_costs(study):
        lines = []
        for arm in (a for a in arms if value(a) is not None):
            x, y = value(arm), arm["bits_per_byte"]
            error = (arm["standard_deviation"] or 0) / max(1, len(arm["judged"])) ** 0.5
            lines.append(_line(arm["name"], [x or 0.0], [y], bars=[_short([x, y - error, x, y + error])], points=True,
                               words=[f"{number(y, '.4g')} bits per byte, {number(x, '.4g')} {unit}"]))
        at = [line["x"][0] for line in lines]
        room = 0.12 * (max(at) - min(at)) if at else 1.0
        panels.append({"title": "bits per byte (± standard error)", "both": True, "lines": lines,
                       "x": {"label": f"{name}, {unit}", "format": "plain",
                             "range": _short([min(at) - room, max(at) + room]) if at else [0, 1]},
                       "y": {"format": "plain", "range": _short([losses[0] - 0.12 * reach, losses[0] + 1.12 * reach])
                             if losses else [0, 1]}})
    return panels


PANELS: Mapping[str, Callable[[Study], list[Panel]]] = {
    "differences": _differences, "paired": _paired, "curves": _curves, "recovery": _recovery,
    "learning_rates": _learning_rates, "layers": _layers, "quality": _quality}
