"""The code for AVX-512 and its bfloat16 instructions, run on any x86 processor with AVX2: SIMDe's headers emulate it.

What the processor chooses among at run time is compiled for all of them, but runs only where it has the instructions.
Here the same source is compiled with avx512_by_simde.h before it, and held to the accuracy of the catalog. Some
activations, which between them use every primitive and every kind of loop; the others are marked as slow. Where the
processor itself has the instructions, test_accuracy_of_ranges has held all of them to it, and one is left here.
"""

import ctypes
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from nonlin.functions import get, names
from nonlin.functions.definition import Definition
from nonlin.functions.primitives import NAMES as PRIMITIVES
from nonlin.kernels import dispatch
from nonlin.kernels.codegen import cpp
from nonlin.kernels.cpu import backend as cpu_backend
from nonlin.kernels.cpu import build
from tests.kernels.cpu import test_accuracy_of_ranges as ranges

SHIM = Path(__file__).with_name("avx512_by_simde.h")
FLAGS = ("-O1", *build.KERNEL_FLAGS[1:], *build.ISAS["avx2"], "-shared", "-Wno-psabi")
COVER = ("relu", "elu", "sqrtsoftplus", "softsign", "gelu", "gelu_tanh", "swish_beta", "mish", "laplace", "xielu",
         "xatlu", "swiglu", "swiglu_oai", "situ_glu", "powlu")
NAMES = [n for n in names() if get(n).expr is not None]


def _has_avx2() -> bool:
    try:
        return "avx2" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _missing() -> str | None:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "the emulation is for x86"
    command = build.compiler()
    if command is None:
        return "no C++ compiler"
    done = subprocess.run([command, "-E", "-x", "c++", "-"], input="#include <simde/x86/avx512.h>\n", text=True,
                          capture_output=True)
    if done.returncode:
        return "SIMDe's headers are not installed (Debian: libsimde-dev)"
    if not _has_avx2():
        return "this processor has no AVX2, which the emulation is compiled for"
    return None


_REASON = _missing()
pytestmark = pytest.mark.skipif(_REASON is not None, reason=f"AVX-512 cannot be emulated: {_REASON}")


def _emulated(definition: Definition, macros: str = "#define NL_AVX512BF16\n") -> cpu_backend.Kernel:
    text = (f"{macros}{SHIM.read_text()}{cpp.own_library(definition)}"
            'static_assert(VL == 16, "this is not the code for AVX-512");\n').replace("#pragma once\n", "", 1)
    library = cpu_backend._open(build.compile_shared(text, f"avx512-{definition.name}", FLAGS, cpp.HEADERS))
    return cpu_backend.Kernel(library, library.nl_find(0, cpp.identity(definition).encode()), "avx512", "emulated")


@pytest.fixture
def emulated(monkeypatch):
    """Let the given kernel serve every call."""
    def serve(kernel: cpu_backend.Kernel) -> None:
        monkeypatch.setattr(cpu_backend, "find", lambda definition: (kernel, "emulated"))
    return serve


SERVED = ranges._kernel is not None and ranges._kernel.isa == "avx512bf16"


@pytest.mark.parametrize("name", [n if n in (("swiglu",) if SERVED else COVER) else pytest.param(
    n, marks=pytest.mark.slow) for n in NAMES])
def test_accuracy(name, emulated):
    emulated(_emulated(get(name)))
    ranges.test_float32(name)
    for dtype in (torch.bfloat16, torch.float16):
        ranges.test_every_sixteen_bit_number(name, dtype)


def test_the_activations_here_use_every_primitive():
    def used(some):
        return {f.__name__ for n in some for v in (None, *get(n).variables)
                for f in {c.func for c in (get(n).expr if v is None else get(n).derivative(v)).atoms(*PRIMITIVES)}}

    assert used(COVER) == used(NAMES)


@pytest.mark.parametrize("macros", ["", "#define NL_AVX512BF16\n"], ids=["shifts", "instruction"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_length_has_its_tail(dtype, macros, emulated):
    """Lengths around the register's width, the last numbers too; next to the last one nothing is written."""
    definition = get("swiglu")
    kernel = _emulated(definition, macros)
    torch.manual_seed(0)
    for count in (1, 15, 16, 17, 31, 33, 100):
        gate, up, gradient = (torch.randn(count).to(dtype) for _ in range(3))
        places = [torch.full((count + 1,), 7.0, dtype=dtype) for _ in range(3)]
        kernel.library.nl_flat(kernel.entry, cpu_backend.CODES[dtype], count, gate.data_ptr(), up.data_ptr(), None,
                               places[0].data_ptr())
        kernel.library.nl_flat_slopes(kernel.entry, cpu_backend.CODES[dtype], count, gate.data_ptr(), up.data_ptr(),
                                      gradient.data_ptr(), None, places[1].data_ptr(), places[2].data_ptr(),
                                      None, (ctypes.c_double * 1)())
        leaves = [t.double().requires_grad_() for t in (gate, up)]
        value = torch.nn.functional.silu(leaves[0]) * leaves[1]
        wanted = (value, *torch.autograd.grad(value, leaves, gradient.double()))
        eps = torch.finfo(dtype).eps
        for place, want in zip(places, wanted, strict=True):
            torch.testing.assert_close(place[:count].double(), want.detach(), rtol=2 * eps, atol=2 * eps)
            assert place[count] == 7


def test_bfloat16_keeps_nan_infinity_zero_and_subnormal_numbers(emulated):
    emulated(_emulated(get("relu")))
    smallest = 2.0**-133
    x = torch.tensor([float("nan"), float("inf"), -1.0, -0.0, smallest, 3 * smallest, 2.0**-126, 1.0] * 4).bfloat16()
    got = dispatch.forward(get("relu"), (x,))
    assert got[0].isnan() and torch.equal(got[1:8], x[1:8].clamp(min=0))
