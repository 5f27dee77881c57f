"""How far a study is, read from its folder at any moment, by any process: while it runs, stopped, complete."""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonlin.errors import UserError
from nonlin.files import Unreadable, finite, lock, read_json
from nonlin.study.folder import plan_in
from nonlin.study.plan import Plan
from nonlin.study.records import Count, InFlight, RankedArm, Snapshot
from nonlin.study.results import ranking
from nonlin.study.schedule import Schedule
from nonlin.study.store import DamagedRecord, Store

PROGRESS = "progress.json"  # the runs in flight, of the process that runs the study; gone when it ends
_SECONDS = 2.0  # between two writings of it


class Pulse:
    """Writes what the study's other files do not say: the runs in flight and the time left.

    A folder that cannot be written costs the study nothing here: the records will say so.
    """

    def __init__(self, directory: Path):
        self.path, self.written = directory / PROGRESS, 0.0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Write an event, unless another was written a moment ago."""
        if time.monotonic() - self.written < _SECONDS:
            return
        temporary = self.path.with_name(f".{PROGRESS}.tmp")
        with contextlib.suppress(OSError):  # not synced: nothing is lost with it
            temporary.unlink(missing_ok=True)  # a link there would be written through
            temporary.write_text(json.dumps(finite(event)) + "\n")
            os.replace(temporary, self.path)
        self.written = time.monotonic()

    def end(self) -> None:
        """Remove the file: nothing runs any more."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def is_running(directory: str | Path) -> bool:
    """Return whether a process of this machine runs the study in a folder: it holds the folder's lock."""
    path = Path(directory) / ".lock"
    try:
        if not path.is_file():
            return False
        with lock(path) as ours:
            return not ours
    except OSError:
        return False  # a folder that we may only read


class Watcher:
    """Looks at a study again and again: a record that was read once is not read anew."""

    def __init__(self, directory: str | Path, plan: Plan | None = None):
        self.directory = Path(directory)
        self.plan = plan or plan_in(directory)
        self.store = Store(self.directory)
        self.records: dict[str, dict[str, Any]] = {}

    def look(self) -> Snapshot:
        """Return how far the study is now."""
        running = is_running(self.directory)  # before the records: a study that ends meanwhile is looked at again
        for key in self.store.hashes():
            if key not in self.records:
                with contextlib.suppress(DamagedRecord):
                    self.records[key] = self.store.read(key)[1]
        found = snapshot(self.plan, self.records, running, self._told() if running else InFlight())
        return found if running or self.records else self._copied() or found

    def _copied(self) -> Snapshot | None:
        """Return the end of a study whose results were copied without their runs; None of any other."""
        from nonlin.study.folder import load

        results = load(self.directory).results
        if results["status"] != "complete":
            return None
        arms = {arm["name"]: arm for arm in results["arms"]}
        tuned, judged = (sum(len(arm[kind]) for arm in arms.values()) for kind in ("tuning", "judged"))
        return Snapshot(
            name=self.plan.name, state="complete", tuning=Count(done=tuned, total=tuned),
            judging=Count(done=judged, total=judged), seconds_left=0.0, running=[],
            ranking=[RankedArm(name=name, bits_per_byte=arms[name]["bits_per_byte"], seeds=len(arms[name]["judged"]))
                     for name in results["ranking"]])

    def _told(self) -> InFlight:
        try:
            return InFlight.from_dict(read_json(self.directory / PROGRESS), PROGRESS)
        except (Unreadable, UserError):
            return InFlight()  # it began a moment ago


def snapshot(plan: Plan, records: Mapping[str, Mapping[str, Any]], running: bool, told: InFlight) -> Snapshot:
    """Return how far a plan is with these records; ``told`` is what the process that runs it says."""
    schedule = replay(plan, records)
    counts = {stage: schedule.counts(stage) for stage in ("tune", "judge")}
    complete = not schedule.missing
    total, longest = schedule.seconds()
    left = max(total / max(1, plan.workers), longest) if told.seconds_left is None else told.seconds_left
    return Snapshot(
        name=plan.name, state="running" if running else "complete" if complete else "stopped",
        tuning=Count(done=counts["tune"][0], total=counts["tune"][1]),
        judging=Count(done=counts["judge"][0], total=counts["judge"][1]),
        seconds_left=0.0 if complete else left, running=told.running,
        ranking=[RankedArm(**row) for row in ranking(plan, schedule.records)])


def replay(plan: Plan, records: Mapping[str, Mapping[str, Any]]) -> Schedule:
    """Return the schedule of a plan that has taken in all its records."""
    schedule = Schedule(plan)
    waiting = list(schedule.first)
    while waiting:
        trial = waiting.pop()
        if trial.key in records:
            waiting += schedule.add(trial.key, records[trial.key])
    return schedule
