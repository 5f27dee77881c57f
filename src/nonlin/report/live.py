"""Pages while their studies run: there from the first moment, and kept up to date beside the runs."""

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from nonlin.errors import NonlinError
from nonlin.files import writing
from nonlin.study import load
from nonlin.study.records import SeveralSnapshot
from nonlin.study.several import SeveralWatcher
from nonlin.study.snapshot import Watcher

#: The figures of a page by name, and the JSON of their marks.
Drawn = tuple[dict[str, Any], Any]

_SECONDS = 15.0  # between two pages
_SHARE = 0.03  # of the time, at most, goes into drawing figures


class _Live(ABC):
    """Writes a page anew every moment while a block runs, in a thread, and once at its end.

    A page that cannot be written costs the runs nothing.
    """

    def __init__(self):
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="page", daemon=True)
        self._drawn_at, self._draw_again = 0, 0.0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._try(ended=True)

    def _work(self) -> None:
        while not self._ended.is_set():
            self._try()
            self._ended.wait(_SECONDS)

    def _try(self, ended: bool = False) -> None:
        with contextlib.suppress(NonlinError, OSError):
            self._write(ended)

    @abstractmethod
    def _write(self, ended: bool) -> None:
        """Write the page; ``ended``: the block has."""

    def _drawing(self, done: int, ended: bool, draw: Callable[[], Any], drawn: Any) -> Any:
        """Return the figures, drawn again where more is done and drawing may take its share of the time."""
        if done <= self._drawn_at or not (ended or time.monotonic() >= self._draw_again):
            return drawn
        began = time.monotonic()
        drawn = draw()
        self._drawn_at = done
        self._draw_again = time.monotonic() + (time.monotonic() - began) / _SHARE
        return drawn


class LivePage(_Live):
    """Writes the study's page while it runs; at the block's end, that of a stopped study.

    The page of a study that is complete is left to whoever finishes it.
    """

    def __init__(self, directory: Path):
        super().__init__()
        self.directory = directory
        self._figures: dict[str, Any] = {}

    def _write(self, ended: bool) -> None:
        from nonlin.report import page  # here, so that the runs need not wait for the library that draws
        from nonlin.report.records import read

        folder = load(self.directory)
        now = Watcher(self.directory, folder.plan).look()
        if now.state == "complete" or (now.state == "running" and ended):
            return
        study = read(folder)
        with writing(self.directory):
            done = now.tuning.done + now.judging.done
            self._figures = self._drawing(done, ended, lambda: page.draw(folder, study), self._figures)
            page.write_page(folder, study, self._figures, now)


class LivePages(_Live):
    """Writes the page of several studies, a ladder's or A/A studies', while they run one after another.

    ``read`` returns their results as of now; ``page`` is the module that draws and writes them. The last page is left
    to whoever finishes them.
    """

    def __init__(self, watcher: SeveralWatcher, read: Callable[[], Mapping[str, Any]], page: "Page"):
        super().__init__()
        self.watcher, self.read, self.page = watcher, read, page
        self._drawn: Drawn = ({}, None)

    def _write(self, ended: bool) -> None:
        now = self.watcher.look(ended)
        if now.state == "complete":
            return
        directory, results = self.watcher.directory, self.read()
        with writing(directory):
            self._drawn = self._drawing(now.studies.done, ended, lambda: self.page.draw(directory, results),
                                        self._drawn)
            self.page.write_page(directory, results, self._drawn, now)


class Page(Protocol):
    """The two functions of a module that makes the page of several studies."""

    def draw(self, directory: Path, results: Mapping[str, Any]) -> Drawn:
        """Write the figures and return them."""
        ...

    def write_page(self, directory: Path, results: Mapping[str, Any], drawn: Drawn, now: SeveralSnapshot) -> Path:
        """Write the page with these figures."""
        ...
