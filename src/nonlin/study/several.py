"""How far the studies of one folder are, which run one after another: a ladder's rungs, A/A studies."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from nonlin.kinds import CALIBRATION, LADDER
from nonlin.study.records import Count, SeveralSnapshot, Snapshot
from nonlin.study.snapshot import Watcher, is_running

_KINDS: dict[str, Literal["a ladder", "A/A studies"]] = {LADDER: "a ladder", CALIBRATION: "A/A studies"}


class SeveralWatcher:
    """Looks at several studies again and again: one that is complete is not read anew.

    ``seconds`` has the predicted time of each study by its folder, in the order in which they run.
    """

    def __init__(self, directory: str | Path, kind: str, seconds: Mapping[Path, float]):
        self.directory, self.kind, self.seconds = Path(directory), kind, seconds
        self._watchers: dict[Path, Watcher] = {}
        self._complete: set[Path] = set()

    def look(self, ended: bool = False) -> SeveralSnapshot:
        """Return how far the studies are now; ``ended`` for a caller that holds the folder and is about to leave it."""
        running = not ended and is_running(self.directory)  # before the studies: one may end meanwhile
        current, left = None, 0.0
        for folder, seconds in self.seconds.items():
            now = self._look_at(folder)
            if now is None:
                left += seconds if folder not in self._complete else 0.0
            else:
                left += now.seconds_left or 0.0
                current = now if current is None or now.state == "running" else current
        done = len(self._complete)
        return SeveralSnapshot(
            name=self.directory.resolve().name, kind=_KINDS[self.kind],
            state="running" if running else "complete" if done == len(self.seconds) else "stopped",
            studies=Count(done=done, total=len(self.seconds)), seconds_left=left, current=current)

    def _look_at(self, folder: Path) -> Snapshot | None:
        """Return how far a study is; None before its plan is there, and when it is complete."""
        if folder in self._complete or not os.path.lexists(folder / "plan.json"):
            return None
        if folder not in self._watchers:
            self._watchers[folder] = Watcher(folder)
        now = self._watchers[folder].look()
        if now.state != "complete":
            return now
        self._complete.add(folder)
        del self._watchers[folder]
        return None
