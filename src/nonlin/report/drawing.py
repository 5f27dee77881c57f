"""Every figure of a study: into a folder, and as pieces of its page."""

from pathlib import Path
from typing import Any

from nonlin.files import inside
from nonlin.report import figures, interactive, style, tables
from nonlin.report.marks import Drawings
from nonlin.report.palette import paint
from nonlin.report.records import Study


def drawn(study: Study, folder: Path) -> dict[str, dict[str, Any]]:
    """Write the study's figures into a folder as SVG and PNG; return them for the page, with their tables, by name."""
    inside(folder)
    found: dict[str, dict[str, Any]] = {}
    drawings = Drawings({name: p.slot for name, p in paint(figures.names(study)).items()})
    for name, (draw, title, applies) in figures.FIGURES.items():
        if applies(study):
            header, rows = tables.TABLES[name](study)
            known = name in interactive.PANELS  # its numbers come from the records, not from its marks
            inline = style.inline if known else drawings.inline
            found[name] = {"svg": inline(lambda draw=draw: draw(study), name, title, folder), "title": title,
                           "header": header, "rows": rows}
            if not known:
                found[name]["panels"] = drawings.panels[name]
    return found
