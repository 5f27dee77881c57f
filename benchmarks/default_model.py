"""How well a study of a given shape tells activations apart in a given time: what the defaults are chosen by.

For each shape, each arm is trained on the same seeds for as many steps as fit the same seconds; what is printed is
the mean paired difference to gelu, its deviation over seeds, and their ratio: the larger it is for a difference that
is there, the fewer seeds settle it.

    python benchmarks/default_model.py [--seconds 20] [--seeds 4] [--shapes 4x128,3x96,4x64]
"""

import argparse
import math
import statistics
import tempfile
from pathlib import Path

from nonlin.data import load_corpus, prepare
from nonlin.functions import get
from nonlin.model import ModelConfig, parameter_count
from nonlin.nn import matched_hidden
from nonlin.study import Arm, ProcessEngine, Request
from nonlin.study.engines import ask_all, measure
from nonlin.study.request import trial_config

ARMS = ("gelu", "relu", "swiglu", "relu_squared", "tanh")
MACHINE = {"engine": "native", "dtype": "float32", "threads": 1, "device": "cpu"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of training a run")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--shapes", default="4x128,3x96,4x64")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        info = prepare(load_corpus(None), Path(folder), "bytes")
        with ProcessEngine(folder, 2) as engine:
            for shape in options.shapes.split(","):
                layers, dim = (int(part) for part in shape.split("x"))
                one_shape(engine, Path(folder), info, layers, dim, options)


def one_shape(engine, folder, info, layers, dim, options):
    """Train all arms on all seeds; print how far apart they are."""
    model = {"layers": layers, "dim": dim, "heads": max(2, dim // 32), "kv_heads": max(2, dim // 32),
             "context": options.context, "vocabulary": 256}
    arms = []
    for name in ARMS:
        kind = get(name).kind
        hidden = matched_hidden(dim, kind)
        count = parameter_count(ModelConfig(**model, hidden=hidden), kind == "gated")
        arms.append(Arm(name, kind, hidden, count))
    request = Request(arms, "gelu", model, info, batch=options.batch)
    speeds = measure(engine, request.measure_configs(MACHINE), 2.0)
    rate = statistics.median(s["tokens_per_second"] for s in speeds.values())
    steps = max(20, round(options.seconds * rate / request.tokens_per_step))
    recipe = {**request.training, "steps": steps, "batch": options.batch, "learning_rate": options.learning_rate}
    configs = {(arm.name, seed): trial_config(arm, model, info, recipe, MACHINE, "tune", seed)
               for seed in range(1, options.seeds + 1) for arm in arms}
    records = ask_all(engine, [{"do": "trial", "config": c, "trial": str(folder / f"{layers}x{dim}-{a}-{s}")}
                          for (a, s), c in configs.items()])
    losses = {key: record["bits_per_byte"] for key, record in zip(configs, records, strict=True)}
    print(f"\n{layers} layers x {dim}: {arms[0].parameters:,} parameters, {rate:,.0f} tokens/s a process, "
          f"{steps} steps, {steps * request.tokens_per_step:,} tokens")
    for arm in ARMS:
        values = [losses[arm, s] if losses[arm, s] is not None else math.nan for s in range(1, options.seeds + 1)]
        pairs = [v - losses["gelu", s] for s, v in enumerate(values, 1)]
        mean, deviation = statistics.fmean(pairs), statistics.stdev(pairs)
        print(f"  {arm:<13} {statistics.fmean(values):.4f}  difference {mean:+.4f}  "
              f"deviation {deviation:.4f}  ratio {abs(mean) / (deviation or math.inf):.1f}", flush=True)


if __name__ == "__main__":
    main()
