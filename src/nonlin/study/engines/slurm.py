"""SLURM: jobs in arrays, submitted through submitit; they go on while no driver runs, and the next one finds them."""

import contextlib
import hashlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonlin.errors import NonlinError, UserError
from nonlin.files import write_atomically
from nonlin.study.engines import slurm_job
from nonlin.study.engines.protocol import Event, Handle, Request, Slot
from nonlin.study.engines.worker_process import COMMAND

_JOBS = 64  # at once, where nobody says how many
_LOOK_SECONDS = 5.0  # between two looks at the queue
_MISSED = 2  # looks at which a job is neither in the queue nor has answered before it counts as lost
_RESTARTS = 1000  # at the time limit
_WARNING_SECONDS = 90  # before the time limit
#: Options of submitit's own; the others go to sbatch as they are.
_KNOWN = {"partition", "time", "qos", "mem", "account", "constraint", "exclude", "gres", "nodelist", "comment",
          "signal_delay_s", "cpus_per_task", "mem_per_cpu", "mem_per_gpu", "array_parallelism"}
_CAUSES = {"NODE_FAIL": "node", "BOOT_FAIL": "node", "PREEMPTED": "preempted", "CANCELLED": "preempted",
           "TIMEOUT": "preempted", "DEADLINE": "preempted"}


@dataclass
class _Job:
    request: Request
    folder: Path
    id: str | None = None
    missed: int = 0
    step: Any = None
    restarts: int = 0


class SlurmEngine:
    """A SLURM cluster whose nodes share the study's folder.

    ``options``: what each job asks for, such as {"partition": "gpu", "gpus": "1", "time": "60"} (minutes). A job that
    is preempted, or meets its time limit, is put back into the queue and goes on from its checkpoint. Raises UserError
    where submitit or SLURM is not there, or SLURM refuses the options.
    """

    detached = True

    def __init__(self, directory: str | Path, options: Mapping[str, str] | None = None, workers: int | None = None,
                 command: Sequence[str] | None = None, devices_per_trial: int = 1, look_seconds: float = _LOOK_SECONDS):
        try:
            import submitit
        except ImportError:
            raise UserError("engine: submitit must be installed for SLURM; it is not. "
                            "Run pip install 'nonlin[slurm]'.") from None
        if shutil.which("sbatch") is None:
            raise UserError("engine: SLURM must be on this machine; there is no sbatch. Log in to the cluster first, "
                            "or leave --engine out.")
        self.submitit, self.command = submitit, list(command or COMMAND)
        self.directory, self.options = Path(directory).resolve(), dict(options or {})
        self.most, self.devices_per_trial, self.look_seconds = workers or _JOBS, devices_per_trial, look_seconds
        self.name = f"nonlin-{hashlib.sha256(str(self.directory).encode()).hexdigest()[:10]}"
        self.processor: str | None = None
        self._gpus = int(self.options.get("gpus", 0))
        self._left_out: set[str] = set()
        self._jobs: dict[Handle, _Job] = {}
        self._new: list[Handle] = []
        self._numbers = itertools.count()
        self._looked = 0.0
        self._queue: dict[str, tuple[str, int]] | None = None
        self._parameters()

    def __enter__(self) -> "SlurmEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _parameters(self) -> dict[str, Any]:
        """Return submitit's parameters; raise UserError for values that make no job."""
        known: dict[str, Any] = {key.replace("-", "_"): value for key, value in self.options.items()}
        try:
            known["time"] = int(known.get("time", 60))
            gpus = int(known.pop("gpus", 0))
            known["signal_delay_s"] = int(known.get("signal_delay_s", _WARNING_SECONDS))
        except ValueError:
            raise UserError("slurm: time and gpus must be whole numbers (minutes, and GPUs a job); got "
                            f"{self.options}. Write --slurm time=60,gpus=1.") from None
        found: dict[str, Any] = {"job_name": self.name, "cpus_per_task": self.devices_per_trial}
        if gpus:
            found["gpus_per_node"] = max(gpus, self.devices_per_trial)
        if self._left_out:
            known["exclude"] = ",".join(sorted({*filter(None, [known.get("exclude")]), *self._left_out}))
        found |= {key: value for key, value in known.items() if key in _KNOWN}
        others = {key: value for key, value in known.items() if key not in _KNOWN}
        return found | {"additional_parameters": {"requeue": True} | others}

    # The protocol.

    def fit(self, device: str, environment: Mapping[str, Any], bytes_per_trial: int | None) -> None:
        """Keep to the processor that answered first; how many jobs run at once is SLURM's."""
        self.processor = (environment.get("processor") or {}).get("name")

    def total(self) -> int:
        """Return how many jobs are in the queue at once."""
        return self.most

    def free(self) -> Mapping[Slot, int]:
        """Return how many requests can be put into the queue now."""
        slot = Slot(self.processor or "", self.devices_per_trial, gpus=self._gpus)
        return {slot: self.most - len(self._jobs)}

    def start(self, request: Request, slot: Slot) -> Handle:
        """Take a request; it is submitted at the next poll, in one array with its like."""
        handle = f"slurm-{next(self._numbers)}"
        folder = request.folder
        if folder is None:
            folder = self.directory / "slurm" / "questions" / f"{time.time_ns()}-{handle}"
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / slurm_job.REQUEST, json.dumps({
            "body": dict(request.body), "command": self.command, "dataset": str(self.directory / "data"),
            "versions": slurm_job.versions(), "processor": self.processor, "minutes": self._parameters()["time"]}))
        self._jobs[handle] = _Job(request, folder)
        self._new.append(handle)
        return handle

    def find(self, request: Request) -> Handle | None:
        """Return the handle of a job that an earlier driver submitted, and that has answered or is in the queue."""
        folder = request.folder.resolve() if request.folder else None
        if folder is None or not (folder / slurm_job.REQUEST).exists():
            return None
        try:
            number = json.loads((folder / slurm_job.JOB).read_text())["job"]
        except (OSError, ValueError, KeyError):
            return None
        self._queue = self._queue if self._queue is not None else self._look()
        if not (folder / slurm_job.ANSWER).exists() and number not in self._queue:
            return None
        handle = f"slurm-{next(self._numbers)}"
        self._jobs[handle] = _Job(request, folder, number)
        return handle

    def poll(self, seconds: float) -> list[Event]:
        """Submit new requests and return the events, after at most that many seconds."""
        self._submit()
        deadline = time.monotonic() + seconds
        while True:
            events = [event for handle in list(self._jobs) for event in self._hear(handle)]
            if time.monotonic() - self._looked >= self.look_seconds:
                events += self._missing()
            if events or time.monotonic() >= deadline:
                return events
            time.sleep(min(0.2, seconds))

    def _submit(self) -> None:
        new, self._new = [handle for handle in self._new if handle in self._jobs], []
        if not new:
            return
        executor = self.submitit.SlurmExecutor(self.directory / "slurm", max_num_timeout=_RESTARTS)
        try:
            executor.update_parameters(**self._parameters())
            with executor.batch():
                submitted = [executor.submit(slurm_job.SlurmTrial(), str(self._jobs[handle].folder)) for handle in new]
            numbers = [job.job_id for job in submitted]
        except Exception as error:
            for handle in new:
                self.stop(handle)
            raise UserError(f"slurm: sbatch must accept the jobs; it says: {_words(error)} Every finished run is kept; "
                            "correct --slurm and give the command again.") from None
        for handle, number in zip(new, numbers, strict=True):
            self._jobs[handle].id = number
            write_atomically(self._jobs[handle].folder / slurm_job.JOB, json.dumps({"job": number}))
        self._looked = time.monotonic()

    def _hear(self, handle: Handle) -> list[Event]:
        job = self._jobs[handle]
        try:
            kind, value = json.loads((job.folder / slurm_job.ANSWER).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return self._progress(handle, job)
        del self._jobs[handle]
        self._tidy(job)
        if kind == "lost" and "node" in value:
            self._left_out.add(value["node"])
        return [Event(kind, handle, value)]

    def _progress(self, handle: Handle, job: _Job) -> list[Event]:
        try:
            step = json.loads((job.folder / slurm_job.PROGRESS).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return []
        if step == job.step:
            return []
        job.step = step
        return [Event("progress", handle, step)]

    def _tidy(self, job: _Job) -> None:
        """Remove the engine's files: the run's folder holds the run's files alone."""
        if job.request.folder is None:
            shutil.rmtree(job.folder, ignore_errors=True)
            return
        for path in job.folder.iterdir():
            if path.name in slurm_job.OURS or path.name.startswith("."):
                with contextlib.suppress(OSError):
                    path.unlink()

    # The queue.

    def _look(self) -> dict[str, tuple[str, int]]:
        """Return (state, restarts) of the study's jobs in the queue by their number."""
        said = _slurm("squeue", "--noheader", "--array", f"--name={self.name}", "--format=%i|%T|%r")
        found = {}
        for line in said.splitlines():
            number, state, _ = line.split("|", 2)
            found[number.strip()] = state, 0
        return found

    def _missing(self) -> list[Event]:
        """Return the jobs that are gone without an answer, each after it was missed twice: file systems are late."""
        self._looked = time.monotonic()
        try:
            self._queue = self._look()
        except NonlinError as error:
            return [Event("told", "", f"{error}; asked again")]
        events = []
        for handle, job in list(self._jobs.items()):
            if job.id is None or job.id in self._queue:
                job.missed = 0
                continue
            job.missed += 1
            if job.missed >= _MISSED and not (job.folder / slurm_job.ANSWER).exists():
                del self._jobs[handle]
                events.append(Event(*self._outcome(handle, job)))
        return events

    def _outcome(self, handle: Handle, job: _Job) -> tuple[str, Handle, dict[str, str]]:
        state = _state(job.id or "")
        (job.folder / slurm_job.REQUEST).unlink(missing_ok=True)  # should it come back, it is not wanted
        if state == "OUT_OF_MEMORY":
            return "error", handle, {"type": "OutOfMemory", "message": f"SLURM job {job.id} ran out of the memory that "
                                     "it asked for: ask for more with --slurm mem=..."}
        return "lost", handle, {"cause": _CAUSES.get(state, "worker"),
                                "reason": f"SLURM job {job.id} ended as {state or 'unknown'} without an answer"}

    def stop(self, handle: Handle) -> None:
        """Take a request out of the queue."""
        job = self._jobs.pop(handle, None)
        if job is None:
            return
        (job.folder / slurm_job.REQUEST).unlink(missing_ok=True)
        if job.id is not None:
            with contextlib.suppress(NonlinError):
                _slurm("scancel", job.id)
        self._tidy(job)

    def close(self) -> None:
        """Leave the jobs in the queue: they go on, and the next driver finds them."""
        self._jobs.clear()
        self._new.clear()
        self._queue = None


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NonlinError(f"{command[0]} does not answer: {error}") from None
    if done.returncode:
        raise NonlinError(f"{command[0]} says: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _state(number: str) -> str:
    """Return how a job ended, as far as SLURM still knows: "NODE_FAIL", "TIMEOUT", ...; empty where it does not."""
    with contextlib.suppress(NonlinError):
        for word in _slurm("scontrol", "show", "job", "--oneliner", number).split():
            if word.startswith("JobState="):
                return word.partition("=")[2]
    return ""


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "sbatch: error" in line or "error:" in line]
    said = (lines or [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1]
    return said.removeprefix("subprocess.CalledProcessError: ").rstrip(".") + "."
