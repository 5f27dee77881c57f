"""How fast a configuration trains, and what a run takes beside its steps."""

import statistics
import time
from pathlib import Path
from typing import Any

from nonlin.data import Dataset
from nonlin.training import machine
from nonlin.training.trial import INITIAL_SHARE, Run

_FIRST_STEPS = 5  # of a measurement, in which kernels are compiled and the step is captured
_SHARES = (1 / 16, 1 / 4, 1.0)  # of an evaluation that are measured, as far as they are short


def measure(config: dict[str, Any], dataset_dir: Path, seconds: float = 1.5, evaluate: bool = True
            ) -> dict[str, float]:
    """Return a configuration's speed in tokens per second, and a run's seconds beside its steps.

    The speed is the median step's, with its share of steps that are looked into. "seconds_overhead" goes into
    building the model, first steps that compile or are captured, and evaluations, where it does ``evaluate``.
    "peak_memory_bytes" is the process' most.
    """
    machine.reset_peak_memory()
    begin = time.perf_counter()
    run = Run(config, Dataset(dataset_dir))
    run.step()
    setup = time.perf_counter() - begin
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while run.devices.agreed(len(times) < 3 or (time.perf_counter() < stop and len(times) < 2000)):
        begin = time.perf_counter()
        run.step()
        times.append(time.perf_counter() - begin)
    typical = statistics.median(times)
    setup += sum(max(0.0, one - typical) for one in times[:_FIRST_STEPS])
    begin = time.perf_counter()
    run.step(probe=True)
    looked_into = max(0.0, time.perf_counter() - begin - typical) / run.recipe["probe_every"]
    evaluation = _evaluation_seconds(run, seconds) if evaluate else 0.0
    return {"tokens_per_second": run.tokens_a_step / (typical + looked_into),
            "seconds_overhead": setup + evaluation * (INITIAL_SHARE + run.recipe["evaluations"]),
            "peak_memory_bytes": machine.peak_memory_bytes()}


def _evaluation_seconds(run: Run, seconds: float) -> float:
    """Return how long an evaluation takes, by a part of it where the whole takes longer than ``seconds``.

    A large model's whole evaluation is thousands of its steps.
    """
    taken = share = 1.0
    for share in _SHARES:
        begin = time.perf_counter()
        run.evaluate(share)
        taken = time.perf_counter() - begin
        if not run.devices.agreed(taken < seconds / 4):
            break
    return taken / share
