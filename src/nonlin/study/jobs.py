"""Running configurations on an engine and keeping their records: the part that studies and claims share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nonlin.study.engine import Engine, Event, error_of
from nonlin.study.store import Store, disk_full, disk_full_error, finite


class Job(Protocol):
    """One run: ``key`` is the hash of ``config``, ``request`` the kind of request, ``name`` is for people."""

    @property
    def key(self) -> str: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def request(self) -> str: ...
    @property
    def name(self) -> str: ...


J = TypeVar("J", bound=Job)
#: A running job, its folder, and its progress {"step", "loss_nats"}.
Running = tuple[J, Path, dict[str, Any]]


class Jobs:
    """The records of finished jobs and the jobs that run; ``told`` gets what people should know."""

    def __init__(self, store: Store, engine: Engine, told: Callable[[str], None]):
        self.store, self.engine, self.told = store, engine, told
        self.records: dict[str, dict[str, Any]] = {}
        self.running: dict[str, Running] = {}

    def recall(self, jobs: Sequence[Job]) -> list[Job]:
        """Take the records that earlier calls finished; return the jobs that had one."""
        found = []
        for job in jobs:
            record, warning = self.store.load(job.key)
            if record is not None:
                self.records[job.key] = record
                found.append(job)
            if warning:
                self.told(f"{job.name}: {warning}")
        return found

    def start(self, job: Job) -> None:
        """Start a job; only while the engine is idle."""
        folder = self.store.begin(job.config)
        self.running[job.key] = (job, folder, {"step": 0, "loss_nats": None})
        self.engine.submit(job.key, {"do": job.request, "config": job.config, "trial": str(folder)})

    def handle(self, event: Event) -> Job | None:
        """Take an engine's event; return the job that ended with it, its record sealed and kept.

        Raises UserError where the disk is full, NonlinError where the run failed.
        """
        if event.key not in self.running:
            return None
        job, folder, progress = self.running[event.key]
        if event.kind == "progress":
            progress |= event.value
        elif event.kind == "restarted":
            progress |= {"step": 0, "loss_nats": None}
            self.told(f"{job.name}: {event.value}; it runs again")
        elif event.kind == "error":
            if disk_full(event.value["message"]):
                raise disk_full_error(self.store.directory)
            raise error_of(event.value, f"the run {job.name}")
        else:
            self.records[job.key] = self.store.finish(folder, finite(event.value))
            del self.running[event.key]
            return job
        return None
