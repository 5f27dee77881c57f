"""How fast the Triton kernels are on this machine's GPU, against eager torch, torch.compile and Liger (if installed).

Without a GPU it says so and ends with status 2.

First part: SwiGLU and GEGLU (with tanh, the form that Liger has) forward; backward (gradients of gate and up and the
product again, from the output's gradient); and packed. Second part: a feed-forward training step (input and three
weights), time and peak memory. Third part: how long a call keeps the processor, on 64 numbers. Arms alternate in
rounds; medians of events of the GPU, which is given work before so that it waits for no launch; "copy" is the share of
the bandwidth of torch's own copy of a tensor of that shape, counting what must be read and written once.

    python benchmarks/gpu.py [--rows 8192] [--widths 11008,14336] [--dtype bfloat16] [--rounds 30] [--json FILE]
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from nonlin import functional
from nonlin.functions import get
from nonlin.kernels import dispatch, explain, feed_forward
from nonlin.training import machine

EAGER = {"swiglu": lambda gate, up: F.silu(gate) * up,
         "geglu_tanh": lambda gate, up: F.gelu(gate, approximate="tanh") * up}
_BUSY = 1_500_000  # cycles, nearly a millisecond
NUMBERS = {"forward": 3, "backward": 6, "packed": 3}
"""Numbers that an element of the output costs at least, read and written once."""


def liger(name):
    """Return Liger's autograd function for an activation, or None where it is not installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.ops.geglu import LigerGELUMulFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return {"swiglu": LigerSiLUMulFunction, "geglu_tanh": LigerGELUMulFunction}[name].apply


def value_and_gradients(function):
    """Return the function of (gradient, gate, up) that gives both gradients and the value again."""
    def call(gradient, gate, up):
        value, pull = torch.func.vjp(function, gate, up)
        return (*pull(gradient), value)
    return call


def arms(name, which, rows, width, dtype):
    """Return {arm: function of nothing} for one row of the table."""
    packed = torch.randn(rows, 2 * width, device="cuda", dtype=dtype)
    gate, up = packed[:, :width].contiguous(), packed[:, width:].contiguous()
    gradient, place, eager = torch.randn_like(gate), torch.empty_like(gate), EAGER[name]
    made = {"copy": lambda: place.copy_(gate)}
    if which == "forward":
        own, fast, other = functional.activation(name), torch.compile(eager), liger(name)
        made |= {"nonlin": lambda: own(gate, up), "eager": lambda: eager(gate, up), "compile": lambda: fast(gate, up)}
        if other is not None:
            made["liger"] = lambda: other(gate, up)
    elif which == "packed":
        own = functional.packed(name)

        def whole(x):
            return eager(*x.chunk(2, -1))

        fast = torch.compile(whole)
        made |= {"nonlin": lambda: own(packed), "eager": lambda: whole(packed), "compile": lambda: fast(packed)}
    else:
        pull, definition = value_and_gradients(eager), get(name)
        fast = torch.compile(pull)
        made |= {"nonlin": lambda: dispatch.backward(definition, gradient, (gate, up), want_value=True),
                 "eager": lambda: pull(gradient, gate, up), "compile": lambda: fast(gradient, gate, up)}
    return made


def measure(made, rounds):
    """Return {arm: milliseconds}, medians over rounds in which the arms alternate; caches are emptied between."""
    flush = torch.empty(2**26, dtype=torch.int32, device="cuda")
    for call in made.values():
        for _ in range(3):
            call()
    times = {arm: [] for arm in made}
    for _ in range(rounds):
        for arm, call in made.items():
            flush.zero_()
            torch.cuda._sleep(_BUSY)  # while the processor launches
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times[arm].append(begin.elapsed_time(end))
    return {arm: statistics.median(t) for arm, t in times.items()}


def activation_row(name, which, width, options, dtype):
    """Return one row of the first table."""
    times = measure(arms(name, which, options.rows, width, dtype), options.rounds)
    copied = times.pop("copy")
    nbytes = options.rows * width * dtype.itemsize
    return {"activation": name, "pass": which, "rows": options.rows, "width": width, "ms": times,
            "copy_share": NUMBERS[which] / 2 * copied / times["nonlin"], "copy_gb_s": 2 * nbytes / copied / 1e6}


def step_arms():
    """Return {arm: function of (x, gate, up, down)} for the feed-forward step."""
    def eager(x, gate, up, down):
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    made = {"eager": eager, "compile": torch.compile(eager, fullgraph=True)}
    other = liger("swiglu")
    if other is not None:
        made["liger"] = lambda x, gate, up, down: F.linear(other(F.linear(x, gate), F.linear(x, up)), down)
    for memory in ("lean", "minimal"):
        made[f"nonlin {memory}"] = lambda *t, memory=memory: feed_forward(*t, activation="swiglu", memory=memory)
    return made


def step_rows(width, options, dtype):
    """Return rows of the second table: time of forward and backward, and the memory it needs at its peak."""
    dim = options.dim
    shapes = ((options.rows, dim), (width, dim), (width, dim), (dim, width))
    tensors = [(torch.randn(s, device="cuda") * s[1] ** -0.5).to(dtype).requires_grad_() for s in shapes]
    upstream = torch.randn(options.rows, dim, device="cuda", dtype=dtype)
    calls = {arm: (lambda f=f: torch.autograd.grad(f(*tensors), tensors, upstream)) for arm, f in step_arms().items()}
    times, rows = measure(calls, options.rounds), []
    for arm, call in calls.items():
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        rows.append({"arm": arm, "rows": options.rows, "dim": dim, "width": width, "ms": times[arm],
                     "peak_mib": (torch.cuda.max_memory_allocated() - before) / 2**20})
    return rows


def launch_rows():
    """Return rows of the third table: microseconds of the processor for a call, forward and with its gradient."""
    rows = []
    for name, eager in (("silu", F.silu), ("swiglu", EAGER["swiglu"])):
        own = functional.activation(name)
        fast = torch.compile(eager)
        for which in ("forward", "forward with gradient"):
            inputs = [torch.randn(64, device="cuda", requires_grad=which != "forward") for _ in get(name).variables]

            def calls(f, inputs=inputs, which=which):
                out = f(*inputs)
                if which != "forward":
                    torch.autograd.grad(out, inputs, out)

            times = {"nonlin": [], "eager": [], "compile": []}
            for _ in range(12):
                for arm, f in (("nonlin", own), ("eager", eager), ("compile", fast)):
                    calls(f)
                    torch.cuda.synchronize()
                    begin = time.perf_counter()
                    for _ in range(100):
                        calls(f)
                    times[arm].append((time.perf_counter() - begin) * 1e4)
            rows.append({"activation": name, "pass": which, "us": {a: statistics.median(t) for a, t in times.items()}})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--widths", default="11008,14336")
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py measures on a GPU, and torch finds none here: nothing was measured.", file=sys.stderr)
        return 2
    dtype, widths = getattr(torch, options.dtype), [int(w) for w in options.widths.split(",")]
    about = machine.describe() | {"dtype": options.dtype, "rounds": options.rounds}
    print(json.dumps(about), explain("swiglu", *[torch.empty(1, device="cuda", dtype=dtype)] * 2), sep="\n")
    if liger("swiglu") is None:
        print("Liger is not installed: its arm is left out")
    activations, steps = [], []
    for name in EAGER:
        for which in NUMBERS:
            for width in widths:
                row = activation_row(name, which, width, options, dtype)
                activations.append(row)
                others = "  ".join(f"{arm} {ms:.3f} ms ({ms / row['ms']['nonlin']:.2f}x)" for arm, ms in
                                   row["ms"].items() if arm != "nonlin")
                print(f"{name} {which} {options.rows} x {width}: nonlin {row['ms']['nonlin']:.3f} ms, "
                      f"{row['copy_share'] * 100:.0f} % of copy bandwidth ({row['copy_gb_s']:.0f} GB/s); {others}",
                      flush=True)
    for width in widths:
        for row in step_rows(width, options, dtype):
            steps.append(row)
            print(f"step {options.rows} x {options.dim} -> {width}, {row['arm']}: {row['ms']:.2f} ms, "
                  f"peak {row['peak_mib']:.0f} MiB", flush=True)
    launches = launch_rows()
    for row in launches:
        print(f"{row['activation']} {row['pass']}, 64 numbers: " + "  ".join(
            f"{arm} {us:.1f} us" for arm, us in row["us"].items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(
            {"machine": about, "activations": activations, "steps": steps, "launches": launches}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
