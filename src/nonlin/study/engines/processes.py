"""Worker processes on this machine."""

import itertools
import os
import queue
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nonlin.errors import NonlinError, UserError, rule
from nonlin.study.engines.protocol import Event, Handle, Request, Slot
from nonlin.study.engines.worker_process import COMMAND, WorkerProcess, device_of, fate
from nonlin.training.resources import out_of_memory_kills, processor_name, usable_cores, workers_that_fit


class ProcessEngine:
    """Worker processes that speak JSON lines; a context manager that ends them.

    ``workers``: how many at once, by default one for each core that this process may use (as far as memory allows,
    after :meth:`fit`). ``command`` starts a worker (default: the trainer of this package). Requests whose
    configuration names a GPU get ``devices_per_trial`` of them, and ``trials_per_gpu`` requests share one. All other
    requests see no GPU, but for those that ask what there is.
    """

    detached = False

    def __init__(self, dataset_dir: str | Path, workers: int | None = None, command: Sequence[str] | None = None,
                 trials_per_gpu: int = 1, devices_per_trial: int = 1):
        self.dataset, self.command = str(dataset_dir), list(command or COMMAND)
        self.most, self.trials_per_gpu, self.devices_per_trial = workers, trials_per_gpu, devices_per_trial
        self.workers = workers or max(1, usable_cores() // devices_per_trial)
        self.gpu_sets: list[str] = []
        self._heard: queue.SimpleQueue[tuple[WorkerProcess, tuple[str, Any] | None]] = queue.SimpleQueue()
        self._idle: list[WorkerProcess] = []
        self._busy: dict[WorkerProcess, tuple[Handle, Request]] = {}
        self._numbers = itertools.count()
        self._kills = out_of_memory_kills()

    def __enter__(self) -> "ProcessEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fit(self, device: str, environment: Mapping[str, Any], bytes_per_trial: int | None) -> None:
        """Choose how many run at once: one per core as far as memory allows, or ``trials_per_gpu`` on each GPU."""
        each = self.devices_per_trial
        if device == "cpu":
            self.gpu_sets = []
            fitting = workers_that_fit(each * (bytes_per_trial or 0), max(1, usable_cores() // each))
        else:
            names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
            names = names or [str(i) for i in range(environment.get("gpus", 1))]
            if len(names) < each:
                raise UserError(rule("engine", "devices-per-trial", f"be at most this machine's {len(names)} GPUs",
                                     each, "Take fewer."))
            sets = [",".join(names[i:i + each]) for i in range(0, len(names) - each + 1, each)]
            self.gpu_sets = sets * self.trials_per_gpu
            for worker in self._idle:  # one that sees all GPUs sees the only one
                if worker.visible is None and len(names) == 1:
                    worker.visible = names[0]
            fitting = len(self.gpu_sets)
        self.workers = self.most or fitting

    @property
    def slot(self) -> Slot:
        """The share of the machine that each request gets."""
        return Slot(processor_name(), cores=self.devices_per_trial, gpus=self.devices_per_trial if self.gpu_sets else 0)

    def total(self) -> int:
        """Return how many requests run at once when everything is busy."""
        return self.workers

    def free(self) -> Mapping[Slot, int]:
        """Return how many requests can start now."""
        return {self.slot: self.workers - len(self._busy)}

    def start(self, request: Request, slot: Slot | None = None) -> Handle:
        """Start a request on an idle worker."""
        if len(self._busy) >= self.workers:
            raise NonlinError("no worker is idle")
        worker = self._worker(self._visible(request))
        handle = f"process-{next(self._numbers)}"
        self._busy[worker] = handle, request
        folder = {} if request.folder is None else {"trial": str(request.folder)}
        worker.send({**request.body, **folder, "dataset": self.dataset})
        return handle

    def _visible(self, request: Request) -> str | None:
        device = device_of(request.body)
        if device is None or device == "cpu" or not self.gpu_sets:
            return "" if device == "cpu" else None
        taken = Counter(worker.visible for worker in self._busy)
        return min(self.gpu_sets, key=lambda gpus: taken[gpus])

    def _worker(self, visible: str | None) -> WorkerProcess:
        """Return an idle worker that sees these GPUs; in place of another where there are enough."""
        for worker in self._idle:
            if worker.visible == visible:
                self._idle.remove(worker)
                return worker
        if self._idle and len(self._idle) + len(self._busy) >= self.workers:
            self._idle.pop(0).end()
        return WorkerProcess(self.command, lambda *heard: self._heard.put(heard), visible)

    def find(self, request: Request) -> None:
        """Return None: workers end with the process that started them."""

    def poll(self, seconds: float) -> list[Event]:
        """Return what happened: waits for the first event, then takes all that are there."""
        found: list[Event] = []
        while True:
            try:
                worker, answer = self._heard.get(timeout=0 if found else seconds)
            except queue.Empty:
                return found
            if worker in self._busy:
                found.append(self._died(worker) if answer is None else self._event(worker, *answer))
            elif answer is None and worker in self._idle:
                self._idle.remove(worker)
                worker.end()

    def _event(self, worker: WorkerProcess, kind: str, value: Any) -> Event:
        handle, _ = self._busy[worker]
        if kind != "progress":
            del self._busy[worker]
            self._idle.append(worker)
        return Event(kind, handle, value)

    def _died(self, worker: WorkerProcess) -> Event:
        handle, _ = self._busy.pop(worker)
        kills, self._kills = self._kills, out_of_memory_kills()
        kind, value = fate(worker, self._kills > kills)
        return Event(kind, handle, value)

    def stop(self, handle: Handle) -> None:
        """End the worker that is at a request."""
        for worker in [worker for worker, (known, _) in self._busy.items() if known == handle]:
            del self._busy[worker]
            worker.end()

    def close(self) -> None:
        """End all workers; the engine can be used again."""
        workers = [*self._idle, *self._busy]
        self._idle.clear()
        self._busy.clear()
        for worker in workers:
            worker.end()
