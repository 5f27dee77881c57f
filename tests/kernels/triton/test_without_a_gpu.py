"""Tests of the GPU kernels without a GPU: launches, text, explanations, and code compiled ahead of time."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

import nonlin
from nonlin import kernels
from nonlin.functions import get, names
from nonlin.kernels.codegen import triton as triton_source
from nonlin.kernels.triton.backend import launch

NAMES = [n for n in names() if get(n).expr is not None]
HERE = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HERE, reason="Triton is not installed (the extra gpu)")


def test_offsets_have_64_bits_only_where_32_do_not_reach():
    assert not launch(1, 2**31 - 5000, [(0, 1)]).wide
    for rows, columns, steps in (
            (1, 2**31 - 1, [(0, 1)]),  # a masked place past the end would be beyond
            (1, 2**31, [(0, 1)]), (2**20, 2**12, [(2**12, 1)]),
            (8192, 11008, [(11008, 1), (2**19, 1)]),  # few elements, far apart
            (1, 2**30, [(0, 2)]),
            (1, 2**30, [(0, 1)] * 3 + [(0, 2)])):
        assert launch(rows, columns, steps).wide, (rows, columns, steps)
    assert not launch(8192, 14336, [(2 * 14336, 1), (2 * 14336, 1), (14336, 1)]).wide
    assert not launch(2**20, 2**10, [(0, 0), (0, 1)]).wide  # broadcast operands are near


@pytest.mark.parametrize("rows", [1, 2, 7, 65535, 70000, 3 * 10**6])
@pytest.mark.parametrize("columns", [1, 3, 64, 1000, 11008, 3 * 10**6])
def test_a_launch_covers_every_element_and_fits_a_grid(rows, columns):
    made = launch(rows, columns, [(columns, 1)])
    down, over = (made.grid[made.row_axis], made.grid[1 - made.row_axis])
    assert down * made.tile[0] >= rows > (down - 1) * made.tile[0]
    assert over * made.tile[1] >= columns > (over - 1) * made.tile[1]
    assert made.grid[1] <= 65535 and made.grid[0] < 2**31
    assert made.tile[0] * made.tile[1] <= 1024 and all(t & (t - 1) == 0 for t in made.tile)


def _on_a_gpu(name, dtype=torch.bfloat16, which=None):
    with FakeTensorMode():
        return kernels.explain(which or name, *(torch.empty(8, 8, dtype=dtype, device="cuda")
                                                for _ in get(which or name).variables))


@needs_triton
def test_explain_says_triton_of_tensors_on_a_gpu():
    told = _on_a_gpu("swiglu")
    assert told.backend == "triton" and "generated from its formula" in told.reason, told
    assert str(_on_a_gpu("solu")) == "solu: torch, because it is not pointwise"
    assert "complex64 has no compiled kernel" in str(_on_a_gpu("gelu", torch.complex64))
    with FakeTensorMode():
        split = kernels.explain("swiglu", torch.empty(2, device="cuda"), torch.empty(2))
    assert split.backend == "torch" and "several devices: cpu, cuda:0" in split.reason
    assert kernels.explain("swiglu").backend in ("compiled", "torch")  # of the CPU


@pytest.mark.parametrize("env, reason", [({"NONLIN_TRITON": "0"}, "NONLIN_TRITON=0"), ({}, "Triton is not installed"),
                                         pytest.param(
                                             {"OLD": "2.1.0"}, "Triton 2.1.0 is older than 3.3", marks=needs_triton)])
def test_without_triton_torch_serves_and_says_so(env, reason):
    script = """
import os, sys
if os.environ.get("OLD"):
    import triton
    triton.__version__ = os.environ["OLD"]
else:
    sys.modules["triton"] = None  # as where it is not installed
import torch
from torch._subclasses import FakeTensorMode
import nonlin
from nonlin import functional, kernels
with FakeTensorMode():
    print(kernels.explain("gelu", torch.empty(3, device="cuda")))
    assert functional.gelu(torch.empty(3, device="cuda")).device.type == "cuda"
assert torch.equal(functional.relu(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | env)
    assert f"gelu: torch, because {reason}" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_text_counts_in_no_64_bits_and_types_no_mathematics_again(name):
    text = triton_source.module(get(name))
    compile(text, name, "exec")
    assert "int64" not in text and "float64" not in text  # which are for tiles.py to decide, by constants
    assert not re.search(r"tl\.(exp|log|sqrt|erf|sigmoid|cos|sin)", text)
    assert set(re.findall(r"import (\S+)", text)) == {"triton", "triton.language", "arithmetic", "math", "tiles"}


def test_nothing_of_a_users_text_reaches_the_module():
    mine = nonlin.define("secret_name", "x * sigmoid( 1.5*x ) + 0.25")
    text = triton_source.module(mine)
    assert "secret" not in text and "1.5*x" not in text
    assert triton_source.module(nonlin.define("other_name", "0.25 + x*sigmoid(3*x/2)")) == text


_COMPILE = """
import json, re, subprocess, sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nonlin.functions.registry import deserialize
from nonlin.kernels.triton import backend as triton_backend

def source(function, pointer, kind, wide, pairs):
    constants = {"KIND": kind, "WIDE": wide, "PAIRS_IN": pairs, "PAIRS_OUT": pairs, "ROW_AXIS": 1, "ROWS": 1,
                 "COLUMNS": 1024, "VALUE": True, "rows": 1}
    constants |= {name: 1 for name in function.arg_names if name.endswith("_column")}  # as a launch specializes 1
    signature, facts = {}, {}
    for k, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = "i32" if name == "columns" or name.endswith("_row") else \\
            "*fp32" if re.fullmatch(r"p\\d|sums", name) else "*" + pointer
        if not re.fullmatch(r"p\\d", name):
            facts[(k,)] = [["tt.divisibility", 16]]
    constants = {name: constants[name] for name in signature if signature[name] == "constexpr"}
    return ASTSource(function, signature=signature, constexprs=constants, attrs=facts)

def facts(ptx):
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    Path("code.ptx").write_text(ptx)
    told = subprocess.run([ptxas, "-v", "--fmad=false", "--gpu-name=sm_90a", "code.ptx", "-o", "code.cubin"],
                          capture_output=True, text=True, check=True).stderr
    return {"spills": int(re.search(r"(\\d+) bytes spill stores", told)[1]),
            "registers": int(re.search(r"Used (\\d+) registers", told)[1]),
            "arithmetic64": re.findall(r"\\b(?:mul|mad|add|sub|div|rem|mul.lo|mad.lo)\\.[su]64", ptx),
            "double": len(re.findall(r"\\.f64", ptx)), "rounds": ptx.count("cvt.rn.bf16x2.f32"),
            "powers": re.findall(r"ex2[a-z0-9.]*", ptx), "divisions": re.findall(r"(?:div|rcp)\\.[a-z0-9.]*", ptx),
            "local": ptx.count(".local"),
            "memory": re.findall(r"((?:ld|st)\\.global\\S*)\\s[^;]*", ptx)}

for line in sys.stdin:
    name, each, pointer, wide, pairs = json.loads(line)
    definition = deserialize(name)
    kernel, reason = triton_backend.find(definition)
    kind = {"fp32": 1, "fp64": 2}.get(pointer, int(kernel.exact))
    made = triton.compile(source(getattr(kernel, each), pointer, kind, wide, pairs), target=GPUTarget("cuda", 90, 32),
                          options=triton_backend._OPTIONS)
    print(json.dumps(facts(made.asm["ptx"])), flush=True)
"""


def _compiled(calls, folder):
    """Return the facts of the PTX of each (activation, direction, pointer type, wide, pairs), for an H100."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(folder / "triton"), "NONLIN_CACHE": str(folder)}
    done = subprocess.run([sys.executable, "-c", _COMPILE], capture_output=True, text=True, env=env, cwd=folder,
                          input="\n".join(map(json.dumps, calls)))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_triton
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton compiles on Linux")
def test_every_activation_compiles_for_an_h100(tmp_path):
    """Value and gradients of all, in bfloat16: 16 bytes a load and store, no 64-bit or double arithmetic.

    Nothing spills but PowLU.
    """
    calls = [(name, "backward", "bf16", False, 0) for name in NAMES]
    for (name, *_), made in zip(calls, _compiled(calls, tmp_path), strict=True):
        wide = [m for m in made["memory"] if ".v4.b32" in m]
        count = len(get(name).variables)
        assert len(wide) == 2 * count + 2, (name, made["memory"])  # inputs, gradient; gradients, value
        learned = 2 * len(get(name).parameters)  # a number read, a part of a sum written
        assert len(made["memory"]) == len(wide) + learned, (name, made["memory"])
        assert made["local"] == made["double"] == 0 and not made["arithmetic64"], (name, made)
        # At 128 registers, four blocks of 128 threads at once; PowLU has two.
        most, spilled = (255, 16) if name == "powlu" else (128, 0)
        assert made["spills"] <= spilled, (name, made)
        assert made["registers"] <= most, (name, made["registers"])


@needs_triton
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton compiles on Linux")
def test_the_other_kinds_compile(tmp_path):
    """Every dtype, direction and layout; 64-bit offsets where they are asked for, and there alone."""
    own = "own=x*sigmoid(3*x) + max(x, 0)**0.5"
    calls = [("swiglu", "forward", "bf16", False, 0), ("swiglu", "forward", "bf16", True, 0),
             ("swiglu", "forward", "bf16", False, 1), ("swiglu", "backward", "bf16", False, 2),
             ("gelu", "forward", "fp32", False, 0), ("gelu", "backward", "fp16", False, 0),
             ("xatlu", "backward", "fp64", False, 0), (own, "backward", "fp16", False, 0)]
    plain, wide, pairs, both, single, half, double, users = _compiled(calls, tmp_path)
    assert plain["memory"] == ["ld.global.v4.b32", "ld.global.v4.b32", "st.global.v4.b32"]
    assert wide["arithmetic64"] and wide["memory"] == plain["memory"]
    # Eight numbers a thread: two are rounded at once, exp2 and the reciprocal are one instruction each.
    assert plain["rounds"] == 4, "LLVM rounds number by number before a choice"
    assert plain["powers"] == ["ex2.approx.ftz.f32"] * 8 and plain["divisions"] == ["rcp.approx.ftz.f32"] * 8
    for made in (plain, pairs, both, single, half, double, users):
        assert not made["arithmetic64"] and made["spills"] == made["local"] == 0
    # Gate and up alternate: read in two runs of 16 bytes a thread, in place of sixteen reads of 2.
    assert [m for m in pairs["memory"] if m.startswith("ld")] == ["ld.global.v4.b32"] * 2
    assert [m for m in both["memory"] if ".v4.b32" not in m] == []
    assert set(single["memory"]) == {"ld.global.v4.b32", "st.global.v4.b32"}
    assert double["double"] and not single["double"] and not half["double"]
