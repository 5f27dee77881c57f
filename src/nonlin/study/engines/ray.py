"""A Ray cluster: one task per trial, pinned to a node, and never tried again by Ray itself."""

import contextlib
import itertools
import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonlin.errors import NonlinError, UserError, rule
from nonlin.study.engines import ray_tasks
from nonlin.study.engines.protocol import Event, Handle, Request, Slot
from nonlin.study.engines.ray_nodes import Node, Nodes
from nonlin.study.engines.worker_process import COMMAND
from nonlin.training.resources import workers_that_fit

_CONNECT_SECONDS = 5.0
_LOOK_SECONDS = 1.0  # between two looks at which nodes there are


@dataclass
class _Task:
    generator: Any
    node: Node
    request: Request
    mark: str


def _ray() -> Any:
    # A cluster's nodes have their own nonlin: nothing is uploaded. Ray is to tell nobody of its use.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError("engine: ray must be installed; it is not here. Run pip install 'nonlin[ray]', on every node "
                        "of the cluster too.") from None
    return ray


class RayEngine:
    """The nodes of a Ray cluster; a context manager.

    Every node needs nonlin and torch in the same versions as the others, and no shared file system. Tokens reach each
    node once, through the object store, unless it sees ``dataset_dir`` itself (``copy_tokens`` sends them anyway).
    Records and weights come back. Nodes that join are used; a node that dies loses its trials in flight alone. Raises
    UserError where Ray is not installed, no cluster is at the address, or versions differ.
    """

    detached = False

    def __init__(self, dataset_dir: str | Path, address: str = "auto", workers: int | None = None,
                 command: Sequence[str] | None = None, trials_per_gpu: int = 1, devices_per_trial: int = 1,
                 copy_tokens: bool = False):
        self.ray, self.dataset, self.command = _ray(), Path(dataset_dir), list(command or COMMAND)
        self.most, self.trials_per_gpu, self.devices_per_trial = workers, trials_per_gpu, devices_per_trial
        self._cluster = Nodes(self.ray, self.dataset, copy_tokens)
        self._device, self._bytes = "cuda", None  # until it is known what trials run on: a worker may look at GPUs
        self._nodes: dict[str, Node] = {}
        self._seen: set[str] = set()
        self._tasks: dict[Handle, _Task] = {}
        self._numbers = itertools.count()
        self._news: queue.SimpleQueue[Node | str | Exception] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._owns = not self.ray.is_initialized()
        if self._owns:
            self._connect(address)
        self._run = self.ray.remote(ray_tasks.run_request)
        try:
            self._admit_first()
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._watch, daemon=True).start()

    def _connect(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            if host and port.isdecimal() and "://" not in address:  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
            self.ray.init(address=address, log_to_driver=False, logging_level="error", configure_logging=False)
        except (OSError, ValueError, RuntimeError) as error:
            words = str(error).strip().splitlines()
            raise UserError(f"engine: address must be that of a running Ray cluster; got {address!r} "
                            f"({words[0] if words else type(error).__name__}). Start one with ray start --head, or "
                            "give --address HOST:PORT.") from None

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Nodes: found and admitted by a thread of their own, since tokens may travel for minutes.

    def _admit_first(self) -> None:
        found = self._cluster.alive()
        self._seen |= set(found)
        problems = []
        for outcome in self._cluster.admit(list(found.values())):
            if isinstance(outcome, Node):
                self._add(outcome)
            else:
                problems.append(outcome)
        if any(isinstance(problem, UserError) for problem in problems) or not self._nodes:
            told = "; ".join(map(str, problems)) or "no node of it has a CPU"
            raise UserError(f"engine: the Ray cluster must be ready for trials; {told}. Correct it, then give the same "
                            "command again.")
        for problem in problems:
            self._news.put(problem)

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            try:
                new = [node for key, node in self._cluster.alive().items() if key not in self._seen]
                self._seen |= {node["NodeID"] for node in new}
                for outcome in self._cluster.admit(new) if new else ():
                    self._news.put(outcome)
            except Exception as error:  # the cluster is gone: what waits for its tasks hears of it
                self._news.put(NonlinError(f"Ray does not answer: {error}"))
                return

    def _add(self, node: Node) -> None:
        self._nodes[node.id] = node
        self._fit_node(node)

    # The protocol.

    def fit(self, device: str, environment: Mapping[str, Any], bytes_per_trial: int | None) -> None:
        """Choose how many run at once on each node."""
        self._device, self._bytes = device, bytes_per_trial
        for node in self._nodes.values():
            self._fit_node(node)
        if not any(node.slots for node in self._nodes.values()):
            raise UserError(rule("engine", "devices-per-trial", "fit on a node of the Ray cluster",
                                 self.devices_per_trial, "Take fewer."))

    def _fit_node(self, node: Node) -> None:
        cores = int(node.resources.get("CPU", 0)) // self.devices_per_trial
        if self._on_gpu(node):
            node.slots = int(node.resources["GPU"]) // self.devices_per_trial * self.trials_per_gpu
        elif self._device == "cpu" or not self._bytes:
            node.slots = cores and workers_that_fit(
                self.devices_per_trial * (self._bytes or 0), cores, node.memory_bytes)
        else:
            node.slots = 0  # trials need GPUs, which it has not

    def _on_gpu(self, node: Node) -> bool:
        return self._device != "cpu" and node.resources.get("GPU", 0) >= self.devices_per_trial

    def _slot(self, node: Node) -> Slot:
        gpu = self._on_gpu(node)
        return Slot(node.processor, self.devices_per_trial, node.memory_bytes, self.devices_per_trial if gpu else 0)

    def total(self) -> int:
        """Return how many requests run at once when everything is busy."""
        slots = sum(node.slots for node in self._nodes.values())
        return max(1, min(slots, self.most or slots))

    def free(self) -> Mapping[Slot, int]:
        """Return how many requests can start now, by what each would get."""
        found: dict[Slot, int] = {}
        room = (self.most or 10**9) - len(self._tasks)
        for node in self._nodes.values():
            count = max(0, min(node.slots - node.running, room))
            room -= count
            found[self._slot(node)] = found.get(self._slot(node), 0) + count
        return found

    def start(self, request: Request, slot: Slot) -> Handle:
        """Start a request on the idlest node of that kind."""
        able = [node for node in self._nodes.values() if self._slot(node) == slot and node.running < node.slots]
        if not able:
            raise NonlinError("no node is idle")
        node = min(able, key=lambda n: n.running / n.slots)
        gpus = 0.0
        if self._on_gpu(node):
            gpus = self.devices_per_trial if self.devices_per_trial > 1 else 1 / self.trials_per_gpu
        # Ray tries nothing again: not on a crash, not for want of memory, which it would do without end.
        task = self._run.options(
            num_cpus=self.devices_per_trial, num_gpus=gpus, max_retries=0, num_returns="streaming",
            scheduling_strategy=self._cluster.pin(node.id), name=f"nonlin {request.key}")
        handle = f"ray-{next(self._numbers)}"
        mark = f"stop-{uuid.uuid4().hex}"
        generator = task.remote(dict(request.body), request.folder is not None, node.dataset, self.command, mark)
        self._tasks[handle] = _Task(generator, node, request, mark)
        node.running += 1
        return handle

    def find(self, request: Request) -> None:
        """Return None: Ray ends a driver's tasks with it."""

    def poll(self, seconds: float) -> list[Event]:
        """Return what happened, after at most that many seconds."""
        events = self._hear_of_nodes()
        if not self._tasks:
            if not events:
                time.sleep(min(seconds, 0.1))
            return events + self._hear_of_nodes()
        by_generator = {id(task.generator): handle for handle, task in self._tasks.items()}
        ready, _ = self.ray.wait([task.generator for task in self._tasks.values()], num_returns=1,
                                 timeout=0 if events else seconds, fetch_local=False)
        if ready:
            ready, _ = self.ray.wait([task.generator for task in self._tasks.values()],
                                     num_returns=len(self._tasks), timeout=0, fetch_local=False)
        for generator in ready:
            events += self._hear(by_generator[id(generator)])
        return events

    def _hear_of_nodes(self) -> list[Event]:
        events = []
        with contextlib.suppress(queue.Empty):
            while True:
                news = self._news.get_nowait()
                if isinstance(news, Node):
                    self._add(news)
                    events.append(Event("told", "", f"node {news.host} has joined: {news.slots} more at a time"))
                else:
                    events.append(Event("told", "", str(news)))
        return events

    def _hear(self, handle: Handle) -> list[Event]:
        task = self._tasks[handle]
        value: Any
        try:
            kind, value = self.ray.get(next(task.generator))
        except StopIteration:  # after the last answer, which has been heard
            kind, value = "lost", {"cause": "node", "reason": "a task ended without an answer"}
        except self.ray.exceptions.RayError as error:
            kind, value = self._outcome(error, task.node)
        if kind == "file":
            assert task.request.folder is not None
            name, chunk = value
            with (task.request.folder / Path(name).name).open("ab") as file:
                file.write(chunk)
            return []
        if kind != "progress":
            self._forget(handle)
        return [Event(kind, handle, value)]

    def _outcome(self, error: Exception, node: Node) -> tuple[str, Any]:
        """Return the meaning of an error of Ray's for a task: failed by itself, or lost."""
        words = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        exceptions = self.ray.exceptions
        if isinstance(error, exceptions.OutOfMemoryError):
            return "error", {"type": "OutOfMemory", "message": f"node {node.host} ran out of memory: {words}"}
        if isinstance(error, exceptions.RayTaskError):
            cause = getattr(error, "cause", error)
            return "error", {"type": type(cause).__name__, "message": str(cause)}
        if node.id in self._cluster.alive():
            return "lost", {"cause": "worker", "reason": f"a worker on node {node.host} was lost ({words})"}
        self._nodes.pop(node.id, None)
        return "lost", {"cause": "node", "reason": f"node {node.host} was lost"}

    def _forget(self, handle: Handle) -> None:
        task = self._tasks.pop(handle)
        task.node.running -= 1

    def stop(self, handle: Handle) -> None:
        """Cancel a request."""
        if handle in self._tasks:
            # Not by force: the task ends its worker process, and Ray keeps its own.
            task = self._tasks[handle]
            with contextlib.suppress(Exception):
                self._cluster.on(task.node.id, ray_tasks.stop_request, task.mark)
                self.ray.cancel(task.generator, force=False)
            self._forget(handle)

    def close(self) -> None:
        """Cancel everything, remove the nodes' copies of the tokens, and leave the cluster."""
        if self._ended.is_set():
            return
        self._ended.set()
        for handle in list(self._tasks):
            self.stop(handle)
        with contextlib.suppress(Exception):
            alive = self._cluster.alive()
            removing = [self._cluster.on(node.id, ray_tasks.remove_tokens, node.dataset)
                        for node in self._nodes.values() if node.copied and node.id in alive]
            if removing:
                self.ray.wait(removing, num_returns=len(removing), timeout=10)
        if self._owns:
            with contextlib.suppress(Exception):
                self.ray.shutdown()
