"""The page: one self-contained HTML file, readable offline, light and dark."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonlin.files import Unreadable, printable, read_json, write_atomically, writing
from nonlin.functions import Definition, define, get
from nonlin.letters import quoted
from nonlin.numbers import counted, interval, number
from nonlin.progress import span
from nonlin.report import drawing, explorer, figures, interactive, tables, terminal
from nonlin.report.palette import paint
from nonlin.report.records import Study, read
from nonlin.study import StudyFolder, load
from nonlin.study.advice import next_steps
from nonlin.study.records import Snapshot
from nonlin.study.snapshot import Watcher
from nonlin.study.verdict import calibration_text

REFRESH_SECONDS = 15  # between two loadings of the page of a study that runs
_WORDS = {"native_engine": "transformer kernels", "native_unavailable": "why no transformer kernels"}
_VERDICTS = ("better", "worse", "tie", "undecided", "baseline")


def build(directory: str | Path | StudyFolder) -> Path:
    """Write report.html and figures/ of the study in a folder, which may be read already; return the page's path.

    Every figure is in the page with its table, and beside it as SVG and PNG. The page of a study that runs, or was
    stopped, says how far it is and shows what is known. While it runs, the page loads itself anew. Raises UserError
    where the folder holds no study.
    """
    folder = directory if isinstance(directory, StudyFolder) else load(directory)
    with writing(folder.directory):
        study = read(folder)
        return write_page(folder, study, draw(folder, study), Watcher(folder.directory, folder.plan).look())


def draw(folder: StudyFolder, study: Study) -> dict[str, dict[str, Any]]:
    """Write the study's figures and return them with their tables, by name; none before the first run."""
    if not any(arm["judged"] or arm["tuning"] for arm in study.arms):
        return {}
    return drawing.drawn(study, folder.directory / "figures")


def write_page(folder: StudyFolder, study: Study, drawn: Mapping[str, Any], now: Snapshot) -> Path:
    """Write report.html with these figures, as of ``now``, and return its path.

    The activations to look at stand on it when the study has ended: a page that loads itself anew is none to play on.
    """
    values: dict[str, Any] = {"explorer_data": None}
    if now.state != "running":
        arms = _definitions(study)
        values = {"explorer_address": False, **explorer.values(arms, compared=[d.name for d in arms[1:]])}
    page = explorer.environment().get_template("report.html").render(
        study=study, results=study.results, figures=drawn, samples=_samples(folder),
        figures_data=interactive.data(study, {n: d["panels"] for n, d in drawn.items() if "panels" in d})
        if drawn else None, costs_words=figures.costs_words(study),
        slots={name: p.slot for name, p in paint(figures.names(study)).items()},
        number=number, interval=interval, digits=figures.digits(study), plan_text=folder.plan.describe(whole=True),
        verdicts=_VERDICTS,
        calibration=calibration_text(), now=now, refresh=REFRESH_SECONDS, written=time.strftime("%H:%M:%S"),
        pairs=tables.pairs(study), edges=list(terminal.edges(study.results)), environment_=_environment(study.results),
        following=next_steps(study.results, printable(str(folder.directory))),
        left=span(now.seconds_left or 0.0), in_flight=terminal.in_flight(now),
        directory=quoted(folder.directory),
        trials=[(arm["name"], run) for arm in study.arms for run in arm["judged"]], **values)
    page = explorer.with_its_scripts(page)
    path = folder.directory / "report.html"
    write_atomically(path, page)
    return path


def _definitions(study: Study) -> list[Definition]:
    found = [define(arm["name"], arm["formula"]) if arm["formula"] else get(arm.get("activation") or arm["name"])
             for arm in study.arms]
    return list({definition.name: definition for definition in found}.values())


def _environment(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a study ran on, in words: what was not there is left out."""
    found: list[tuple[str, str]] = []
    for key, value in results["environment"].items():
        name = _WORDS.get(key) or str(key).replace("_", " ")
        if isinstance(value, Mapping):
            value = f"{value['name']} ({', '.join(value['instructions'])})"
        if value not in (None, "", 0) or isinstance(value, bool):
            found.append((name, {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)))
    machine, plan = dict(results["plan"]["machine"]), results["plan"]
    made_on = machine.pop("made_on", None)
    settings = ", ".join(_setting(key, value) for key, value in machine.items())
    found.append(("settings", f"{settings}, {counted(plan['workers'], 'process', 'processes')}"))
    if made_on:
        found.append(("planned on", ", ".join(_setting(key, value) for key, value in made_on.items())))
    return found


def _setting(key: str, value: Any) -> str:
    """A machine's setting in words; the records' names of who computes are older than the words.

    >>> _setting("engine", "native"), _setting("engine", "torch"), _setting("threads", 1), _setting("graphs", True)
    ('by the transformer kernels', 'by torch', 'threads 1', 'steps captured as CUDA graphs')
    """
    if key == "graphs" and value is True:
        return "steps captured as CUDA graphs"
    if key == "not captured":
        return f"steps launched one by one, since their capture as CUDA graphs raised {value}"
    if key == "engine":
        return "by the transformer kernels" if value == "native" else f"by {value}"
    return f"{key.replace('_', ' ')} {value}"


def _samples(folder: StudyFolder) -> dict[str, Any] | None:
    try:
        found = read_json(folder.directory / "samples.json")
        return {"prompt": str(found["prompt"]), "texts": {k: str(v) for k, v in found["texts"].items()}}
    except (Unreadable, KeyError, TypeError, AttributeError):
        return None  # an interrupted study has none; the page says so
