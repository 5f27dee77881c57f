"""What watching a model's health costs a training step: a 135 M-parameter Llama, with and without.

    python benchmarks/health_overhead.py [--out benchmarks/records/health_overhead.json]

Steps alternate: plain; watched but not observed; observed; observed with gradients. Medians and their ratios to plain
are printed, and the overhead at the default interval: (observed / plain - 1) / interval + (unobserved / plain - 1).
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nonlin import health
from nonlin.health.watching import EVERY
from nonlin.training import machine


def build() -> Any:
    """SmolLM2-135M's configuration, random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True)).train()


def measure(rounds: int, batch: int, context: int) -> dict[str, list[float]]:
    """Seconds of each kind of step, the kinds alternating."""
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    ids = torch.randint(0, 49152, (batch, context))

    def step() -> float:
        begin = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - begin

    step()
    times: dict[str, list[float]] = {"plain": [], "unobserved": [], "observed": [], "with_gradients": []}
    for _ in range(rounds):
        times["plain"].append(step())
        with health.watch(model, every=1000) as watched:
            watched.index = 1  # past the first, which is observed
            watched.step()
            times["unobserved"].append(step())
        for name, gradients in (("observed", False), ("with_gradients", True)):
            with health.watch(model, gradients=gradients) as watched:
                times[name].append(step())
            begin = time.perf_counter()
            watched.findings()
            times[name][-1] += time.perf_counter() - begin
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    times = measure(arguments.rounds, arguments.batch, arguments.context)
    middle = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: value / middle["plain"] for name, value in middle.items()}
    idle = max(0.0, ratios["unobserved"] - 1)
    record = {
        "command": f"python benchmarks/health_overhead.py --rounds {arguments.rounds} --batch {arguments.batch} "
                   f"--context {arguments.context}",
        "machine": machine.describe(), "threads": torch.get_num_threads(), "tokens_a_step": arguments.batch *
        arguments.context, "interval": EVERY, "seconds": times, "median_seconds": middle, "ratio_to_plain": ratios,
        "overhead_at_interval": (ratios["observed"] - 1) / EVERY + idle,
        "overhead_at_interval_with_gradients": (ratios["with_gradients"] - 1) / EVERY + idle,
    }
    print(json.dumps({k: record[k] for k in record if k not in ("machine", "seconds")}, indent=1))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
