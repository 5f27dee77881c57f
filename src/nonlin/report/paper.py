r"""A study for a paper: its verdicts as a table for LaTeX, its figures as PDF, as wide as a column or a page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.text import Text

from nonlin.files import inside, replacing, write_atomically, writing
from nonlin.numbers import nothing, percent
from nonlin.report import figures, style
from nonlin.report.records import Study, read
from nonlin.study import StudyFolder

COLUMN_INCHES, PAGE_INCHES = 3.25, 6.75
"""The widths of one column and of both, in the usual styles of two columns."""

_LARGEST, _SMALLEST = 8.0, 6.0  # points, of the letters in a figure
_ON_A_PAGE = ("curves", "layers", "costs", "quality")  # drawings of two panels
_SPECIAL = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
            "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def write(folder: StudyFolder, inches: float = COLUMN_INCHES) -> list[Path]:
    """Write paper/verdicts.tex and paper/*.pdf for the study in a folder; return their paths.

    ``inches`` is the width of a column; drawings of two panels are as wide as two with their gap.
    """
    study = read(folder)
    target = folder.directory / "paper"
    with writing(folder.directory):
        inside(target)
        paths = [target / "verdicts.tex"]
        write_atomically(paths[0], table(study.results))
        if any(arm["judged"] for arm in study.arms):
            paths += [_draw(study, name, target, inches) for name, (_, _, applies) in figures.FIGURES.items()
                      if applies(study)]
    return paths


def _draw(study: Study, name: str, target: Path, inches: float) -> Path:
    width = inches * PAGE_INCHES / COLUMN_INCHES if name in _ON_A_PAGE else inches
    with style.settings(), matplotlib.rc_context({"pdf.fonttype": 42, "font.size": _LARGEST,
                                                  "axes.titlesize": _LARGEST, "lines.linewidth": 1.0}):
        figure = figures.FIGURES[name][0](study)
        drawn, height = figure.get_size_inches()
        figure.set_size_inches(width, height * max(width / drawn, 0.6))
        for text in figure.findobj(Text):
            text.set_fontsize(max(_SMALLEST, min(_LARGEST, float(text.get_fontsize()) * _LARGEST / 10)))
        style.label_axes(figure)
        style.repaint(figure)
        path = target / f"{name}.pdf"
        with replacing(path) as temporary:
            figure.savefig(temporary, format="pdf", facecolor="white", metadata={"CreationDate": None})
    return path


def table(results: Mapping[str, Any]) -> str:
    r"""Return the verdicts as a table for LaTeX with booktabs, the best first, the rule in its caption.

    >>> print(escaped("relu_squared"))
    relu\_squared
    """
    order = {name: i for i, name in enumerate(results["ranking"])}
    rule, data = results["rule"], results["data"]
    lines = [
        r"% \usepackage{booktabs}", r"\begin{table}", r"\centering", r"\small", r"\begin{tabular}{lrrrrl}", r"\toprule",
        r"activation & parameters & bits per byte & difference & " + escaped(percent(rule["confidence"]))
        + r" interval & verdict \\", r"\midrule"]
    lines += [_row(arm, results) for arm in sorted(results["arms"], key=lambda arm: order[arm["name"]])]
    runs = len({run["seed"] for arm in results["arms"] for run in arm["judged"]})
    text = escaped(str(data.get("description", "the text")))
    caption = (f"Held-out bits per byte on {text}: means over {runs} seeds (standard deviation), differences to "
               f"{escaped(results['baseline'])} on the same seeds, each activation at its own learning rate. "
               f"{escaped(rule['text'])}")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\label{tab:activations}",
                      r"\end{table}", ""])


def _row(arm: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    d, std = arm["difference"], arm["standard_deviation"]
    name = rf"\textbf{{{escaped(arm['name'])}}}" if arm["name"] == results["winner"] else escaped(arm["name"])
    bits = "--" if arm["bits_per_byte"] is None else f"{arm['bits_per_byte']:.4f}" + (
        f" ({std:.4f})" if std is not None else "")
    between = "--" if not d else "exactly 0" if nothing(d["low"], d["high"]) else (
        f"${d['low']:+.4f}$ to ${d['high']:+.4f}$")
    mean = "--" if not d else "$0$" if nothing(d["mean"]) else f"${d['mean']:+.4f}$"
    return " & ".join([name, f"{arm['parameters']:,}".replace(",", r"\,"), bits, mean, between,
                       arm["verdict"]]) + r" \\"


def escaped(text: str) -> str:
    """Return a text as LaTeX prints it, a minus and a dash as its own; letters that it may not know stay."""
    plain = "".join(_SPECIAL.get(letter, letter) for letter in text)
    return plain.replace("±", r"$\pm$").replace("≤", r"$\leq$").replace("×", r"$\times$").replace("−", "$-$")
