"""How many runs of a finished study end a second, by how many share this machine's GPU.

    python -m benchmarks.gpu_sharing STUDY [--counts 1,2,4] [--runs 16] [--json FILE]

For each count the processes are started, train, are measured all at once, and then train ``--runs`` judged runs of the
study again, from their beginning to their end. Without a GPU it says so and ends with status 2.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from nonlin.study.engines import ProcessEngine, ask_all
from nonlin.training import machine


def row(study: Path, configs: list[dict[str, Any]], count: int, runs: int) -> dict[str, Any]:
    """Return the measured speeds, and the runs that ended a second."""
    question = {"do": "measure", "config": configs[0]}
    with ProcessEngine(study / "data", trials_per_gpu=count) as engine, tempfile.TemporaryDirectory() as folder:
        engine.fit("cuda", {"gpus": 1}, None)
        ask_all(engine, [question | {"seconds": 0.0, "evaluate": False}] * count)
        found = ask_all(engine, [question | {"seconds": 2.0}] * count)
        begin = time.perf_counter()
        records = ask_all(engine, [{"do": "trial", "config": configs[k % len(configs)], "trial": f"{folder}/{k}"}
                                   for k in range(runs)])
        seconds = time.perf_counter() - begin
    return {"at once": count, "tokens per second, measured": [round(one["tokens_per_second"]) for one in found],
            "seconds beside the steps": round(found[0]["seconds_overhead"], 2),
            "tokens per second of a run": round(records[0]["timing"]["tokens_per_second"]),
            "runs a second": round(runs / seconds, 3)}


def main() -> int:
    """Measure, print and record each count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--counts", default="1,2,4")
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gpu_sharing.py measures on a GPU, and torch finds none here: nothing was measured.",
              file=sys.stderr)
        return 2
    configs = [json.loads(path.read_text()) for path in sorted(given.study.glob("trials/*/config.json"))]
    configs = [config for config in configs if config["purpose"] == "judge"]
    rows = []
    for count in map(int, given.counts.split(",")):
        rows.append(row(given.study, configs, count, given.runs))
        print(rows[-1], flush=True)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine.describe(), "runs": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
