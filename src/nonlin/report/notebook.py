"""A study in a notebook: the verdict table and the curves, as one piece of HTML that needs nothing else."""

from html import escape

from nonlin.report import figures, palette, style, tables
from nonlin.report.records import read
from nonlin.report.terminal import reasons
from nonlin.study import StudyFolder

_COLOURS = "--ink:currentColor;--muted:currentColor;--grid:rgba(128,128,128,.35);--paper:transparent"
_CURVES = "Training loss against tokens"


def html(folder: StudyFolder) -> str:
    """Return the study's verdicts, and the curves of its judged runs where there are some; colours are the page's."""
    results = folder.results
    study = read(folder)
    header, rows = tables.differences(study)
    parts = [f"<p><b>{escape(results['name'])}</b>: {escape(results['headline'] or results['advice'])}</p>",
             table(header, rows)]
    if results["pairs"]:
        parts += ["<p>The better ones with each other:</p>", table(*tables.pairs(study))]
    parts += [f"<p>{escape(line)}</p>" for line in (*reasons(results), results["advice"], *results["remarks"])]
    if any(curve.tokens for curve in study.curves):
        with style.settings():
            # Several studies may lie in one notebook: a drawing's ids are its own.
            slots = {name: p.slot for name, p in palette.paint(figures.names(study)).items()}
            parts.append(f"<style>{palette.variables(slots)}</style>")
            parts.append(style.inline_svg(figures.curves(study), f"curves-{folder.plan.hash}", _CURVES))
    return f'<div style="max-width:60em;{_COLOURS}">{"".join(parts)}</div>'


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table of text as HTML."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
