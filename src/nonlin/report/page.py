"""The page: one self-contained HTML file, readable offline, light and dark."""

from pathlib import Path
from typing import Any

from nonlin.errors import UserError
from nonlin.files import Unreadable, read_json, write_atomically, writing
from nonlin.functions import Definition, define, get
from nonlin.report import explorer, figures, style, tables
from nonlin.report.records import Study, read
from nonlin.study import StudyFolder, load
from nonlin.study.verdict import calibration_text

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
    with writing(folder.directory):
        return _build(folder)


def _build(folder: StudyFolder) -> Path:
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
    arms = _definitions(study)
    page = explorer.with_its_script(explorer.environment().get_template("report.html").render(
        study=study, results=study.results, figures=drawn, samples=_samples(folder),
        number=tables.number, plan_text=folder.plan.describe(), verdicts=_VERDICTS,
        calibration=calibration_text(),
        trials=[(arm["name"], run) for arm in study.arms for run in arm["judged"]],
        explorer_address=False, **explorer.values(arms, compared=[d.name for d in arms[1:]])))
    path = folder.directory / "report.html"
    write_atomically(path, page)
    return path


def _definitions(study: Study) -> list[Definition]:
    found = [define(arm["name"], arm["formula"]) if arm["formula"] else get(arm.get("activation") or arm["name"])
             for arm in study.arms]
    return list({definition.name: definition for definition in found}.values())


def _samples(folder: StudyFolder) -> dict[str, Any] | None:
    try:
        found = read_json(folder.directory / "samples.json")
        return {"prompt": str(found["prompt"]), "texts": {k: str(v) for k, v in found["texts"].items()}}
    except (Unreadable, KeyError, TypeError, AttributeError):
        return None  # an interrupted study has none; the page says so
