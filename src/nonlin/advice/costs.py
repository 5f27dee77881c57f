"""What each option costs here: one feed-forward block's training step, measured for a few seconds."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nonlin.functions import Definition
from nonlin.nn import FeedForward

SECONDS, TOKENS, WIDEST, ROUNDS = 6.0, 256, 1024, 15


def measure(definitions: Sequence[Definition], dim: int, hidden: Mapping[str, int], seconds: float = SECONDS
            ) -> dict[str, Any]:
    """Return {"device", "dim", "tokens", "scaled", "options": {name: {"step_ms", "saved_bytes_per_token"}}}.

    A step is forward and backward of one block in float32, the options interleaved, the median of what fits in
    ``seconds``. A block wider than WIDEST is measured at that width and its time scaled by its matrix products
    (``scaled`` says so). ``saved_bytes_per_token`` is what autograd keeps between forward and backward, without the
    weights and without the block's input.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width = min(dim, WIDEST)
    share = width / dim
    blocks, widths = {}, {}
    for definition in definitions:
        widths[definition.name] = max(8, round(hidden[definition.name] * share / 8) * 8)
        blocks[definition.name] = FeedForward(width, widths[definition.name], definition, device=device)
    x = torch.randn(TOKENS, width, device=device, requires_grad=True)
    times: dict[str, list[float]] = {name: [] for name in blocks}
    saved = {name: _step(block, x, count=True)[1] for name, block in blocks.items()}  # warms up, too
    end = time.perf_counter() + seconds
    for turn in range(ROUNDS):
        if turn >= 3 and time.perf_counter() > end:
            break
        for name, block in blocks.items():
            times[name].append(_step(block, x)[0])
    options = {}
    for name in blocks:
        scale = dim * hidden[name] / (width * widths[name])
        options[name] = {"step_ms": 1e3 * statistics.median(times[name]) * scale,
                         "saved_bytes_per_token": round(saved[name] / TOKENS * hidden[name] / widths[name])}
    return {"device": device, "threads": torch.get_num_threads(), "dim": dim, "tokens": TOKENS, "scaled": width != dim,
            "options": options}


def _step(block: FeedForward, x: torch.Tensor, count: bool = False) -> tuple[float, int]:
    """Return (seconds, bytes saved for backward) of one forward and backward."""
    weights = {p.data_ptr() for p in block.parameters()} | {x.data_ptr()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    block.zero_grad()
    started = time.perf_counter()
    if count:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = block(x)
    else:
        out = block(x)
    out.sum().backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, sum(kept.values())
