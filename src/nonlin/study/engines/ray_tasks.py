"""The tasks on a Ray cluster's nodes: their identity, their copy of the tokens, one request each."""

import contextlib
import importlib.metadata
import os
import queue
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nonlin.study.engines.worker_process import WorkerProcess, device_of, fate
from nonlin.system import user_number
from nonlin.training.resources import available_memory_bytes, out_of_memory_kills, processor_name

CHUNK_BYTES = 32 * 2**20  # what travels at once: an object store may be small
_TELL_SECONDS = 1.0  # between two reports of progress from a node
_DONE = ".whole"


def versions() -> dict[str, str]:
    """Return the versions that decide a run's last bits."""
    return {name: importlib.metadata.version(name) for name in ("nonlin", "torch")}


def probe(dataset: str, described: str) -> dict[str, Any]:
    """Return what a node is, and whether it sees these tokens under the same path."""
    try:
        shared = (Path(dataset) / "dataset.json").read_text(encoding="utf-8") == described
    except OSError:
        shared = False
    return {"versions": versions(), "processor": processor_name(), "memory_bytes": available_memory_bytes(),
            "host": socket.gethostname(), "shared": shared}


def _home(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"nonlin-{user_number()}" / name


def begin_tokens(name: str) -> tuple[str, bool]:
    """Return this node's folder for the tokens, and whether they are all there from an earlier study."""
    folder = _home(name)
    if (folder / _DONE).exists():
        return str(folder), True
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    return str(folder), False


def write_tokens(folder: str, name: str, offset: int, chunk: Any) -> int:
    """Write a part of a file of tokens; return how many bytes it has."""
    with open(os.path.join(folder, name), "ab") as file:
        file.truncate(offset)
        return file.write(chunk)


def end_tokens(folder: str) -> None:
    """Mark the tokens as whole."""
    (Path(folder) / _DONE).touch()


def remove_tokens(folder: str) -> None:
    """Remove a node's copy of the tokens."""
    shutil.rmtree(folder, ignore_errors=True)


def stop_request(mark: str) -> None:
    """Tell a request on this node to end: Ray's own cancelling may not reach a task that waits for a busy machine."""
    path = _home(mark)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch()


def run_request(body: Mapping[str, Any], wants_files: bool, dataset: str, command: Sequence[str], mark: str
                ) -> Iterator[tuple[str, Any]]:
    """Run one request in a worker process on this node; yield its answers as (kind, value).

    ("file", (name, bytes)) parts of the files that it wrote come before ("done", answer). A worker that is gone gives
    ("lost", ...) or, where the system killed it for want of memory, ("error", ...).
    """
    if _home(mark).exists():
        return
    folder = tempfile.mkdtemp(prefix="nonlin-trial-")
    heard: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
    # Since Ray 2.x a task that asks for no GPU still sees all of them: they are hidden here.
    visible = "" if device_of(body) == "cpu" else None
    kills = out_of_memory_kills()
    worker = WorkerProcess(command, lambda _, answer: heard.put(answer), visible)
    try:
        worker.send({**body, "dataset": dataset} | ({"trial": folder} if wants_files else {}))
        yield from _answers(worker, heard, kills, Path(folder), _home(mark))
    except OSError as error:
        yield "error", {"type": type(error).__name__, "message": str(error), "where": _disk()}
    finally:
        _end(worker)
        shutil.rmtree(folder, ignore_errors=True)
        _home(mark).unlink(missing_ok=True)


def _end(worker: WorkerProcess) -> None:
    """End a worker, however often Ray interrupts: it cancels again while a task takes its time to end."""
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            worker.end()
            return


def _answers(worker: WorkerProcess, heard: "queue.SimpleQueue[tuple[str, Any] | None]", kills: int, folder: Path,
             stopped: Path) -> Iterator[tuple[str, Any]]:
    told = -_TELL_SECONDS
    while not stopped.exists():
        with contextlib.suppress(queue.Empty):
            answer = heard.get(timeout=0.2)  # short: a cancelled task is to notice it
            if answer is None:
                yield fate(worker, out_of_memory_kills() > kills)
                return
            kind, value = answer
            if kind == "progress":
                if time.monotonic() - told >= _TELL_SECONDS:
                    told = time.monotonic()
                    yield "progress", value
                continue
            if kind == "done":
                yield from _files(folder)
            elif kind == "error":
                value = {**value, "where": _disk()}
            yield kind, value
            return


def _disk() -> str:
    return f"{tempfile.gettempdir()} on {socket.gethostname()}"


def _files(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield "file", (path.name, chunk)
