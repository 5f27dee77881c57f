"""The page of a ladder: one self-contained HTML file. The values of results.json in, no torch, no statistics."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonlin.files import inside, write_atomically, writing
from nonlin.letters import quoted
from nonlin.progress import span
from nonlin.report import ladder_figures, terminal
from nonlin.report.explorer import environment, with_its_scripts
from nonlin.report.ladder_terminal import TABLES, words
from nonlin.report.live import Drawn
from nonlin.report.marks import Drawings
from nonlin.report.page import REFRESH_SECONDS
from nonlin.report.palette import paint
from nonlin.study.records import SeveralSnapshot


def build(directory: str | Path, results: Mapping[str, Any], now: SeveralSnapshot) -> Path:
    """Write report.html and figures/ of a ladder into its folder as of ``now``, and return the page's path.

    ``results`` are made from the rungs' records (:func:`nonlin.load_ladder`), not read from results.json, which anybody
    may have edited.
    """
    directory = Path(directory)
    with writing(directory):
        return write_page(directory, results, draw(directory, results), now)


def draw(directory: Path, results: Mapping[str, Any]) -> Drawn:
    """Write the ladder's figures and return them; none before the first rung is complete."""
    if not results["rungs"]:
        return {}, None
    target = inside(directory / "figures")
    drawn, drawings = {}, Drawings(_slots(results))
    for name, (make, title) in ladder_figures.FIGURES.items():
        if results["rates"] or name != "rates":
            drawn[name] = {"svg": drawings.inline(lambda make=make: make(results), name, title, target), "title": title}
    return drawn, drawings.data()


def write_page(directory: Path, results: Mapping[str, Any], drawn: Drawn, now: SeveralSnapshot) -> Path:
    """Write report.html with these figures, as of ``now``, and return its path."""
    figures, data = drawn
    tables = {name: make(results) for name, make in TABLES.items()}
    page = environment().get_template("ladder.html").render(
        results=results, figures=figures, tables=tables, words=words(results)[:-1], slots=_slots(results),
        figures_data=data, target=ladder_figures.size_text(results["target"]), **moment(directory, now),
        pages={row["name"]: f"rungs/{row['folder']}/report.html" for row in results["plan"]["rungs"]
               if (directory / "rungs" / row["folder"] / "report.html").exists()})
    path = directory / "report.html"
    write_atomically(path, with_its_scripts(page))
    return path


def moment(directory: Path, now: SeveralSnapshot) -> dict[str, Any]:
    """Return what the part several.html says of a page's moment."""
    return {"now": now, "refresh": REFRESH_SECONDS, "written": time.strftime("%H:%M:%S"),
            "left": span(now.seconds_left),
            "directory": quoted(directory), "in_flight": terminal.in_flight(now.current) if now.current else ""}


def _slots(results: Mapping[str, Any]) -> dict[str, int]:
    return {name: p.slot for name, p in paint([arm["name"] for arm in results["plan"]["request"]["arms"]]).items()}
