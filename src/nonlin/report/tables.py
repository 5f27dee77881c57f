"""The tables behind the figures: (header, rows) of text."""

from nonlin.report.records import Study, tuned

Table = tuple[list[str], list[list[str]]]


def number(value: float | None, form: str = "") -> str:
    """Return a number as text, a dash where there is none; thousands to three digits in full, not as a power of ten.

    >>> number(0.5, ".2f"), number(None), number(3065.4, ".3g")
    ('0.50', '–', '3,070')
    """
    if value is None:
        return "–"
    text = format(value, form)
    return f"{float(text):,.0f}" if form == ".3g" and 1000 <= abs(value) < 1e7 else text


def differences(study: Study) -> Table:
    """Each arm's paired difference, interval, corrected p-value and standard std over seeds."""
    rows = []
    for arm in study.arms:
        d = arm["difference"] or {}
        rows.append([arm["name"], number(arm["bits_per_byte"], ".5f"), number(arm["standard_deviation"], ".5f"),
                     number(d.get("mean"), "+.5f"), number(d.get("low"), "+.5f"), number(d.get("high"), "+.5f"),
                     number(d.get("p_value"), ".2g"), arm["verdict"]])
    return ["activation", "bits per byte", "std over seeds", "difference", "low", "high", "p, corrected",
            "verdict"], rows


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
    rows = [[arm["name"], f"{arm['hidden']:,}", f"{arm['parameters']:,}", f"{arm['parameters_relative_error']:+.2%}",
             number(arm["flops_per_token"], ",.0f"), number(arm["timing"]["tokens_per_second"], ",.0f"),
             number((arm["timing"]["peak_memory_bytes"] or 0) / 2**20, ",.0f"),
             number(arm["sparsity"], ".1%"), number(arm["spike_score"], ".2%")] for arm in study.arms]
    return ["activation", "hidden width", "parameters", "from baseline", "FLOPs per token", "tokens per second",
            "memory, MB", "sparsity", "loss spikes"], rows


TABLES = {"differences": differences, "curves": curves, "learning_rates": learning_rates, "layers": layers,
          "costs": costs}
