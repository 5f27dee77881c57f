"""The tables behind the figures: (header, rows) of text."""

from nonlin.numbers import interval, number, places
from nonlin.report import figures, recovery
from nonlin.report.records import Study, tuned

#: The verdicts on two better arms, in words.
PAIR_WORDS = {"better": "first is better", "tie": "tie", "undecided": "not separated"}

Table = tuple[list[str], list[list[str]]]


def differences(study: Study) -> Table:
    """Each arm's paired difference, interval, corrected p-value and std over seeds, with the digits that they mean."""
    rows = []
    digits = figures.digits(study)
    for arm in study.arms:
        d = arm["difference"] or {}
        rows.append([arm["name"], number(arm["bits_per_byte"], f".{digits}f"),
                     number(arm["standard_deviation"], f".{digits}f"),
                     *(number(d.get(key), f"+.{digits}f") for key in ("mean", "low", "high")),
                     number(d.get("p_value"), ".2g"), arm["verdict"]])
    return ["activation", "bits per byte", "std over seeds", "difference", "low", "high", "p, corrected",
            "verdict"], rows


def paired(study: Study) -> Table:
    """The paired difference of the training loss at five places of the run, with its interval."""
    bands = study.bands()
    places_ = sorted({band.tokens[-1] for band in bands.values()})
    last = places_[0] if places_ else 0
    rows = []
    for name, band in bands.items():
        at = [max(i for i, t in enumerate(band.tokens) if i == 0 or t <= last * k / 5) for k in range(1, 6)]
        digits = places([(band.high[i] - band.low[i]) / 2 for i in at])
        rows.append([name, *(f"{number(band.mean[i], f'+.{digits}f')} "
                             f"({interval(band.low[i], band.high[i], f'+.{digits}f')})" for i in at)])
    return ["activation", *(f"{last * k // 5:,} tokens" for k in range(1, 6))], rows


def pairs(study: Study) -> Table:
    """The comparisons of those found better with each other."""
    rows = [[pair["first"], pair["second"], number(d["mean"], "+.4f"),
             interval(d["low"], d["high"], "+.4f"),
             number(d["p_value"], ".2g"), PAIR_WORDS[pair["verdict"]]]
            for pair in study.results.get("pairs") or () for d in [pair["difference"]]]
    return ["first", "second", "difference", "interval", "p, corrected", "verdict"], rows


def curves(study: Study) -> Table:
    """Every judged run's held-out loss at each evaluation."""
    points = sorted({t for c in study.curves for t in c.evaluated_tokens})
    rows = []
    for c in study.curves:
        at = dict(zip(c.evaluated_tokens, c.evaluated, strict=True))
        rows.append([c.arm, str(c.seed), *(number(at.get(t), ".4f") for t in points)])
    return ["activation", "seed", *(f"{t:,} tokens" for t in points)], rows


def learning_rates(study: Study) -> Table:
    """Each rate's loss after tuning runs, averaged over their seeds: what the rate is chosen by."""
    rates = sorted({run["learning_rate"] for arm in study.arms for run in arm["tuning"]})
    rows = []
    for arm in study.arms:
        at = {rate: "diverged" if mean is None else f"{mean:.4f}" for rate, mean, _ in tuned(arm)}
        rows.append([arm["name"], *(at.get(rate, "–") for rate in rates), number(arm["learning_rate"], ".3g"),
                     number(arm["learning_rate_sensitivity"], ".4f")])
    return ["activation", *(f"{rate:g}" for rate in rates), "chosen", "sensitivity"], rows


def layers(study: Study) -> Table:
    """Each layer's measures at the end of training, averaged over seeds."""
    rows = [[arm["name"], str(i), number(layer["gradient_rms"], ".3g"), number(layer["output_rms"], ".3g"),
             number(layer["dead_share"], ".2%"), number(layer["zero_output_share"], ".1%")]
            for arm in study.arms for i, layer in enumerate(arm["layers"], 1)]
    return ["activation", "layer", "gradient", "output", "dead units", "outputs exactly zero"], rows


def costs(study: Study) -> Table:
    """The cost of each arm."""
    rows = [[arm["name"], f"{arm['hidden']:,}", f"{arm['parameters']:,}",
             number(arm["parameters_relative_error"], "+.2%"), number(arm["flops_per_token"], ",.0f"),
             number(arm["timing"]["tokens_per_second"], ",.0f"),
             number((arm["timing"]["peak_memory_bytes"] or 0) / 2**20, ",.0f"),
             number(arm["sparsity"], ".1%"), number(arm["spike_score"], ".2%")] for arm in study.arms]
    return ["activation", "hidden width", "parameters", "from baseline", "FLOPs per token", "tokens per second",
            "memory, MB", "sparsity", "loss spikes"], rows


def quality(study: Study) -> Table:
    """Bits per byte beside the costs in which the arms differ."""
    shown = figures.differing_costs(study)
    rows = [[arm["name"], number(arm["bits_per_byte"], ".4f"),
             *(number(value(arm), form) for _, value, _, form in shown)] for arm in study.arms]
    return ["activation", "bits per byte", *(f"{name}, {unit}" for name, _, unit, _ in shown)], rows


TABLES = {"differences": differences, "paired": paired, "curves": curves, "recovery": recovery.table,
          "learning_rates": learning_rates, "layers": layers, "quality": quality, "costs": costs}
