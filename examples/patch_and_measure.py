"""Accelerate a model and measure on this machine: bytes saved for backward, time of a training step, equality.

    python examples/patch_and_measure.py                     # a small Llama with random weights
    python examples/patch_and_measure.py path/to/checkpoint  # a folder of yours
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import nonlin


def saved_bytes(step: Callable[[], torch.Tensor]) -> int:
    """Bytes that a forward pass saves for backward, each storage once."""
    storages: dict[int, int] = {}

    def seen(x: torch.Tensor) -> torch.Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda x: x):
        step()
    return sum(storages.values())


def time_ms(model: nn.Module, step: Callable[[], torch.Tensor], rounds: int) -> float:
    """Median time of a forward and a backward pass."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        step().backward()
        times.append(1e3 * (time.perf_counter() - start))
        model.zero_grad()
    return statistics.median(times)


def main() -> None:
    """Measure before and after, and compare the outputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", default="lean", choices=["lean", "minimal", "fast"])
    asked = parser.parse_args()

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(asked.folder) if asked.folder else LlamaForCausalLM(LlamaConfig(
        hidden_size=128, intermediate_size=352, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=1000))
    tokens = torch.randint(0, model.config.vocab_size, (1, asked.tokens))

    def step() -> torch.Tensor:
        return model(tokens, labels=tokens).loss

    before = saved_bytes(step), time_ms(model, step, asked.rounds), step().item()
    print(nonlin.accelerate(model, memory=asked.memory))
    after = saved_bytes(step), time_ms(model, step, asked.rounds), step().item()
    print(f"saved for backward: {before[0]:,} bytes before, {after[0]:,} after")
    print(f"training step:      {before[1]:.1f} ms before, {after[1]:.1f} ms after")
    print(f"loss:               {before[2]:.6f} before, {after[2]:.6f} after")
    nonlin.restore(model)


if __name__ == "__main__":
    main()
