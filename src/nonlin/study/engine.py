"""Engines that turn configurations into records; here: worker processes on this machine."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nonlin.errors import NonlinError, UserError

# One process a core beats threads for models this small. glibc: keep memory between steps, take it in large
# pieces, instead of returning it to the system at every step.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}


@dataclass(frozen=True)
class Event:
    """What an engine reports of a request: ``kind`` is "progress", "done", "error" or "restarted"."""

    kind: str
    key: str
    value: Any


class Engine(Protocol):
    """What the runner needs of an engine. Requests are JSON values, so they may run on any machine."""

    workers: int

    def idle(self) -> int:
        """How many requests can start at once now."""
        ...

    def submit(self, key: str, request: Mapping[str, Any]) -> None:
        """Start a request; only while some worker is idle."""
        ...

    def wait(self, seconds: float) -> list[Event]:
        """Return what happened, after at most that many seconds."""
        ...

    def close(self) -> None:
        """End everything, requests in flight too."""
        ...


class _Worker:
    """One process and the request it works on; a thread hands its lines to ``events``."""

    def __init__(self, command: Sequence[str], events: "queue.SimpleQueue[tuple[_Worker, str | None]]"):
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the worker
        # A session of its own: Ctrl-C in the terminal reaches the parent alone, which ends the workers.
        self.process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            encoding="utf-8", env=os.environ | ENVIRONMENT, start_new_session=True)
        self.key: str | None = None
        self.request: dict[str, Any] = {}
        self.tries = 0
        threading.Thread(target=self._read, args=(events,), daemon=True).start()

    def _read(self, events: "queue.SimpleQueue[tuple[_Worker, str | None]]") -> None:
        assert self.process.stdout
        with contextlib.suppress(OSError, ValueError):
            for line in self.process.stdout:
                if line.endswith("\n"):  # a process killed while it writes leaves half a line
                    events.put((self, line))
        events.put((self, None))

    def send(self, key: str, request: dict[str, Any], tries: int = 1) -> None:
        self.key, self.request, self.tries = key, request, tries
        assert self.process.stdin
        with contextlib.suppress(OSError):  # a dead worker is noticed at the end of its output
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()

    def last_words(self) -> str:
        """The end of what it wrote to standard error."""
        with contextlib.suppress(OSError, ValueError):
            self.errors.seek(0, os.SEEK_END)
            self.errors.seek(max(0, self.errors.tell() - 2000))
            lines = self.errors.read().decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.errors):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()


class ProcessEngine:
    """Worker processes that speak JSON lines; a context manager that ends them.

    ``command`` starts a worker (default: the trainer of this package). A worker that dies is replaced, and its
    request tried once more.
    """

    def __init__(self, dataset_dir: str | Path, workers: int = 2, command: Sequence[str] | None = None):
        self.dataset, self.workers = str(dataset_dir), workers
        self.command = list(command or [sys.executable, "-m", "nonlin.training.worker"])
        self._events: queue.SimpleQueue[tuple[_Worker, str | None]] = queue.SimpleQueue()
        self._pool: list[_Worker] = []

    def __enter__(self) -> "ProcessEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def idle(self) -> int:
        """How many requests can start at once now."""
        return self.workers - sum(worker.key is not None for worker in self._pool)

    def submit(self, key: str, request: Mapping[str, Any]) -> None:
        """Start a request on an idle worker."""
        worker = next((w for w in self._pool if w.key is None), None)
        if worker is None:
            if len(self._pool) >= self.workers:
                raise NonlinError("no worker is idle")
            worker = _Worker(self.command, self._events)
            self._pool.append(worker)
        worker.send(key, {**request, "dataset": self.dataset})

    def wait(self, seconds: float) -> list[Event]:
        """Return what happened: waits for the first event, then takes all that are there."""
        found: list[Event] = []
        while True:
            try:
                worker, line = self._events.get(timeout=0 if found else seconds)
            except queue.Empty:
                return found
            if worker in self._pool:  # else: the last line of one that was ended
                event = self._died(worker) if line is None else self._heard(worker, line)
                found += [event] if event else []

    def _heard(self, worker: _Worker, line: str) -> Event | None:
        try:
            (kind, value), = json.loads(line).items()
        except (ValueError, AttributeError):
            return None  # not ours: a library that prints
        key = worker.key
        if key is None or kind not in ("progress", "done", "error"):
            return None
        if kind != "progress":
            worker.key = None
        return Event(kind, key, value)

    def _died(self, worker: _Worker) -> Event | None:
        self._pool.remove(worker)
        key, words = worker.key, worker.last_words()
        worker.end()
        if key is None:
            return None
        told = f"a worker process ended unexpectedly (status {worker.process.returncode})" + (
            f": {words}" if words else "")
        if worker.tries > 1:
            return Event("error", key, {"type": "WorkerDied", "message": told + ", twice"})
        fresh = _Worker(self.command, self._events)
        self._pool.append(fresh)
        fresh.send(key, worker.request, worker.tries + 1)
        return Event("restarted", key, told)

    def map(self, requests: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return the answers to requests, in their order; as many at once as there are workers.

        Raises UserError or NonlinError with the message of the first that fails.
        """
        answers: dict[str, Any] = {}
        waiting = [(str(i), request) for i, request in enumerate(requests)]
        while len(answers) < len(requests):
            while waiting and self.idle():
                self.submit(*waiting.pop(0))
            for event in self.wait(1.0):
                if event.kind == "error":
                    self.close()  # the others' answers would reach the next caller
                    raise error_of(event.value)
                if event.kind == "done":
                    answers[event.key] = event.value
        return [answers[str(i)] for i in range(len(requests))]

    def call(self, request: Mapping[str, Any]) -> Any:
        """Return the answer to one request."""
        return self.map([request])[0]

    def measure(self, configs: Mapping[str, Mapping[str, Any]], seconds: float = 1.5) -> dict[str, Any]:
        """Return each arm's speed while all workers are busy, as :func:`make_plan` takes it."""
        requests = [{"do": "measure", "config": c, "seconds": seconds} for c in configs.values()]
        # Filled up to a multiple of the workers: the last arm, alone, would be measured on an idle machine.
        extra = requests[:-len(requests) % self.workers]
        return dict(zip(configs, self.map([*requests, *extra]), strict=False))

    def close(self) -> None:
        """End all workers; the engine can be used again."""
        pool, self._pool = self._pool, []
        for worker in pool:
            worker.end()


def error_of(value: Mapping[str, str], what: str = "a worker") -> NonlinError:
    """Return the exception for a worker's error: a user's mistake stays one."""
    if value["type"] in ("UserError", "UnknownName"):
        return UserError(value["message"])
    return NonlinError(f"{what} failed: {value['type']}: {value['message']}")
