"""Training or measuring one model, in this process or as one of those that train it together.

A worker that trains can be told to end (SIGTERM): its run writes a checkpoint first.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nonlin.training import measuring, trial
from nonlin.training.checkpoint import Checkpoints


class _Stop:
    """Whether this process is told to end while a run is to write its checkpoint first."""

    running = asked = False


def train(request: dict[str, Any], told: trial.Progress, asked: Callable[[], bool] = lambda: False) -> Any:
    """Train or measure the model of a request and return the answer; ``told`` gets the progress.

    A run that is ``asked()`` to stop writes its checkpoint and raises Stopped.
    """
    config, dataset = request["config"], Path(request["dataset"])
    if request["do"] == "measure":
        return measuring.measure(config, dataset, request.get("seconds", 1.5), request.get("evaluate", True))
    folder = Path(request["trial"])
    checkpoints = Checkpoints(folder, request.get("checkpoint_seconds"), asked)
    trunks = request.get("trunks")
    return trial.run_trial(config, dataset, folder, told, checkpoints, Path(trunks) if trunks else None)


@contextlib.contextmanager
def stoppable(run: bool) -> Iterator[Callable[[], bool]]:
    """Let SIGTERM ask a ``run`` to stop, instead of ending this process; yield whether it did."""
    _Stop.running = run
    try:
        yield lambda: _Stop.asked
    finally:
        _Stop.running = False


def told_to_end(*_: object) -> None:
    """Handle SIGTERM: end at once, or let the run write its checkpoint."""
    if not _Stop.running:
        os._exit(128 + signal.SIGTERM)
    _Stop.asked = True
