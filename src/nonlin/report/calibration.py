"""The page of A/A studies: one self-contained HTML file. Their differences in, no torch, no statistics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nonlin.files import inside, write_atomically, writing
from nonlin.numbers import number, places
from nonlin.report.explorer import environment, with_its_scripts
from nonlin.report.ladder import moment
from nonlin.report.live import Drawn
from nonlin.report.marks import Drawings
from nonlin.report.style import INK, MUTED, new_figure
from nonlin.report.tables import Table
from nonlin.study.records import SeveralSnapshot

_TITLE = "Differences between equal activations"
_FALSE = ("better", "worse")


def build(directory: Path, results: Mapping[str, Any], now: SeveralSnapshot) -> Path:
    """Write report.html and figures/ of A/A studies into their folder as of ``now``, and return the page's path."""
    with writing(directory):
        return write_page(directory, results, draw(directory, results), now)


def draw(directory: Path, results: Mapping[str, Any]) -> Drawn:
    """Write the figure and return it; none before the first study is complete."""
    if not results["results"]:
        return {}, None
    target = inside(directory / "figures")
    drawings = Drawings({})
    svg = drawings.inline(lambda: differences(results), "differences", _TITLE, target)
    return {"differences": {"svg": svg, "title": _TITLE}}, drawings.data()


def write_page(directory: Path, results: Mapping[str, Any], drawn: Drawn, now: SeveralSnapshot) -> Path:
    """Write report.html with this figure, as of ``now``, and return its path."""
    figures, data = drawn
    page = environment().get_template("calibration.html").render(
        results=results, figures=figures, figures_data=data, table_=studies(results), **moment(directory, now))
    path = directory / "report.html"
    write_atomically(path, with_its_scripts(page))
    return path


def differences(results: Mapping[str, Any]) -> Figure:
    """Every arm's difference to its equal, study by study; those with a false verdict are drawn in ink."""
    figure = new_figure(3.2)
    axes = figure.subplots()
    axes.axhline(0, color=MUTED, lw=1)
    for is_false, colour, size in ((False, MUTED, 4), (True, INK, 8)):
        points = [(i, mean) for i, row in enumerate(results["results"], 1) for arm, mean in row["differences"].items()
                  if mean is not None and (row["verdicts"][arm] in _FALSE) == is_false]
        if points:
            axes.plot(*zip(*points, strict=True), "D" if is_false else "o", color=colour, ms=size, lw=0,
                      label="a false verdict" if is_false else "a difference")
    axes.set_xlim(0.5, len(results["results"]) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("A/A study")
    axes.set_ylabel("bits per byte less the baseline's")
    figure.legend(loc="outside upper left", ncols=2, fontsize=8)
    return figure


def studies(results: Mapping[str, Any]) -> Table:
    """Each study's verdict, and the arm that differs most from its equal with its corrected p-value."""
    rows = []
    digits = places([results["half_width"]])
    for row in results["results"]:
        known = {arm: mean for arm, mean in row["differences"].items() if mean is not None}
        most = max(known, key=lambda arm: abs(known[arm]), default=None)
        told = [f"{arm} {verdict}" for arm, verdict in row["verdicts"].items() if verdict in _FALSE]
        rows.append([row["name"], ", ".join(told) or "none", most or "–",
                     number(known.get(most or ""), f"+.{digits}f"), number(row["p_values"].get(most), ".2g")])
    return ["study", "false verdicts", "differs most", "by, bits per byte", "p, corrected"], rows
