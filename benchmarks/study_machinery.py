"""What a study costs beside its training: planning, scheduling, sealing, reading again, the page, by trial.

Trials answer at once. The time of the wall is the disk's too: each record is synced before it counts. The processor's
time is the machinery's own.

    python benchmarks/study_machinery.py [--seeds 12,50,200,800]
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections import deque
from pathlib import Path

from nonlin.report import build
from nonlin.study import Arm, Request, Store, load, make_plan, run_study
from nonlin.study.engines import Event, Slot
from nonlin.training.config import config_hash

ARMS = ("gelu", "relu", "silu", "swiglu", "geglu", "relu_squared")
MODEL = {"layers": 2, "dim": 96, "heads": 3, "kv_heads": 3, "context": 64, "vocabulary": 256}
DATA = {"sha256": "0" * 64, "tokenizer": "bytes", "description": "nothing", "train_tokens": 10**7, "train_bytes": 10**7}
MACHINE = {"engine": "torch", "dtype": "float32", "threads": 1, "device": "cpu"}


class AtOnce:
    """An engine whose trials answer at the next poll."""

    detached = False

    def __init__(self, slots=16):
        self.slots, self.ready = slots, deque()

    def total(self):
        return self.slots

    def free(self):
        return {Slot("none"): self.slots - len(self.ready)}

    def start(self, request, slot):
        handle = f"{request.key}.{request.attempt}"
        config = request.body["config"]
        digest = hashlib.sha256(f"{config['activation']['name']}{config['seed']}".encode()).digest()
        loss = 2 + digest[0] / 256000 + abs(config["training"]["learning_rate"] / 0.01 - 1) / 50
        (request.folder / "metrics.jsonl").write_text("".join(json.dumps(
            {"kind": "train", "step": s, "tokens": s, "loss_nats": loss + 1 / s}) + "\n" for s in range(1, 60)))
        self.ready.append(Event("done", handle, {
            "format": 1, "config_hash": config_hash(config), "status": "finished", "bits_per_byte": loss,
            "initial_bits_per_byte": 8.0, "best_bits_per_byte": loss, "spike_score": 0.0, "parameters": 1,
            "hidden": 1, "flops_per_token": 1, "dead_share": 0.0, "sparsity": 0.5, "weights_sha256": None,
            "layers": None, "timing": {"tokens_per_second": 1.0, "seconds": 1.0, "peak_memory_bytes": 1}}))
        return handle

    def find(self, request):
        return None

    def poll(self, seconds):
        events = list(self.ready)
        self.ready.clear()
        return events

    def stop(self, handle):
        pass

    def close(self):
        pass


def timed(call):
    """Return (what a call returns, milliseconds of the wall, of the processor)."""
    wall, processor = time.perf_counter(), time.process_time()
    value = call()
    return value, 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - processor)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="12,50,200,800")
    options = parser.parse_args()
    print("| trials | plan | run | read again | page | all, a trial |\n| --- | --- | --- | --- | --- | --- |")
    for seeds in map(int, options.seeds.split(",")):
        arms = [Arm(name, "pointwise", 384, 270_000) for name in ARMS]
        request = Request(arms, "gelu", MODEL, DATA, seeds=seeds, steps=300)
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            plan, *planning = timed(lambda request=request: make_plan(
                request, dict.fromkeys(ARMS, 1e5), MACHINE, workers=16))
            _, *running = timed(lambda plan=plan, store=store: run_study(plan, store, AtOnce()))
            _, *reading = timed(lambda plan=plan, store=store: run_study(plan, store, AtOnce()))
            count = len(list(Path(folder, "trials").iterdir()))
            assert load(folder).results["status"] == "complete"
            _, *page = timed(lambda folder=folder: build(Path(folder)))
        parts = [planning, running, reading, page]
        cells = [f"{wall / count:.2f} ({processor / count:.2f})" for wall, processor in parts]
        total = [sum(part[i] for part in parts) / count for i in (0, 1)]
        print(f"| {count:,} | {' | '.join(cells)} | {total[0]:.2f} ({total[1]:.2f}) |", flush=True)
    print("\nMilliseconds a trial: of the wall (of the processor).")


if __name__ == "__main__":
    main()
