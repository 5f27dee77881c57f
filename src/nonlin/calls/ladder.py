"""A ladder as an object: what ``nonlin.ladder`` and ``nonlin.load_ladder`` return."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonlin.calls.study import Study, load_study
from nonlin.errors import UserError, rule
from nonlin.files import finite
from nonlin.kinds import LADDER
from nonlin.ladder import design, folder, forecast, results
from nonlin.ladder.folder import LadderFolder
from nonlin.ladder.plan import LadderPlan
from nonlin.ladder.rates import RULES, Rule
from nonlin.study.several import SeveralWatcher


@dataclass(frozen=True, repr=False)
class Ladder:
    """A ladder of sizes: its rungs, its forecasts, its page. It reads the ladder's folder and changes nothing there
    but the page.
    """

    folder: LadderFolder
    results: Mapping[str, Any]

    @property
    def directory(self) -> Path:
        """The ladder's folder."""
        return self.folder.directory

    @property
    def plan(self) -> LadderPlan:
        """The rungs, the rule and the machine, fixed before the first run."""
        return self.folder.plan

    @property
    def status(self) -> str:
        """Return "complete", or "partial" where rungs are missing."""
        return self.results["status"]

    @property
    def rungs(self) -> dict[str, Study]:
        """The study of each rung that has begun, by the rung's name."""
        return {one.name: load_study(self.directory / folder.RUNGS / name) for one, name in self.plan.ordered()
                if self.folder.study(name) is not None}

    @property
    def forecast(self) -> dict[str, forecast.ArmForecast]:
        """The last forecast at the target, by activation; empty before there is one."""
        return {row["arm"]: forecast.ArmForecast.from_dict(row) for row in self.results["verdicts"]}

    @property
    def report(self) -> Path:
        """The ladder's page."""
        path = self.directory / "report.html"
        return path if path.exists() else self.build_report()

    def build_report(self, ended: bool = False) -> Path:
        """Write the ladder's page as of this moment, and return its path.

        ``ended`` is for the process that runs the ladder and is about to leave it.
        """
        from nonlin.report.ladder import build

        return build(self.directory, self.results, watcher_of(self.folder).look(ended))

    def __repr__(self) -> str:
        from nonlin.report.ladder_terminal import text

        return f"{text(self.results)}\nLadder in {self.directory} ({self.status})"


def load_ladder(directory: str | Path) -> Ladder:
    """Return the ladder that lies in a folder, judged as far as its runs go; UserError where there is none."""
    return ladder_of(folder.load_ladder(directory))


def watcher_of(there: LadderFolder) -> SeveralWatcher:
    """Return what looks how far a ladder is."""
    made = there.plan
    seconds, settings = results.seconds_of(made.timing), made.steady
    return SeveralWatcher(there.directory, LADDER, {
        there.directory / folder.RUNGS / name:
            60 * design.rung_minutes(one, seconds, settings, len(made.arms), made.workers)
        for one, name in made.ordered()})


def ladder_of(there: LadderFolder) -> Ladder:
    finished = there.finished()
    status = "complete" if len(finished) == len(there.plan.rungs) else "partial"
    transfer = transfer_of(there.plan.transfer["name"])
    return Ladder(there, finite(results.results(there.plan, finished, there.forecasts(), transfer, status)))


def transfer_of(name: str) -> Rule:
    """Return the rule of transfer of this name."""
    if name not in RULES:
        raise UserError(rule("ladder", "transfer", f"be one of {', '.join(RULES)}", name, "Choose one of them."))
    return RULES[name]
