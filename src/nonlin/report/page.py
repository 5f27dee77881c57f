"""The page: one self-contained HTML file, readable offline, light and dark."""

import json
from pathlib import Path
from typing import Any

import jinja2

from nonlin.errors import UserError
from nonlin.functions import define, get
from nonlin.report import figures, style, tables
from nonlin.report.records import Study, read
from nonlin.study import StudyFolder, load
from nonlin.study.store import write_atomically

_VERDICTS = ("better", "worse", "tie", "undecided", "baseline")


def build(directory: str | Path) -> Path:
    """Write report.html and figures/ of the study in a folder, and return the page's path.

    Every figure is in the page with its table, and beside it as SVG and PNG. Raises UserError where the folder
    holds no study, or one without results.
    """
    folder = load(directory)
    if folder.results is None:
        raise UserError(f"report: {directory} must hold a study with results; it has none yet. "
                        f"Continue it: nonlin compare --resume --out {directory}")
    study = read(folder)
    target = folder.directory / "figures"
    target.mkdir(exist_ok=True)
    drawn: dict[str, dict[str, Any]] = {}
    with style.settings():
        for name, (draw, title) in figures.FIGURES.items():
            figure = draw(study)
            header, rows = tables.TABLES[name](study)
            drawn[name] = {"svg": style.inline_svg(figure, name, title), "title": title, "header": header,
                           "rows": rows}
            style.write_files(figure, target, name)
    page = environment().get_template("report.html").render(
        study=study, results=study.results, figures=drawn, formulas=_formulas(study), samples=_samples(folder),
        number=tables.number, plan_text=folder.plan.describe(), verdicts=_VERDICTS,
        trials=[(arm["name"], run) for arm in study.arms for run in arm["judged"]])
    path = folder.directory / "report.html"
    write_atomically(path, page)
    return path


def environment(*packages: str) -> jinja2.Environment:
    """Return the environment of our pages' templates: the report's, and those of other packages."""
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (*packages, "nonlin.report")])
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True,
                              undefined=jinja2.StrictUndefined)


def _formulas(study: Study) -> dict[str, str]:
    found = {}
    for arm in study.arms:
        definition = define(arm["name"], arm["formula"]) if arm["formula"] else get(arm["name"])
        found[arm["name"]] = definition.formula
    return found


def _samples(folder: StudyFolder) -> dict[str, Any] | None:
    try:
        return json.loads((folder.directory / "samples.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # an interrupted study has none; the page says so
