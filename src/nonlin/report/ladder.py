"""The page of a ladder: one self-contained HTML file. The values of results.json in, no torch, no statistics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonlin.files import write_atomically, writing
from nonlin.report import ladder_figures
from nonlin.report.explorer import environment, with_its_scripts
from nonlin.report.ladder_terminal import TABLES, words
from nonlin.report.marks import Drawings
from nonlin.report.palette import paint


def build(directory: str | Path, results: Mapping[str, Any]) -> Path:
    """Write report.html and figures/ of a ladder into its folder, and return the page's path.

    ``results`` are made from the rungs' records (:func:`nonlin.load_ladder`), not read from results.json, which anybody
    may have edited.
    """
    directory = Path(directory)
    with writing(directory):
        return _build(directory, results)


def _build(directory: Path, results: Mapping[str, Any]) -> Path:
    target = directory / "figures"
    target.mkdir(exist_ok=True)
    slots = {name: p.slot for name, p in paint([arm["name"] for arm in results["plan"]["request"]["arms"]]).items()}
    drawn, drawings = {}, Drawings(slots)
    for name, (draw, title) in ladder_figures.FIGURES.items():
        if results["rates"] or name != "rates":
            drawn[name] = {"svg": drawings.inline(lambda draw=draw: draw(results), name, title, target), "title": title}
    tables = {name: make(results) for name, make in TABLES.items()}
    page = environment().get_template("ladder.html").render(
        results=results, figures=drawn, tables=tables, words=words(results)[:-1],
        slots=slots, figures_data=drawings.data(),
        target=ladder_figures.size_text(results["target"]),
        pages={row["name"]: f"rungs/{row['folder']}/report.html" for row in results["plan"]["rungs"]
               if (directory / "rungs" / row["folder"] / "report.html").exists()})
    path = directory / "report.html"
    write_atomically(path, with_its_scripts(page))
    return path
