"""A ladder on disk: plan.json, a study a rung under rungs/, numbered forecasts that are never changed, results.json."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonlin.errors import UserError
from nonlin.files import Unreadable, finite, inside, read_json, write_json
from nonlin.kinds import LADDER, must_be, must_hold
from nonlin.ladder.design import Rung
from nonlin.ladder.plan import LadderPlan
from nonlin.ladder.points import Finished
from nonlin.ladder.wellformed import must_be_forecast
from nonlin.study import StudyFolder, load
from nonlin.study.store import Store
from nonlin.study.wellformed import BadForm

RESULTS, FORECASTS, RUNGS, PLANS, TRUNKS = "results.json", "forecasts", "rungs", "plans", "trunks"


@dataclass(frozen=True)
class LadderFolder:
    """A ladder on disk."""

    directory: Path
    plan: LadderPlan

    def study(self, folder: str) -> StudyFolder | None:
        """Return the study of a rung; None before it began."""
        path = self.directory / RUNGS / folder
        return load(path) if os.path.lexists(path / "plan.json") else None

    def finished(self) -> list[Finished]:
        """Return the rungs whose every run is there, with their results, in the order of the plan."""
        found = []
        for one, folder in self.plan.ordered():
            study = self.study(folder)
            if study is not None and study.results is not None and study.results["status"] == "complete":
                found.append((one, study.results))
        return found

    def begun(self, one: Rung) -> bool:
        """Whether a rung has a run, of whatever number of seeds."""
        rungs = self.directory / RUNGS
        return any(any(rungs.glob(f"{folder}/trials/*")) for folder in (one.name, f"{one.name}-seeds-*"))

    def forecasts(self) -> list[dict[str, Any]]:
        """Return the forecasts that were written down, the first one first; UserError where one is damaged."""
        folder = self.directory / FORECASTS
        paths = sorted(folder.glob("[0-9]*.json")) if folder.is_dir() else []
        try:
            found = [read_json(path) for path in paths]
            for made in found:
                must_be_forecast(made)
            return [made | {"file": f"{FORECASTS}/{path.name}"} for made, path in zip(found, paths, strict=True)]
        except (Unreadable, BadForm) as problem:
            raise UserError(f"{folder} must hold the forecasts as they were written; {problem}. Restore the file, or "
                            "start in another folder.") from problem

    def add_forecast(self, made: Mapping[str, Any]) -> Path:
        """Write a forecast under the next number, and return its path."""
        folder = inside(self.directory / FORECASTS)
        path = folder / next_name(folder)
        write_json(path, finite(dict(made)))
        return path

    def results(self) -> dict[str, Any] | None:
        """Return results.json; None where there is none."""
        try:
            return read_json(self.directory / RESULTS)
        except Unreadable:
            return None


def plan_of(directory: Path) -> LadderPlan | None:
    """Return the ladder's plan in a folder; None where there is none. UserError where it holds something else."""
    must_hold(directory, LADDER)
    path = directory / "plan.json"
    if not os.path.lexists(path):
        return None
    try:
        values = read_json(path)
    except Unreadable:
        values = {}
    return LadderPlan.from_dict(values if isinstance(values, dict) else {})


def load_ladder(directory: str | Path) -> LadderFolder:
    """Return the ladder in a folder; UserError where there is none."""
    must_be(directory, LADDER)
    plan = plan_of(Path(directory))
    assert plan is not None
    return LadderFolder(Path(directory), plan)


def next_name(folder: Path) -> str:
    """Return the name of the next numbered file: above all that are there, so that none is ever written over."""
    numbers = [int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal()]
    return f"{max(numbers, default=0) + 1:04d}.json"


def keep_plan(directory: Path, plan: LadderPlan) -> None:
    """Write a plan; one that it extends stays under plans/."""
    old = plan_of(directory)
    if old is not None and old.hash != plan.hash:
        kept = inside(directory / PLANS)
        write_json(kept / next_name(kept), old.as_dict())
    write_json(directory / "plan.json", plan.as_dict())


def store_of(directory: Path) -> Store:
    """Return the store of the ladder's folder: its lock, and the check that nothing else lies there."""
    return Store(directory, LadderPlan)
