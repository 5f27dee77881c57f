"""The protocol of engines, which turn requests into records, here or elsewhere.

An engine starts what it is given and tells what became of it. It retries nothing, and orders nothing: which run comes
next, and whether a lost one runs again, is the runner's alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nonlin.errors import NonlinError, UserError

#: An engine's own name for a started request; no two requests of one engine share one.
Handle = str


@dataclass(frozen=True)
class Slot:
    """The share of one request: the name of its processor, cores, GPUs; ``memory_bytes`` is None where unknown.

    Runs on processors of different names may differ in their last bits.
    """

    processor: str
    cores: int = 1
    memory_bytes: int | None = None
    gpus: int = 0


@dataclass(frozen=True)
class Request:
    """JSON values for the worker program, and where its files belong.

    ``folder`` is on this machine, None for a request that writes no files. ``attempt`` counts how often the run has
    been started; a later one never shares a folder with an earlier one.
    """

    body: Mapping[str, Any]
    key: str = ""
    attempt: int = 1
    folder: Path | None = None


@dataclass(frozen=True)
class Event:
    """One report of an engine about a request.

    ``kind`` and ``value``: "progress" {"step", ...}; "done" the answer, all files in the request's folder. "error" has
    {"type", "message"} of a request that failed by itself; "lost" {"cause", "reason"} of one that did not. ``cause`` is
    "worker", "node" or "preempted". "told", with no handle, is a sentence for people.
    """

    kind: str
    handle: Handle
    value: Any


class Engine(Protocol):
    """The interface of an engine to the runner."""

    #: Whether started requests go on without this process, to be found again by the next.
    detached: bool

    def fit(self, device: str, environment: Mapping[str, Any], bytes_per_trial: int | None) -> None:
        """Choose how many requests run at once: trials on this device, of this much memory each.

        ``environment`` is a worker's answer to "describe".
        """
        ...

    def total(self) -> int:
        """Return how many requests run at once when everything is busy; at least 1."""
        ...

    def free(self) -> Mapping[Slot, int]:
        """Return how many requests can start now, by what each would get; 0 for a kind of slot that is busy."""
        ...

    def start(self, request: Request, slot: Slot) -> Handle:
        """Start a request on a free slot."""
        ...

    def find(self, request: Request) -> Handle | None:
        """Return the handle of a request that another process started on this engine and that is not lost."""
        ...

    def poll(self, seconds: float) -> list[Event]:
        """Return what happened, after at most that many seconds."""
        ...

    def stop(self, handle: Handle) -> None:
        """End a request; it tells nothing more."""
        ...

    def close(self) -> None:
        """Let go of everything; requests end unless the engine is detached."""
        ...


def error_of(value: Mapping[str, str], what: str = "a worker") -> NonlinError:
    """Return the exception for a worker's error: a user's mistake stays one."""
    if value["type"] in ("UserError", "UnknownName"):
        return UserError(value["message"])
    return NonlinError(f"{what} failed: {value['type']}: {value['message']}")


def first_slot(free: Mapping[Slot, int]) -> Slot | None:
    """Return a slot that is free; None where there is none."""
    return next((slot for slot, count in free.items() if count > 0), None)
