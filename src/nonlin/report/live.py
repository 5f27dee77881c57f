"""The page of a study while it runs: there from the first moment, and kept up to date beside the runs."""

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from nonlin.errors import NonlinError
from nonlin.files import writing
from nonlin.study import load
from nonlin.study.snapshot import Watcher

_SECONDS = 15.0  # between two pages
_SHARE = 0.03  # of the time, at most, goes into drawing figures


class LivePage:
    """Writes the study's page anew every moment while a block runs, in a thread; at its end, that of a stopped study.

    The page of a study that is complete is left to whoever finishes it. A page that cannot be written costs the study
    nothing.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="page", daemon=True)
        self._drawn: dict[str, Any] = {}
        self._runs, self._draw_again = 0, 0.0

    def __enter__(self) -> "LivePage":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._write(ended=True)

    def _work(self) -> None:
        while not self._ended.is_set():
            self._write()
            self._ended.wait(_SECONDS)

    def _write(self, ended: bool = False) -> None:
        from nonlin.report import page  # here, so that the runs need not wait for the library that draws
        from nonlin.report.records import read

        with contextlib.suppress(NonlinError, OSError):
            folder = load(self.directory)
            now = Watcher(self.directory, folder.plan).look()
            if now.state == "complete" or (now.state == "running" and ended):
                return
            study = read(folder)
            with writing(self.directory):
                if self._worth_drawing(now.judging.done, ended):
                    began = time.monotonic()
                    self._drawn = page.draw(folder, study)
                    self._runs = now.judging.done
                    self._draw_again = time.monotonic() + (time.monotonic() - began) / _SHARE
                page.write_page(folder, study, self._drawn, now)

    def _worth_drawing(self, judged: int, ended: bool) -> bool:
        return judged > self._runs and (ended or time.monotonic() >= self._draw_again)
