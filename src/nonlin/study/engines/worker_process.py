"""One worker process on this machine: its start, its lines, its end. Every engine runs trials through it."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nonlin.system import KILLED

#: The trainer of this package.
COMMAND = (sys.executable, "-m", "nonlin.training.worker")

# One process a core beats threads for models this small. glibc: keep memory between steps, take it in large
# pieces, instead of returning it to the system at every step.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
    "NONLIN_END_WITH_PARENT": "1",
}
_PARENT = "NONLIN_END_WITH_PARENT"
_ANSWERS = ("progress", "done", "error")


def device_of(body: Mapping[str, Any]) -> str | None:
    """Return the device that a request computes on, "cpu" or "cuda"; None where it is to look at all devices."""
    if body.get("do") in ("machine", "describe"):
        return None
    return body.get("config", {}).get("machine", {}).get("device", "cpu")


def devices_environment(visible: str | None) -> dict[str, str]:
    """Return the environment in which a process sees these GPUs alone ("": none); None leaves all visible."""
    return {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible, "HIP_VISIBLE_DEVICES": visible}


def _of_parent() -> dict[str, str]:
    """Return this process's number for a worker: one whose parent is gone before it has looked ends at once too."""
    return {_PARENT: str(os.getpid())} if os.name == "posix" else {}  # a program may start another one elsewhere


class WorkerProcess:
    """A worker; a thread hands each of its answers to ``heard(worker, (kind, value))``, and at its end None."""

    def __init__(self, command: Sequence[str], heard: Callable[["WorkerProcess", tuple[str, Any] | None], None],
                 visible: str | None = None):
        self.visible = visible
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the worker
        # A session of its own: Ctrl-C in the terminal reaches the parent alone, which ends the workers.
        self.process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            encoding="utf-8", env=os.environ | ENVIRONMENT | _of_parent() | devices_environment(visible),
            start_new_session=True)
        self._heard = heard
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        with contextlib.suppress(OSError, ValueError):
            for line in self.process.stdout:
                # A process killed while it writes leaves half a line.
                answer = parse_answer(line) if line.endswith("\n") else None
                if answer:
                    self._heard(self, answer)
        self._heard(self, None)

    def send(self, body: Mapping[str, Any]) -> None:
        """Send a request; a dead worker is noticed at the end of its output."""
        assert self.process.stdin
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(body) + "\n")
            self.process.stdin.flush()

    def last_words(self) -> str:
        """Return the last line that it wrote to standard error."""
        with contextlib.suppress(OSError, ValueError):
            self._errors.seek(0, os.SEEK_END)
            self._errors.seek(max(0, self._errors.tell() - 2000))
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""

    def end(self) -> int:
        """Kill it and return its status."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        status = self.process.wait()
        for stream in (self.process.stdin, self._errors):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()
        return status


def parse_answer(line: str) -> tuple[str, Any] | None:
    """Return (kind, value) of an answer's line; None for what a library printed.

    >>> parse_answer('{"progress": {"step": 1}}')
    ('progress', {'step': 1})
    """
    try:
        (kind, value), = json.loads(line).items()
    except (ValueError, AttributeError):
        return None
    return (kind, value) if kind in _ANSWERS else None


def fate(worker: WorkerProcess, memory_was_short: bool) -> tuple[str, dict[str, str]]:
    """End a worker that is gone; return the kind and value of the event that tells it."""
    words, status = worker.last_words(), worker.end()
    told = f"a worker process ended unexpectedly (status {status})" + (f": {words}" if words else "")
    if status == KILLED and memory_was_short:
        return "error", {"type": "OutOfMemory", "message": f"{told}: the system killed it for want of memory"}
    return "lost", {"cause": "worker", "reason": told}
