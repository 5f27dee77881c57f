"""The page of a health record: one self-contained HTML file. The record in, no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nonlin.files import must_be_page, write_atomically, writing
from nonlin.numbers import counted, number, typeset
from nonlin.report.explorer import environment, with_its_scripts
from nonlin.report.health_figures import CELLS, FIGURES, MEASURES, TOLD
from nonlin.report.marks import Drawings
from nonlin.report.tables import Table

GRADES = ("serious", "warning", "info")


def blocks(record: Mapping[str, Any]) -> Table:
    """Every block's activation and measures."""
    known = [m for m in MEASURES if any(m[1](b) is not None for b in record["blocks"])]
    rows = [[str(b["index"]), b["name"] or "–", b["activation"]["computed"],
             *(number(value(b), form) for _, value, form, _ in known)] for b in record["blocks"]]
    return ["block", "module", "activation", *(name for name, *_ in known)], rows


def grouped(findings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the findings with those of one grade and measure, to which the same is to be done, as one, in order.

    >>> one = {"grade": "info", "measure": "massive", "text": "a.", "action": "Nothing."}
    >>> grouped([one, one | {"text": "b."}])
    [{'grade': 'info', 'action': 'Nothing.', 'texts': ['a.', 'b.']}]
    """
    groups: dict[tuple[str, str, str], list[str]] = {}
    for f in findings:
        groups.setdefault((f["grade"], f.get("measure", ""), typeset(f["action"])), []).append(typeset(f["text"]))
    return [{"grade": grade, "action": action, "texts": texts} for (grade, _, action), texts in groups.items()]


def sample(record: Mapping[str, Any]) -> str:
    """Return in words what a model was checked on.

    >>> sample({"tokens": 4096, "text": "a novel"}), sample({"tokens": 64, "text": "random tokens"})
    ('4,096 tokens of a novel', '64 random tokens')
    """
    count = f"{record['tokens']:,}"
    return f"{count} {record['text']}" if record["text"] == "random tokens" else (
        f"{count} tokens of {record['text'] or 'training'}")


def summary(record: Mapping[str, Any]) -> str:
    """Return the page's first sentence.

    >>> summary({"findings": []})
    'Nothing serious: no findings.'
    """
    counts = {grade: sum(f["grade"] == grade for f in record["findings"]) for grade in GRADES}
    parts = [counted(counts[g], name) for g, name in (
        ("serious", "serious finding"), ("warning", "warning"), ("info", "note")) if counts[g]]
    text = ", ".join(parts) or "no findings"
    return f"{text}." if counts["serious"] else f"Nothing serious: {text}."


def write(record: Mapping[str, Any], path: str | Path) -> Path:
    """Write the page of a record that ``nonlin check`` made, and return its path."""
    must_be_page("check", "the page's path", path)
    drawn: dict[str, dict[str, Any]] = {}
    drawings = Drawings({})
    for name, (draw, title, applies) in FIGURES.items():
        if applies(record):
            drawn[name] = {"svg": drawings.inline(
                lambda draw=draw: draw(record), name, title, cells=CELLS[name](record) if name in CELLS else None),
                "title": title, "told": TOLD[name](record) if name in TOLD else ""}
    header, rows = blocks(record)
    page = environment().get_template("health.html").render(
        record=record, figures=drawn, summary=summary(record), sample=sample(record),
        findings=grouped(record["findings"]), header=header, rows=rows, number=number, grades=GRADES,
        figures_data=drawings.data())
    path = Path(path)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, with_its_scripts(page))
    return path
