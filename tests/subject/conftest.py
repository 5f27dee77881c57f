"""Worker processes that the studies of these tests share: each takes seconds to import torch and transformers."""

from collections import defaultdict

import pytest

from nonlin.study.engines import processes
from nonlin.study.engines.worker_process import WorkerProcess


class _Kept(WorkerProcess):
    """A worker that, told to end while it has nothing to do, waits for the next engine."""

    def __init__(self, pool, command, heard, visible):
        self.pool, self.idle = pool, True
        super().__init__(command, self._hear, visible)
        self.heard = heard

    def _hear(self, worker, answer):
        if answer is not None and answer[0] != "progress":
            self.idle = True
        self.heard(worker, answer)

    def send(self, body):
        self.idle = False
        super().send(body)

    def end(self):
        if not self.idle or self.process.poll() is not None:
            return super().end()
        self.pool.append(self)
        return 0


@pytest.fixture(scope="package", autouse=True)
def kept_workers():
    """Let engines begin with the idle workers of earlier ones; end them all at the end."""
    pools = defaultdict(list)

    def started(command, heard, visible=None):
        pool = pools[tuple(command), visible]
        if not pool:
            return _Kept(pool, command, heard, visible)
        worker = pool.pop()
        worker.heard = heard
        return worker

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "WorkerProcess", started)
        yield
    for pool in pools.values():
        for worker in pool:
            WorkerProcess.end(worker)
