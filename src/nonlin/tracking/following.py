"""Follow a study while it runs: every finished run goes to the trackers, once, from a thread beside the runs."""

import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nonlin.errors import NonlinError, told
from nonlin.files import Unreadable, inside, read_json, write_json
from nonlin.study import load
from nonlin.tracking.records import Tracker, tracked_run, verdicts_of

_SECONDS = 2.0  # between two looks for finished runs


class Following:
    """Logs a study's finished runs to trackers while a block runs, and what is left at its end.

    ``tracking/NAME.json`` in the study's folder says which runs were logged: a study that goes on logs none again.
    A tracker that fails is said once, with its reason, and left; the study goes on, and its next call tries again.
    """

    def __init__(self, directory: Path, trackers: Sequence[str], say: Callable[[str], None]):
        self.directory, self.say = directory, say
        self._followed = [_Followed(name, directory) for name in trackers]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def __enter__(self) -> "Following":
        if self._followed:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._followed:
            self._thread.join()

    def _work(self) -> None:
        """Look for runs until the block has ended, then once more; all calls of a tracker are in this thread."""
        while True:
            last = self._ended.wait(_SECONDS)
            for one in self._followed:
                self._try(one, last)
            if last:
                return

    def _try(self, one: "_Followed", last: bool) -> None:
        if one.failed:
            return
        try:
            one.look()
            if last and (where := one.close()):
                self.say(f"{one.name}: {where}")
        except BaseException as error:  # another's code, which may end in SystemExit too: the study must go on
            one.failed = True
            self.say(f"Tracking by {one.name} failed, and the study goes on without it: {told(error)}. "
                     f"The same call continues; every run is in {self.directory}.")


class _Followed:
    """A tracker, opened at the first run, and the runs that it knows."""

    def __init__(self, name: str, directory: Path):
        self.name, self.directory, self.failed = name, directory, False
        self.path = directory / "tracking" / f"{name}.json"
        self.tracker: Tracker | None = None
        self.logged = _known(self.path)

    def look(self) -> None:
        """Log the runs, and the verdicts of a complete study, that are not yet logged."""
        try:
            folder = load(self.directory)
        except NonlinError:  # no plan yet
            return
        for path in sorted((self.directory / "trials").glob("*")):
            if path.name not in self.logged and (path / "result.json").exists():
                try:
                    run = tracked_run(folder, path.name)
                except NonlinError:  # damaged: the study runs it again
                    continue
                self._open(folder.plan.name).run(run)
                self._note(path.name)
        results: Mapping[str, Any] = folder.results or {}
        if results.get("status") == "complete":
            verdicts = verdicts_of(results)
            if f"verdicts {verdicts.key}" not in self.logged:  # a study that has grown has others
                self._open(folder.plan.name).verdicts(verdicts)
                self._note(f"verdicts {verdicts.key}")

    def close(self) -> str:
        """Let go of the tracker; return where it all lies, empty where nothing was logged now."""
        return "" if self.tracker is None else self.tracker.close()

    def _open(self, study: str) -> Tracker:
        if self.tracker is None:
            inside(self.path.parent)
            module = importlib.import_module(f"nonlin.tracking.to_{self.name}")
            self.tracker = module.open_tracker(study, self.directory)
        assert self.tracker is not None
        return self.tracker

    def _note(self, key: str) -> None:
        self.logged.append(key)
        write_json(self.path, self.logged)


def _known(path: Path) -> list[str]:
    try:
        found = read_json(path)
    except Unreadable:
        return []
    return [str(key) for key in found] if isinstance(found, list) else []
