"""The process that runs claims' experiments, and trains the language model as every worker does."""

import importlib
import time
from typing import Any

from nonlin.errors import NonlinError
from nonlin.training import config_hash, machine, worker


def run_experiment(config: dict[str, Any]) -> dict[str, Any]:
    """Return the record of an experiment: a function of its configuration alone, but for "timing"."""
    module, _, name = config["experiment"].partition(".")
    functions = importlib.import_module(f"nonlin.claims.{module}").EXPERIMENTS
    if name not in functions:
        raise NonlinError(f"unknown experiment {config['experiment']!r}")
    machine.prepare_process(1)
    begin = time.perf_counter()
    measured = functions[name](config)
    return {"format": 1, "config_hash": config_hash(config), "measured": measured,
            "timing": {"seconds": time.perf_counter() - begin}}


def handle(request: dict[str, Any]) -> Any:
    """Do one request and return its answer."""
    return run_experiment(request["config"]) if request["do"] == "experiment" else worker.handle(request)


if __name__ == "__main__":
    worker.main(handle)
