"""A worker without torch: same protocol, its record a deterministic function of the configuration.

Bits per byte: best near a learning rate of each activation's own, plus an effect and noise of the seed that all
activations share, plus noise of (effect, seed). The environment says how to misbehave, by configuration hash:
FAKE_SECONDS (a run's length), FAKE_DIE (a folder: the first run of a listed hash kills its process),
FAKE_DIE_ALWAYS, FAKE_FULL (runs that find the disk full), FAKE_FAIL (TYPE:FOLDER: runs that raise), FAKE_NOISE,
FAKE_LINES (how many losses a run logs, falling where there are more than five).
"""

import hashlib
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

EFFECT = {"identity": 0.2, "swiglu": -0.05, "silu": 0.001, "relu": 0.02}
ALIAS = {"twin": "gelu"}  # a twin computes what the other does


def config_hash(config):
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def noise(*what):
    digest = hashlib.sha256(repr(what).encode()).digest()
    return (int.from_bytes(digest[:8], "big") / 2**64 - 0.5) * 2


def loss_of(config):
    """Return bits per byte, None where the run diverges."""
    name = config["activation"]["name"]
    name = ALIAS.get(name, name)
    rate, seed = config["training"]["learning_rate"], config["seed"]
    limit = float(os.environ.get("FAKE_DIVERGE_ABOVE", "0.5"))
    if rate > limit or name == "exploding":
        return None
    far = 0.02 * math.log2(rate / 0.01) ** 2
    scale = float(os.environ.get("FAKE_NOISE", "0.001"))
    return 2.0 + EFFECT.get(name, 0.0) + far + 0.02 * noise(seed) + scale * noise(name, seed)


def run(config, folder):
    steps, loss = config["training"]["steps"], loss_of(config)
    seconds = float(os.environ.get("FAKE_SECONDS", "0"))
    with (folder / "metrics.jsonl").open("w", buffering=1) as log:
        lines = int(os.environ.get("FAKE_LINES", "5"))
        for step in range(1, lines + 1):
            if seconds:
                time.sleep(seconds / lines)
            fall = 3 / step if lines > 5 and loss is not None else 0
            log.write(json.dumps({"kind": "train", "step": step, "tokens": step * (1000 if lines > 5 else 1),
                                  "loss_nats": fall + loss if fall else loss,
                                  "learning_rate": 0.1, "gradient_norm": 1.0}) + "\n")
            answer({"progress": {"step": steps * step // lines, "steps": steps, "loss_nats": loss}})
    if config["purpose"] == "judge":
        (folder / "weights.safetensors").write_bytes(config_hash(config).encode())
    return {
        "format": 1, "config_hash": config_hash(config), "status": "diverged" if loss is None else "finished",
        "bits_per_byte": loss, "initial_bits_per_byte": 8.0, "best_bits_per_byte": loss, "spike_score": 0.0,
        "parameters": 1000, "hidden": config["model"]["hidden"], "flops_per_token": 6000,
        "dead_share": 0.25, "sparsity": 0.5, "weights_sha256": None,
        "layers": None if loss is None else [
            {"gradient_rms": 0.5, "dead_share": 0.25, "zero_output_share": 0.5, "output_rms": 1.0},
            {"gradient_rms": 1.0, "dead_share": float("nan"), "zero_output_share": 0.5, "output_rms": 1.0}],
        "timing": {"tokens_per_second": 1000.0 + time.time() % 1 + 90 * len(config["activation"]["name"]) * (
            "FAKE_LINES" in os.environ), "seconds": seconds + 0.001,
                   "peak_memory_bytes": os.getpid()}}


def misbehave(key):
    for variable, once in (("FAKE_DIE", True), ("FAKE_DIE_ALWAYS", False)):
        folder = os.environ.get(variable)
        if folder and (Path(folder) / key).exists():
            if once:
                (Path(folder) / key).unlink()
            print("about to die", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    name, _, folder = os.environ.get("FAKE_FAIL", "").partition(":")
    if folder and (Path(folder) / key).exists():
        with (Path(folder) / "starts").open("a") as file:
            file.write(key + "\n")
        raise type(name, (Exception,), {})("planted")
    full = os.environ.get("FAKE_FULL")
    if full and (Path(full) / key).exists():
        raise OSError(28, "No space left on device")


def answer(message):
    print(json.dumps(message), flush=True)


def main():
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "trial":
                misbehave(config_hash(request["config"]))
                answer({"done": run(request["config"], Path(request["trial"]))})
            elif request["do"] == "measure":
                answer({"done": {"tokens_per_second": 1e5, "seconds_overhead": 0.5}})
            elif request["do"] == "machine":
                option = {"engine": "torch", "dtype": "float32", "threads": 1, "device": "cpu"}
                answer({"done": {"machine": option, "measured": [option | {"peak_memory_bytes": 1}]}})
            elif request["do"] == "sleep":
                time.sleep(60)
            elif request["do"] == "environment":
                answer({"done": os.environ.get(request["name"])})
            elif request["do"] == "die":
                with open(request["count"], "a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            elif request["do"] == "eat":
                eaten = []
                while True:
                    eaten.append(bytearray(64 * 2**20))
                    answer({"progress": {"step": len(eaten), "loss_nats": None}})
                    time.sleep(0.02)
            elif request["do"] == "beat":
                Path(request["file"] + ".pid").write_text(str(os.getpid()))
                while True:
                    with open(request["file"], "a") as file:
                        file.write("x")
                    time.sleep(0.05)
            elif request["do"] == "describe":
                print("a line that is no answer", flush=True)
                answer({"done": {"cpu": "fake"}})
            else:
                answer({"error": {"type": "UserError", "message": f"no such request: {request['do']}"}})
        except Exception as error:
            answer({"error": {"type": type(error).__name__, "message": str(error)}})


if __name__ == "__main__":
    main()
