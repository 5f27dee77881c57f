"""Decoding through a ReLU² block that skips zero units, beside torch's layers and our dense path; on the CPU.

A block 2048 → 8192 → 2048 in bfloat16, 90 % of the hidden units zero for each token, 1, 2, 4 and 8 tokens. Tokens are
drawn apart, so that their zeros differ. Arms alternate in one process; medians over rounds, and the median and
quartiles of the ratio of two arms in one round. Several copies of the block are used in turn, more than the caches
hold, as a model's layers are.

    python benchmarks/sparse_decode.py [--tokens 1 2 4 8] [--zeros 0.9] [--rounds 30] [--json FILE]
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch

from nonlin.functions import get
from nonlin.kernels.ffn import fast_path
from nonlin.kernels.ffn.layout import Form, Tensors
from nonlin.kernels.ffn.sparse import Units
from nonlin.training import machine

DIM, HIDDEN, BLOCKS = 2048, 8192, 3
FORM = Form(get("relu_squared"), "plain", False)


def block(zeros, seed):
    """Weights whose hidden units are zero with the given probability, and the bias that makes them so."""
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(*shape, generator=generator) * shape[1]**-0.5 for shape in ((HIDDEN, DIM), (DIM, HIDDEN)))
    shift = -float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(zeros)))
    return [up.bfloat16(), down.bfloat16(), torch.full((HIDDEN,), shift).bfloat16()]


def by_torch(x, up, down, bias):
    """Torch's layers, one after the other."""
    return torch.nn.functional.linear(torch.relu(torch.nn.functional.linear(x, up, bias)).square(), down)


def measure(tokens, zeros, rounds):
    """Return medians in milliseconds by arm, ratios to sparse with their quartiles, the share skipped, the error."""
    blocks = [block(zeros, seed) for seed in range(BLOCKS)]
    units = [Units() for _ in blocks]
    x = torch.randn(rounds + 1, tokens, DIM, generator=torch.Generator().manual_seed(9)).bfloat16()

    def tensors(k, turn):
        up, down, bias = blocks[k]
        return Tensors(x[turn], None, up, down, None, bias)

    arms = {"torch": lambda k, turn: by_torch(x[turn], *blocks[k]),
            "dense": lambda k, turn: fast_path.value(tensors(k, turn), FORM),
            "sparse": lambda k, turn: units[k](tensors(k, turn), FORM)}
    times = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name in list(arms) if turn % 2 else reversed(list(arms)):
            start = time.perf_counter()
            for k in range(BLOCKS):
                arms[name](k, turn)
            if turn:
                times[name].append((time.perf_counter() - start) / BLOCKS)
    exact = by_torch(x[0].double(), *(w.double() for w in blocks[0]))
    found = {"tokens": tokens, "skipped": statistics.mean(u.skipped for u in units),
             "ms": {name: 1e3 * statistics.median(some) for name, some in times.items()}, "ratio": {}, "error": {}}
    for name in ("torch", "dense"):
        ratios = sorted(a / b for a, b in zip(times[name], times["sparse"], strict=True))
        found["ratio"][name] = [statistics.median(ratios), *statistics.quantiles(ratios, n=4)[::2]]
    for name in arms:
        found["error"][name] = float((arms[name](0, 0).double() - exact).norm() / exact.norm())
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--zeros", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    load, results = os.getloadavg()[0], []
    print("tokens  skipped  torch ms  dense ms  sparse ms  torch / sparse     dense / sparse     error: torch, sparse")
    with torch.no_grad():
        for tokens in args.tokens:
            r = measure(tokens, args.zeros, args.rounds)
            shown = ["{:.2f} ({:.2f}–{:.2f})".format(*r["ratio"][name]) for name in ("torch", "dense")]
            print(f"{tokens:6} {100 * r['skipped']:6.0f} % {r['ms']['torch']:9.2f} {r['ms']['dense']:9.2f} "
                  f"{r['ms']['sparse']:10.2f}  {shown[0]:17}  {shown[1]:17}  {r['error']['torch']:.1e}, "
                  f"{r['error']['sparse']:.1e}", flush=True)
            results.append(r)
    if args.json:
        args.json.write_text(json.dumps({
            "command": "python benchmarks/" + " ".join(["sparse_decode.py", *(argv or sys.argv[1:])]),
            "machine": machine.describe(), "threads": torch.get_num_threads(), "load_at_start": load,
            "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
