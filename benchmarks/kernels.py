"""How fast the activations' kernels are on this CPU, against eager torch and torch.compile.

Every row times the same computation by three arms that take turns in rounds: eager (torch's own function where there
is one, else the formula as one would write it), torch.compile of that, and nonlin. Ratios are medians of each
round's; above 1 nonlin is faster. "copy" is the share of the bandwidth of torch's own copy of a tensor of that shape
and dtype, counting what must be read and written once.

    python benchmarks/kernels.py [--activations swiglu,gelu] [--dtypes bfloat16,float32] [--passes forward,backward]
                                 [--rows 4096] [--columns 2048] [--threads 2] [--rounds 9] [--no-compile]
                                 [--json FILE] [--minutes 4] [--warm] [--merge FILE ...] [--markdown]
                                 [--clock processor]

Before every measurement a copy between other tensors runs, so that each arm finds the same in the caches.

All arms run with the C library told to keep freed memory (on Linux), as a training process does: else every row would
measure how fast the system hands out zeroed pages.

With --json rows are written as they are measured, and those that the file has already are not measured again; with
--minutes the run ends after about so long, and the same command goes on. --warm measures nothing: it runs every
compiled arm once, so that torch.compile's cache on disk is full when the measurement comes.

--clock processor counts this process's own time, which other work beside it changes little: for one thread.

Passes: forward; backward (gradients by the inputs and the activation again, from the gradient and the inputs);
both (forward, then autograd's backward); small (a call on 64 numbers; "small both" with its gradient); small packed
(gate and up in one tensor; "small packed both"). --merge prints the rows of earlier --json files as one table.
"""

import argparse
import ctypes
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from nonlin import functional
from nonlin.functions import get, names
from nonlin.kernels import dispatch
from nonlin.kernels.cpu import backend as cpu_backend
from nonlin.training import machine

EAGER = {
    "identity": lambda x: x * 1, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": F.relu,
    "leaky_relu": F.leaky_relu, "prelu": F.prelu, "elu": F.elu,
    "selu": F.selu, "softplus": F.softplus, "sqrtsoftplus": lambda x: F.softplus(x).sqrt(), "relu6": F.relu6,
    "hardswish": F.hardswish, "hardtanh": F.hardtanh, "softsign": F.softsign,
    "relu_squared": lambda x: F.relu(x).square(), "leaky_relu_squared": lambda x: F.leaky_relu(x, 0.5).square(),
    "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu_10": lambda x: F.gelu(x).clamp(-10, 10),
    "silu": F.silu, "swish_beta": lambda x, beta: x * torch.sigmoid(beta * x), "mish": F.mish,
    "laplace": lambda x: 0.5 * (1 + torch.erf((x - 0.707107) / (0.282095 * 2**0.5))),
    "fatrelu": lambda x: F.threshold(x, 0.01, 0.0),
    "xielu": lambda x, p, n: torch.where(
        x > 0, F.softplus(p) * x * x + 0.5 * x,
        (torch.expm1(x.clamp(max=-1e-6)) - x) * (0.5 + F.softplus(n)) + 0.5 * x),
    "xgelu": lambda x, a: x * (0.5 * (1 + torch.erf(x * 0.5**0.5)) * (1 + 2 * a) - a),
    "xsilu": lambda x, a: x * (torch.sigmoid(x) * (1 + 2 * a) - a),
    "xatlu": lambda x, a: x * ((torch.atan(x) / torch.pi + 0.5) * (1 + 2 * a) - a),
    "glu": lambda g, u: torch.sigmoid(g) * u, "bilinear": lambda g, u: g * u, "reglu": lambda g, u: F.relu(g) * u,
    "geglu": lambda g, u: F.gelu(g) * u, "geglu_tanh": lambda g, u: F.gelu(g, approximate="tanh") * u,
    "swiglu": lambda g, u: F.silu(g) * u, "relu_squared_glu": lambda g, u: F.relu(g).square() * u,
    "drelu": lambda g, u: F.relu(g) * F.relu(u),
    "swiglu_oai": lambda g, u: (lambda m: m * torch.sigmoid(1.702 * m) * (u.clamp(-7, 7) + 1))(g.clamp(max=7)),
    "swiglu_clamped": lambda g, u: F.silu(g.clamp(max=10)) * u.clamp(-10, 10),
    "situ_glu": lambda g, u: 4 * torch.tanh(g / 4) * torch.sigmoid(g) * 25 * torch.tanh(u / 25),
    "gtu": lambda g, u: torch.sigmoid(g) * torch.tanh(u),
    "powlu": lambda g, u: (lambda p: torch.where(g > 0, p ** (3 / (p.sqrt() + 1)), g) * torch.sigmoid(g) * u)(
        torch.where(g > 0, g, 1.0)),
}
"""What one would write in torch, of the inputs and the learnable parameters."""


def keep_freed_memory():
    """Tell the C library to serve large tensors from memory it keeps."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def backward_of(function):
    """Return gradients by the inputs and the value, by torch's own derivatives, for torch.compile to fuse."""
    def call(gradient, *tensors):
        value, pull = torch.func.vjp(function, *tensors)
        return (*pull(gradient), value)
    return call


def arms(name, which, inputs, gradient, compile_too):
    """Return {arm: function of nothing} for one row; learnable parameters, where there are any, learn in every arm."""
    eager, own, definition = EAGER[name], functional.activation(name), get(name)
    if "packed" in which:
        own, apart = functional.packed(name), eager
        inputs = [torch.cat(inputs, -1)]

        def eager(x):
            return apart(*x.chunk(2, -1))
    # torch's in the dtype of the inputs, as a model in that dtype has them; ours keep their precision.
    learned = [torch.full((1,), q.initial) for q in definition.parameters]
    theirs = [*inputs, *(q.to(gradient.dtype) for q in learned)]
    named = {q.name: tensor for q, tensor in zip(definition.parameters, learned, strict=True)}
    fast = torch.compile(eager, dynamic=False)
    if which in ("forward", "small", "small packed"):
        made = {"eager": lambda: eager(*theirs), "compile": lambda: fast(*theirs),
                "nonlin": lambda: own(*inputs, **named)}
    elif which == "backward":
        pull = backward_of(eager)
        fast_pull = torch.compile(pull, dynamic=False)
        made = {"eager": lambda: pull(gradient, *theirs), "compile": lambda: fast_pull(gradient, *theirs),
                "nonlin": lambda: dispatch.backward(definition, gradient, inputs, learned, want_value=True)}
    else:
        # The same inputs: of two copies one may lie in huge pages and the other not.
        leaves = [x.clone().requires_grad_() for x in theirs]
        ours = leaves[:len(inputs)] + [x.clone().requires_grad_() for x in learned]
        named = dict(zip(named, ours[len(inputs):], strict=True))

        def both(function, tensors, count, **parameters):
            return lambda: torch.autograd.grad(function(*tensors[:count], **parameters), tensors, gradient)

        made = {"eager": both(eager, leaves, len(leaves)), "compile": both(fast, leaves, len(leaves)),
                "nonlin": both(own, ours, len(inputs), **named)}
    if not compile_too or which.startswith("small"):
        del made["compile"]
    return made


def numbers_moved(which, count):
    """Return how many numbers an element costs at least, read and written once."""
    return {"forward": count + 1, "backward": 2 * count + 2, "both": 3 * count + 2}.get(which, 0)


def measure(made, rounds, repeat, clock=time.perf_counter, before=lambda: None):
    """Return {arm: seconds}, medians over rounds, and {arm: its time by nonlin's}, medians of each round's ratio.

    The arms of a round come in random order, and ``before`` runs ahead of each: an arm that follows itself would find
    its own tensors in the caches. A machine's speed drifts from round to round, so ratios are taken inside of one.
    """
    times = {arm: [] for arm in made}
    for _ in range(2):
        for call in made.values():
            call()
    order, draw = list(made.items()), random.Random(0)
    for _ in range(rounds):
        draw.shuffle(order)
        for arm, call in order:
            before()
            begin = clock()
            for _ in range(repeat):
                call()
            times[arm].append((clock() - begin) / repeat)
    ratios = {arm: statistics.median(a / b for a, b in zip(t, times["nonlin"], strict=True))
              for arm, t in times.items() if arm != "nonlin"}
    return {arm: statistics.median(t) for arm, t in times.items()}, ratios


def row(name, dtype, which, options):
    """Return one row of the table; None where nothing is measured."""
    count = len(get(name).variables)
    small = which.startswith("small")
    shape = (64,) if small else (options.rows, options.columns)
    torch.manual_seed(0)
    inputs = [torch.randn(shape).to(dtype) for _ in range(count)]
    gradient, place = torch.randn(shape).to(dtype), torch.empty(shape, dtype=dtype)
    made = arms(name, which, inputs, gradient, not options.no_compile)
    if options.warm:
        if "compile" in made:
            made["compile"]()
        return None
    made["copy"] = lambda: place.copy_(gradient)
    others = torch.randn(shape).to(dtype)
    clock = time.process_time if options.clock == "processor" else time.perf_counter
    seconds, ratios = measure(made, options.rounds, 1000 if small else 1, clock, lambda: others.copy_(gradient))
    copied, share = seconds.pop("copy"), numbers_moved(which, count) / 2 * ratios.pop("copy")
    return {"activation": name, "dtype": str(dtype).removeprefix("torch."), "pass": which,
            "seconds": seconds, "ratios": ratios, "copy_share": share, "copy_gb_s": 2 * gradient.nbytes / copied / 1e9}


def ratios_of(made):
    """Return {arm: its time by nonlin's} of a row; an old record has medians of seconds alone."""
    seconds = made["seconds"]
    return made.get("ratios") or {arm: t / seconds["nonlin"] for arm, t in seconds.items() if arm != "nonlin"}


def line(made):
    """Return a row as text."""
    own, times = made["seconds"]["nonlin"], ratios_of(made)
    scale, unit = (1e6, "us") if own < 1e-4 else (1e3, "ms")
    ratios = "".join(f"{times[a]:>9.2f}x" if a in times else f"{'':>10}" for a in ("eager", "compile"))
    share = f"{made['copy_share'] * 100:>7.0f} %" if made["copy_share"] else ""
    return (f"{made['activation']:<17} {made['dtype']:<9} {made['pass']:<11}{own * scale:>9.2f} {unit}{ratios}{share}")


HEAD = f"{'activation':<17} {'dtype':<9} {'pass':<11}{'nonlin':>12}{'eager':>10}{'compile':>10}{'copy':>9}"


def markdown(rows):
    """Print the whole catalog's ratios to eager and to torch.compile, a line an activation."""
    passes = [(p, d) for p in ("forward", "both") for d in ("bfloat16", "float32")]
    print("| activation | " + " | ".join(f"{p}, {d}" for p, d in passes) + " |\n| --- |" + " ---: |" * len(passes))
    found = {(r["activation"], r["pass"], r["dtype"]): ratios_of(r) for r in rows}
    for name in dict.fromkeys(r["activation"] for r in rows):
        cells = []
        for which, dtype in passes:
            times = found.get((name, which, dtype), {})
            cells.append(" / ".join(f"{times[a]:.2f}" for a in ("eager", "compile") if a in times))
        print(f"| {name} | " + " | ".join(cells) + " |")


def summary(rows):
    """Print the ratio to the better of eager and torch.compile, over the catalog."""
    for which in ("forward", "backward", "both"):
        for dtype in sorted({r["dtype"] for r in rows}):
            ratios = {r["activation"]: min(ratios_of(r).values()) for r in rows
                      if r["pass"] == which and r["dtype"] == dtype and "compile" in r["seconds"]}
            if ratios:
                worst = min(ratios, key=ratios.__getitem__)
                print(f"{which} {dtype}: {len(ratios)} activations against the better of both: median "
                      f"{statistics.median(ratios.values()):.2f}x, least {ratios[worst]:.2f}x ({worst})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activations")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--passes", default="forward,backward,both,small,small both")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--merge", type=Path, nargs="+")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if options.merge:
        rows = [r for path in options.merge for r in json.loads(path.read_text())["rows"]]
        if options.markdown:
            markdown(rows)
        else:
            print(HEAD, *map(line, rows), sep="\n")
        return summary(rows)
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    kernel, reason = cpu_backend.find(get("swiglu"))
    facts = machine.describe() | {"threads": options.threads, "kernels": reason, "isa": kernel.isa if kernel else None,
                                  "shape": [options.rows, options.columns], "clock": options.clock}
    print(json.dumps(facts), HEAD, sep="\n")
    which = options.activations.split(",") if options.activations else [n for n in names() if n in EAGER]
    rows = json.loads(options.json.read_text())["rows"] if options.json and options.json.exists() else []
    known = {(r["activation"], r["dtype"], r["pass"]) for r in rows}
    wanted = [(name, dtype, each) for name in which for dtype in options.dtypes.split(",")
              for each in options.passes.split(",") if "packed" not in each or get(name).gated]
    left, end = [key for key in wanted if key not in known], time.perf_counter() + 60 * options.minutes
    while left and time.perf_counter() < end:
        name, dtype, each = left.pop(0)
        made = row(name, getattr(torch, dtype), each, options)
        torch._dynamo.reset()  # a graph for each row would pass its limit of recompilations
        if made is None:
            print(f"{name} {dtype} {each}: compiled", flush=True)
            continue
        rows.append(made)
        print(line(made), flush=True)
        if options.json:
            options.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1))
    summary(rows)
    if left:
        print(f"{len(left)} rows are left: the same command goes on")


if __name__ == "__main__":
    main()
