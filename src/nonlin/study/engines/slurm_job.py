"""The work of a SLURM job: one request, in a worker process, its answer a file in the request's folder.

The folder lies on a file system that the driver and all nodes share. A job may be started several times: by SLURM when
it was preempted or its node failed, by itself at its time limit. It goes on from its checkpoint. It writes its answer
only while it is the one that the folder names as its owner.
"""

import contextlib
import json
import math
import os
import queue
import signal
import socket
import time
from pathlib import Path
from typing import Any

from nonlin.files import write_atomically
from nonlin.study.engines.ray_tasks import versions
from nonlin.study.engines.worker_process import WorkerProcess, device_of, fate
from nonlin.training.config import CHECKPOINT
from nonlin.training.resources import out_of_memory_kills, processor_name

REQUEST, ANSWER, PROGRESS, OWNER, JOB = "request.json", "answer.json", "progress.json", "owner", "slurm.json"
#: The engine's files in a request's folder, beside the run's own.
OURS = (REQUEST, ANSWER, PROGRESS, OWNER, JOB)
_TELL_SECONDS = 2.0
_TRIES = 3  # restarts in which no step was done
_NEAR_SECONDS = 180.0  # before the time limit: SLURM's warning comes up to a minute before the time asked for
_SAVE_SECONDS = 60.0  # that a run may take to write its checkpoint when it is told to end


class SlurmTrial:
    """The callable that submitit runs in a job; ``checkpoint`` is what it calls when SLURM says that time is up."""

    def __init__(self):
        self.worker: WorkerProcess | None = None
        self.until = math.inf  # when the job's time is up

    def __call__(self, folder: str) -> None:
        """Do the request that lies in a folder."""
        place = Path(folder)
        try:
            wanted = json.loads((place / REQUEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return  # another attempt has taken its place
        self.until = time.monotonic() + 60 * wanted.get("minutes", math.inf)
        (place / OWNER).write_text(_job())
        kind, value = refusal(wanted, versions(), processor_name()) or self._run(wanted, place)
        if kind == "done" and isinstance(value, dict) and wanted["body"]["do"] in ("trial", "experiment"):
            value = {**value, "processor": processor_name(), "restarts": _restarts()}
        _tell(place, kind, value)

    def _run(self, wanted: dict[str, Any], place: Path) -> tuple[str, Any]:
        heard: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        body, kills, told = wanted["body"], out_of_memory_kills(), 0.0
        visible = "" if device_of(body) == "cpu" else None
        self.worker = WorkerProcess(wanted["command"], lambda _, answer: heard.put(answer), visible)
        self.worker.send({**body, "trial": str(place), "dataset": wanted["dataset"]})
        while True:
            answer = heard.get()
            if answer is None:
                status = self.worker.process.wait()
                if status in (128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGUSR2):  # the last: before it was ready
                    _wait_for_the_end()
                return fate(self.worker, out_of_memory_kills() > kills)
            if answer[0] != "progress":
                self.worker.end()
                return answer
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                with contextlib.suppress(OSError):
                    write_atomically(place / PROGRESS, json.dumps(answer[1]))

    def checkpoint(self, folder: str) -> Any:
        """Let the run write its checkpoint; return what SLURM is to start again."""
        from submitit.helpers import DelayedSubmission

        if self.worker is not None:
            self.worker.process.terminate()
            with contextlib.suppress(Exception):
                self.worker.process.wait(_SAVE_SECONDS)
            self.worker = None
        near = self.until - time.monotonic() < _NEAR_SECONDS  # and no more urgent job
        if near and _restarts() >= _TRIES and not (Path(folder) / CHECKPOINT).exists():
            _tell(Path(folder), "error", {"type": "UserError", "message": (
                f"slurm: time must be enough for a run to begin; in {_restarts() + 1} jobs none did a step before "
                "SLURM said that time was nearly up. Ask for more minutes: --slurm time=60.")})
            raise RuntimeError("the time limit is too short for a run to begin")
        return DelayedSubmission(SlurmTrial(), folder)

    def __getstate__(self) -> dict[str, Any]:
        return {"worker": None, "until": math.inf}


def _job() -> str:
    return f"{os.environ.get('SLURM_JOB_ID')}.{_restarts()}"


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def _tell(place: Path, kind: str, value: Any) -> None:
    """Write the answer, unless the request was withdrawn or another job has it."""
    with contextlib.suppress(FileNotFoundError):
        if (place / REQUEST).exists() and (place / OWNER).read_text() == _job():
            write_atomically(place / ANSWER, json.dumps([kind, value]))


def _wait_for_the_end() -> None:
    """SLURM told all processes of the job to end: it takes this one too, and starts the job again where it may."""
    time.sleep(_SAVE_SECONDS)


def refusal(wanted: dict[str, Any], here: dict[str, str], processor: str) -> tuple[str, Any] | None:
    """Return the answer of a node that may not do a request: other versions, or another processor than the others."""
    if wanted["versions"] != here:
        differing = [f"{name} {here[name]} where the driver has {wanted['versions'][name]}"
                     for name in here if here[name] != wanted["versions"].get(name)]
        return "error", {"type": "UserError", "message": (
            f"engine: versions on node {socket.gethostname()} must be the driver's; got {' and '.join(differing)}. "
            "Install the same ones there.")}
    if wanted["processor"] not in (None, processor):
        return "lost", {"cause": "node", "node": socket.gethostname(), "reason": (
            f"node {socket.gethostname()} has another processor ({processor}), which rounds otherwise: it is left out")}
    return None
