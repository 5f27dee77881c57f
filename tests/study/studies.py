"""Small studies for the tests, and the program that the killing tests run in a process of its own."""

import json
import sys
from pathlib import Path

from nonlin.study import Arm, ProcessEngine, Request, Store, make_plan, run_study
from nonlin.study.tuning import trials_of

WORKER = [sys.executable, str(Path(__file__).with_name("fake_worker.py"))]
MODEL = {"layers": 2, "dim": 32, "heads": 2, "kv_heads": 2, "context": 32, "vocabulary": 256}
DATA = {"sha256": "0" * 64, "tokenizer": "bytes", "description": "nothing"}
MACHINE = {"engine": "native", "dtype": "float32", "threads": 1}


def request(*names: str, **changes) -> Request:
    """A request for these activations (the first is the baseline), with the values in ``changes``."""
    names = names or ("gelu", "swiglu", "silu", "twin")
    arms = [Arm(n, "gated" if n == "swiglu" else "pointwise", 88 if n == "swiglu" else 128, 100_000) for n in names]
    values = {"arms": arms, "baseline": names[0], "model": MODEL, "data": DATA, "seeds": 4, "steps": 300} | changes
    return Request(**values)


def plan(*names: str, **changes):
    """The plan of :func:`request` on a machine that trains all arms equally fast."""
    asked = request(*names, **changes)
    return make_plan(asked, {arm.name: 1e5 for arm in asked.arms}, MACHINE)


def run(directory, made, listener=None, workers: int = 2):
    """Run a plan with fake workers."""
    store = Store(directory)
    with ProcessEngine("nowhere", workers, WORKER) as engine:
        return run_study(made, store, engine, listener)


def trap(folder, arm):
    """Mark an arm's first trial, for a fake worker that is told to look into this folder."""
    (folder / next(t for t in trials_of(plan(), "tune", {}) if t.arm == arm).key).touch()


def without_timing(value):
    """The value less everything under a key "timing"."""
    if isinstance(value, dict):
        return {k: without_timing(v) for k, v in value.items() if k != "timing"}
    return [without_timing(v) for v in value] if isinstance(value, list) else value


def main() -> None:
    """Run the standard study in the folder named by the first argument; print its status."""
    results = run(Path(sys.argv[1]), plan(), lambda event: print(json.dumps(event), flush=True))
    print(json.dumps({"status": results["status"]}), flush=True)


if __name__ == "__main__":
    main()
