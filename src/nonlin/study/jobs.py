"""Running configurations on an engine and keeping their records: the part that studies and claims share."""

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nonlin.errors import NonlinError, UserError
from nonlin.files import disk_full, disk_full_error, finite
from nonlin.study.engines.protocol import Engine, Event, Handle, Request, error_of
from nonlin.study.store import Store

#: How often a run that is lost is started, by cause. A run that ends its own process every time is at fault; nodes
#: and preemptions are not.
TRIES = {"worker": 3, "node": 100, "preempted": 100}
_ADVICE = {
    "memory": "Run fewer at once (--workers, --trials-per-gpu), or take a smaller --batch, --context or --dim.",
    "worker": "Look for its cause in the machine's log; give the same command again to go on."}
_CHECKPOINT_SECONDS = 300.0  # between two checkpoints of a long run
_SEALERS, _UNSEALED = 8, 64  # threads that write records to the disk, and records that may be on their way


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


@dataclass
class Running:
    """A job that runs: its latest attempt's folder, and its progress."""

    job: Job
    folder: Path
    attempt: int
    processor: str | None = None
    progress: dict[str, Any] = field(default_factory=lambda: {"step": 0, "loss_nats": None})


class Queue:
    """Jobs that wait, the least priority first.

    Jobs of one ``group`` go to processors of one name: two runs that are compared differ in nothing but what is
    compared. A group whose processor is gone goes where there is one.
    """

    def __init__(self):
        self._heaps: dict[Hashable, list[tuple[Any, int, Job]]] = {}
        self._homes: dict[Hashable, str] = {}
        self._count = itertools.count()

    def push(self, job: Job, priority: Any, group: Hashable) -> None:
        """Let a job wait. Jobs of the group None go anywhere."""
        heapq.heappush(self._heaps.setdefault(group, []), (priority, next(self._count), job))

    def pop(self, processor: str, there: Collection[str]) -> tuple[Job, str | None] | None:
        """Return the next job for a processor, and the name of the one that its group must leave; None if none waits.

        ``there``: the names of all processors, busy or not.
        """
        able = [group for group, heap in self._heaps.items()
                if heap and (self._homes.get(group) not in there or self._homes[group] == processor)]
        if not able:
            return None
        group = min(able, key=lambda g: self._heaps[g][0][:2])
        _, _, job = heapq.heappop(self._heaps[group])
        home = self._homes.get(group)
        if group is not None:
            self._homes[group] = processor
        return job, home if home != processor else None

    def place(self, group: Hashable, processor: str | None) -> None:
        """Record the processor of a group's first run."""
        if group is not None and processor:
            self._homes.setdefault(group, processor)

    def drop(self, unwanted: Callable[[Job], bool]) -> None:
        """Forget jobs that wait."""
        for group, heap in self._heaps.items():
            self._heaps[group] = [entry for entry in heap if not unwanted(entry[2])]
            heapq.heapify(self._heaps[group])

    def __bool__(self) -> bool:
        return any(self._heaps.values())


class Jobs:
    """The records of finished jobs, the jobs that run, and those that wait; ``told`` gets what people should know.

    ``lost`` counts the attempts that came to nothing, by cause; ``failed`` holds what failed by itself. ``trunks`` is
    a folder in which runs that differ in their length share their beginning (see :mod:`nonlin.training.trunks`).
    """

    def __init__(self, store: Store, engine: Engine, told: Callable[[str], None], trunks: Path | None = None):
        self.store, self.engine, self.told, self.trunks = store, engine, told, trunks
        self.records: dict[str, dict[str, Any]] = {}
        self.running: dict[Handle, Running] = {}
        self.waiting = Queue()
        self.lost: Counter[str] = Counter()
        self.failed: dict[str, tuple[Job, str]] = {}
        self._places: dict[str, tuple[Any, Hashable]] = {}  # priority and group of what was offered
        self._tries: Counter[tuple[str, str]] = Counter()
        # Several at once: a disk takes milliseconds to say that a file is safe, but many files at a time.
        self._sealers = ThreadPoolExecutor(_SEALERS, "seal")
        self._sealing: deque[Future[dict[str, Any]]] = deque()

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

    def offer(self, job: Job, priority: Any = 0, group: Hashable = None) -> None:
        """Let a job wait for a slot, unless an earlier call's attempt at it still runs: that is taken up."""
        self._places[job.key] = priority, group
        for attempt, folder in reversed(self.store.attempts(job.key)):
            handle = self.engine.find(Request(self._body(job), job.key, attempt, folder))
            if handle is not None:
                self.running[handle] = Running(job, folder, attempt)
                return
            self.store.clear(folder)
        self.waiting.push(job, priority, group)

    def _body(self, job: Job) -> dict[str, Any]:
        body = {"do": job.request, "config": job.config, "checkpoint_seconds": _CHECKPOINT_SECONDS}
        return body if self.trunks is None else body | {"trunks": str(self.trunks.absolute())}

    @property
    def busy(self) -> bool:
        """Whether something runs or waits."""
        return bool(self.running or self.waiting)

    def step(self, seconds: float) -> list[Job]:
        """Start what can start, take what happens within these seconds; return the jobs whose records came.

        Raises UserError where the disk is full or a worker found a mistake of the user's.
        """
        self._fill()
        self._sealed(_UNSEALED)
        ended = []
        for event in self.engine.poll(seconds):
            if event.kind == "told":
                self.told(event.value)
            elif event.handle in self.running:
                ended += self._handle(event)
        return ended

    def _fill(self) -> None:
        free = self.engine.free()
        there = {slot.processor for slot in free}
        for slot, count in free.items():
            for _ in range(count):
                found = self.waiting.pop(slot.processor, there)
                if found is None:
                    break
                job, left = found
                if left:
                    self.told(f"{job.name}: runs on {slot.processor}, since no {left} is there any more: it may differ "
                              "from the runs that it is compared with in more than the activation")
                attempt, folder = self.store.begin(job.config)
                handle = self.engine.start(Request(self._body(job), job.key, attempt, folder), slot)
                self.running[handle] = Running(job, folder, attempt, slot.processor)

    def _handle(self, event: Event) -> list[Job]:
        run = self.running[event.handle]
        if event.kind == "progress":
            run.progress |= event.value
            return []
        del self.running[event.handle]
        if event.kind == "done":
            record = finite({"processor": run.processor} | event.value | {"attempt": run.attempt})
            self.records[run.job.key] = record
            self._sealing.append(self._sealers.submit(self.store.finish, run.folder, record))
            return [run.job]
        if event.kind == "lost":
            self._again(run, event.value["cause"], event.value["reason"])
        else:
            self._fail(run, event.value)
        return []

    def _again(self, run: Running, cause: str, reason: str) -> None:
        self.lost[cause] += 1
        self._tries[run.job.key, cause] += 1
        self.store.clear(run.folder)
        if self._tries[run.job.key, cause] < TRIES[cause]:
            self.told(f"{run.job.name}: {reason}; it runs again")
            self.waiting.push(run.job, *self._places[run.job.key])
        else:
            times = f"{reason}, {TRIES[cause]} times"
            self._give_up(run.job, f"the run {run.job.name} failed: {times}. {_ADVICE['worker']}")

    def _fail(self, run: Running, value: Mapping[str, str]) -> None:
        if disk_full(value["message"]):
            raise disk_full_error(value.get("where") or self.store.directory)
        error = error_of(value, f"the run {run.job.name}")
        if isinstance(error, UserError):
            raise error
        memory = "memory" in value["type"].lower() or "out of memory" in value["message"].lower()
        self._give_up(run.job, f"{error}. {_ADVICE['memory']}" if memory else str(error))

    def _give_up(self, job: Job, message: str) -> None:
        self.failed[job.key] = job, message
        self.told(message)

    def stop(self) -> None:
        """End the runs, and wait until every record is on disk; raise UserError if the disk is full.

        Where the engine is detached, what runs goes on, for the next call to find.
        """
        if self.running and not self.engine.detached:
            for handle in self.running:
                self.engine.stop(handle)
            self.engine.close()
        self.running.clear()
        self._sealed(0)
        self._sealers.shutdown()

    def _sealed(self, most: int) -> None:
        """Wait until at most so many records are on their way to the disk; raise the errors of writing."""
        while self._sealing and (len(self._sealing) > most or self._sealing[0].done()):
            self._sealing.popleft().result()

    def check(self) -> None:
        """Raise NonlinError if a run failed by itself, with what to do."""
        if self.failed:
            messages = [message for _, message in self.failed.values()]
            more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
            raise NonlinError(f"{messages[0]}{more} Every finished run is kept.")
