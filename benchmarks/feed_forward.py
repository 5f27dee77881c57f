"""The feed-forward block's training step: ours in its three memory modes, eager torch and torch.compile.

One step is forward and backward with all gradients (input and three weights) from a given output gradient, SwiGLU,
no biases. The arms take turns in one process, so that they share allocator, threads and the machine's mood; the
process starts itself with the allocator told to keep its memory (``--allocator default`` leaves it alone). Medians;
the ratio of two arms is the median over rounds of the ratio in one round. "kept" is what the step holds for backward,
weights aside, in bytes a token.

    python benchmarks/feed_forward.py [--dtype float32 bfloat16] [--tokens 4096] [--seconds 100] [--json FILE]
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from nonlin.kernels import feed_forward
from nonlin.nn import FeedForward
from nonlin.training import machine

MEMORY = ("lean", "fast", "minimal")
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_MMAP_THRESHOLD_": "4294967296",
               "MALLOC_TOP_PAD_": "67108864"}


def eager(x, gate, up, down):
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def arms():
    """Return each arm's function of (x, gate, up, down)."""
    made = {"eager": eager, "torch.compile": torch.compile(eager, fullgraph=True)}
    for memory in MEMORY:
        made[f"nonlin {memory}"] = lambda x, gate, up, down, memory=memory: feed_forward(
            x, gate, up, down, activation="swiglu", memory=memory)
    return made


def step(call, tensors, upstream):
    """Run forward and backward; return the gradients."""
    return torch.autograd.grad(call(*tensors), tensors, upstream)


def kept_bytes(call, tensors):
    """Return the bytes of distinct storages held for backward that are no weight's."""
    weights = {t.untyped_storage().data_ptr() for t in tensors[1:]}
    held = {}

    def pack(t):
        held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(*tensors)
    return sum(size for at, size in held.items() if at not in weights)


def products_ms(tensors, upstream, rounds=3):
    """Return the time of the step's nine matrix products alone, written where they are kept: what remains is ours."""
    x, gate, up, down = (t.detach() for t in tensors)
    wide = [x.new_empty(x.shape[0], gate.shape[0]) for _ in range(2)]
    hidden, dx, weights = wide[0], torch.empty_like(x), [torch.empty_like(w) for w in (gate, up, down)]
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        torch.mm(x, gate.t(), out=wide[0]), torch.mm(x, up.t(), out=wide[1]), torch.mm(hidden, down.t(), out=dx)
        torch.mm(upstream, down, out=wide[1]), torch.mm(upstream.t(), hidden, out=weights[2])
        torch.mm(wide[0], gate, out=dx), torch.mm(wide[1], up, out=dx)
        torch.mm(wide[0].t(), x, out=weights[0]), torch.mm(wide[1].t(), x, out=weights[1])
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def measure(dtype, options):
    """Return {"dtype", "times_ms", "kept", "products_ms"} of one dtype."""
    torch.manual_seed(0)
    tokens, dim, hidden = options.tokens, options.dim, options.hidden
    tensors = [(torch.randn(*s) * scale).to(dtype).requires_grad_() for s, scale in (
        ((tokens, dim), 1), ((hidden, dim), dim**-0.5), ((hidden, dim), dim**-0.5), ((dim, hidden), hidden**-0.5))]
    upstream, calls = torch.randn(tokens, dim).to(dtype), arms()
    kept = {name: kept_bytes(call, tensors) / tokens for name, call in calls.items()}
    for call in calls.values():
        step(call, tensors, upstream)
    times = {name: [] for name in calls}
    begin = time.perf_counter()
    while len(times["eager"]) < 3 or time.perf_counter() - begin < options.seconds:
        for name, call in calls.items():
            start = time.perf_counter()
            step(call, tensors, upstream)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {"dtype": str(dtype).removeprefix("torch."), "times_ms": times, "kept_bytes_a_token": kept,
            "products_ms": products_ms(tensors, upstream)}


def ratio(times, slow, quick):
    """Return how many times ``quick`` is as fast as ``slow``: the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(times[slow], times[quick], strict=True))


def table(result):
    """Return the result as Markdown."""
    times, kept = result["times_ms"], result["kept_bytes_a_token"]
    lines = [f"{result['dtype']}: {len(times['eager'])} rounds; the nine matrix products alone take "
             f"{result['products_ms']:.0f} ms", "",
             "| arm | ms a step | against eager | against torch.compile | kept, bytes a token | share of eager's |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]
    lines += [f"| {name} | {statistics.median(t):.1f} | {ratio(times, 'eager', name):.2f}× | "
              f"{ratio(times, 'torch.compile', name):.2f}× | {kept[name]:,.0f} | {kept[name] / kept['eager']:.2f} |"
              for name, t in times.items()]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=60, help="time for the rounds of each dtype; 3 at least")
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.allocator == "keep" and any(os.environ.get(k) != v for k, v in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    about = machine.describe()
    print(f"{about['processor']['name']} ({', '.join(about['processor']['instructions'])}), "
          f"{torch.get_num_threads()} threads, torch {about['torch']}; {options.tokens} tokens, "
          f"{options.dim} → {options.hidden}, SwiGLU, allocator: {options.allocator}; "
          f"{FeedForward(options.dim, options.hidden).explain()}")
    results = []
    for dtype in options.dtype:
        results.append(measure(getattr(torch, dtype), options))
        print("\n" + table(results[-1]), flush=True)
    if options.json:
        sizes = {k: getattr(options, k) for k in ("tokens", "dim", "hidden", "allocator")}
        options.json.write_text(json.dumps({"machine": about, "threads": torch.get_num_threads(), **sizes,
                                            "results": results}, indent=1))


if __name__ == "__main__":
    main()
