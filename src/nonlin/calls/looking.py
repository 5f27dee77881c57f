"""Looking at what a folder of ours holds, at any moment: a study, a ladder, A/A studies."""

import time
from collections.abc import Iterator
from pathlib import Path

from nonlin.calls import calibration, ladder
from nonlin.calls.study import load_study
from nonlin.errors import not_empty
from nonlin.kinds import CALIBRATION, LADDER, kind_of
from nonlin.study.records import SeveralSnapshot, Snapshot
from nonlin.study.several import SeveralWatcher
from nonlin.study.snapshot import Watcher


def watch(directory: str | Path, *, seconds: float = 2.0) -> Iterator[Snapshot | SeveralSnapshot]:
    """Yield how far the study in a folder is, every few seconds while it runs, and once more when it has ended.

    A study that does not run is looked at once. Watching changes nothing there, and any process may do it. Of a ladder
    and of A/A studies it yields a :class:`~nonlin.study.records.SeveralSnapshot`. Raises UserError where the folder
    holds none of them.

    >>> from nonlin.study import Store, simulated
    >>> folder = getfixture("tmp_path") / "study"
    >>> Store(folder).create(simulated.plan(arms=2))
    >>> for now in watch(folder):
    ...     print(now.state, now.judging.done, "of", now.judging.total)
    stopped 0 of 16
    """
    not_empty("watch", directory=directory)
    watcher = watcher_of(directory)
    while True:
        now = watcher.look()
        yield now
        if now.state != "running":
            return
        time.sleep(seconds)


def watcher_of(directory: str | Path) -> Watcher | SeveralWatcher:
    """Return what looks at the thing in a folder."""
    kind = kind_of(directory)
    if kind == LADDER:
        return ladder.watcher_of(ladder.folder.load_ladder(directory))
    return calibration.watcher_of(Path(directory)) if kind == CALIBRATION else Watcher(directory)


def build_report(directory: str | Path) -> Path:
    """Write the page of a study, a ladder or A/A studies as of this moment, from its records; return its path."""
    not_empty("build_report", directory=directory)
    kind = kind_of(directory)
    if kind == LADDER:
        return ladder.load_ladder(directory).build_report()
    if kind == CALIBRATION:
        return calibration.build_report(Path(directory))
    from nonlin.report import build

    study = load_study(directory)
    page = build(study.folder)
    study.write_runs()
    return page
