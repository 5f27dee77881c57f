"""From a choice to a ready engine: its kind, its device, the number of trials at once."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nonlin.errors import NonlinError
from nonlin.numbers import counted
from nonlin.study.defaults import STEPS
from nonlin.study.engines.asking import ask, ask_all, measure
from nonlin.study.engines.choice import EngineChoice
from nonlin.study.engines.processes import ProcessEngine
from nonlin.study.engines.protocol import Engine
from nonlin.study.store import DamagedRecord, Store
from nonlin.training.resources import usable_cores

_SHARING = (1, 2, 4, 8)  # trials on one GPU that are tried
_TOGETHER = 2.0  # seconds that they are measured for, all at once
_WORTH_IT = 1.05  # a gain in speed below it is noise, and each trial more takes memory
_ROUNDS = 5  # of a measurement that decides how long arms train
_RECORDS = 20  # finished runs that are asked for their memory


@contextlib.contextmanager
def open_engine(choice: EngineChoice, directory: Path, command: Sequence[str] | None = None) -> Iterator[Engine]:
    """Open the engine for the study in a folder; it is let go of at the end.

    Raises UserError where it is not installed or not there.
    """
    engine: Any
    if choice.name == "ray":
        from nonlin.study.engines.ray import RayEngine

        engine = RayEngine(directory / "data", choice.address, choice.workers, command,
                           trials_per_gpu=choice.trials_per_gpu or 1, devices_per_trial=choice.devices_per_trial)
    elif choice.name == "slurm":
        from nonlin.study.engines.slurm import SlurmEngine

        engine = SlurmEngine(directory, choice.slurm, choice.workers, command,
                             devices_per_trial=choice.devices_per_trial)
    else:
        engine = ProcessEngine(directory / "data", choice.workers, command, choice.trials_per_gpu or 0,
                               choice.devices_per_trial)
    try:
        yield engine
    finally:
        engine.close()


def choose_machine(engine: Engine, config: Mapping[str, Any], environment: Mapping[str, Any],
                   parallel: str = "ddp", precision: str = "auto", steps: int | None = None) -> dict[str, Any]:
    """Return the machine settings that train this configuration fastest, and fit the engine to it.

    ``steps`` is a run's length, where that is known: a long one is worth more trying.
    """
    answer = ask(engine, {"do": "machine", "config": config, "precision": precision, "steps": steps})
    machine = answer["machine"]
    memory = max(option.get("peak_memory_bytes", 0) for option in answer["measured"])
    devices = getattr(engine, "devices_per_trial", 1)
    if devices > 1:
        machine = {key: value for key, value in machine.items() if key != "graphs"}  # their steps are launched
        machine |= {"devices": devices, "parallel": parallel}
    if machine["device"] != "cpu" and isinstance(engine, ProcessEngine) and not engine.trials_per_gpu:
        engine.trials_per_gpu = 1 if devices > 1 else _measure_sharing(
            engine, {**config, "machine": machine}, steps or STEPS)
    engine.fit(machine["device"], environment, memory or None)
    if "own" in config.get("model", ()) and machine["device"] == "cpu" and isinstance(engine, ProcessEngine):
        # A model that leaves cores idle, for want of memory to train more at once, gets several of them.
        machine = machine | {"threads": max(1, usable_cores() // (engine.total() * devices))}
    return machine


def _measure_sharing(engine: ProcessEngine, config: Mapping[str, Any], steps: int) -> int:
    """Return how many trials to run on one GPU: as many as finish the most runs of so many ``steps`` a second.

    Each process is started and has trained before it is measured: beside one that still starts, another has the GPU
    alone.
    """
    tokens = steps * config["training"]["batch"] * config["model"]["context"]
    question = {"do": "measure", "config": config}
    best, most = 1, 0.0
    for count in _SHARING:
        engine.trials_per_gpu = count
        engine.fit("cuda", {"gpus": 1}, None)
        try:
            ask_all(engine, [question | {"seconds": 0.0, "evaluate": False}] * count)
            found = ask_all(engine, [question | {"seconds": _TOGETHER}] * count)
        except NonlinError:  # no more of them fit its memory
            break
        finished = sum(1 / (one["seconds_overhead"] + tokens / one["tokens_per_second"]) for one in found)
        if finished < _WORTH_IT * most:
            break
        best, most = count, finished
    return best


def measure_and_fit(engine: Engine, configs: Mapping[str, Mapping[str, Any]], machine: Mapping[str, Any],
                    environment: Mapping[str, Any], seconds: float = 1.5, equal_times: bool = False
                    ) -> dict[str, Any]:
    """Return every configuration's speed, as :func:`measure`; the engine runs as many at once as the largest allows.

    ``equal_times``: the speeds decide how long each trains, so they are measured in several rounds.
    """
    speeds = measure(engine, configs, seconds / 3, _ROUNDS) if equal_times else measure(engine, configs, seconds)
    engine.fit(machine["device"], environment, max(s.get("peak_memory_bytes", 0) for s in speeds.values()) or None)
    return speeds


def fit_to_records(engine: Engine, machine: Mapping[str, Any], environment: Mapping[str, Any], store: Store,
                   measured: int = 0) -> None:
    """Fit the engine to a study that goes on: to the memory that its finished runs took, or ``measured`` before."""
    taken = [measured]
    for key in store.hashes()[:_RECORDS]:
        with contextlib.suppress(DamagedRecord):
            taken.append(store.read(key)[1].get("timing", {}).get("peak_memory_bytes") or 0)
    engine.fit(machine.get("device", "cpu"), environment, max(taken) or None)


def crowded(engine: Engine, machine: Mapping[str, Any], memory_bytes: int, free: int | None) -> list[str]:
    """Return a word of caution where the runs at once take more memory together than was free before they began."""
    if not isinstance(engine, ProcessEngine) or machine.get("device", "cpu") != "cpu" or not memory_bytes or not free:
        return []
    count, needed = engine.total(), engine.total() * engine.devices_per_trial * memory_bytes
    return [f"Take care: {counted(count, 'run')} at once take{'s' * (count == 1)} about {needed / 2**30:,.1f} GiB of "
            f"memory, and {free / 2**30:,.1f} are free. " + ("Take fewer --workers." if count > 1 else
            "Take a smaller model, --batch or --context.")] if needed > free else []
