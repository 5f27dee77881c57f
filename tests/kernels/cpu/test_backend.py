"""The compiled kernels: any strides and shapes, threads, instruction sets, and what serves where they cannot."""

import json
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._prims_common import is_non_overlapping_and_dense_or_false

import nonlin
from nonlin import functional, kernels
from nonlin.functions import get, names
from nonlin.functions.definition import X, pointwise
from nonlin.kernels import dispatch
from nonlin.kernels.codegen import cpp
from nonlin.kernels.cpu import backend as cpu_backend
from nonlin.kernels.cpu import build
from nonlin.kernels.torch import backend as torch_backend

NAMES = [n for n in names() if get(n).expr is not None]
SERVED = cpu_backend.find(get("swiglu"))[0] is not None
needs_kernels = pytest.mark.skipif(not SERVED, reason=f"no compiled kernels: {cpu_backend.find(get('swiglu'))[1]}")
EPS = {torch.float64: 2e-14, torch.float32: 4e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


def _learned(definition):
    return [torch.tensor([q.initial + 0.1]) for q in definition.parameters]


STRIDES = {
    "contiguous": lambda x: x, "transposed": lambda x: x.t().contiguous().t(), "rows skipped": lambda x: x[::2],
    "columns skipped": lambda x: x[:, ::3], "a slice of columns": lambda x: x[:, 1:], "one row": lambda x: x[:1],
    "one column": lambda x: x[:, :1], "flipped": lambda x: x.flip(0), "three dimensions": lambda x: torch.stack(
        (x, x + 1)).transpose(0, 2), "four, mixed": lambda x: torch.stack((x, x - 1))[None].permute(3, 0, 1, 2)[::2],
}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_shape_strides_dtype_and_broadcast_against_float64(data):
    name = data.draw(st.sampled_from(["gelu", "swiglu", "prelu", "swiglu_oai", "softplus", "xielu"]))
    dtype = data.draw(st.sampled_from(list(cpu_backend.CODES)))
    definition = get(name)
    rows, columns = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 90))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    change = STRIDES[data.draw(st.sampled_from(list(STRIDES)))]
    inputs = [change((2 * torch.randn(rows, columns + 1, generator=generator)).to(dtype)) for _ in definition.variables]
    if len(inputs) == 2 and data.draw(st.booleans()):
        inputs[1] = inputs[1][:1] if data.draw(st.booleans()) else inputs[1][..., :1]
    shape = torch.broadcast_shapes(*(x.shape for x in inputs))
    spread = data.draw(st.sampled_from(["dense", "expanded", "transposed"]))
    gradient = torch.randn(shape, generator=generator).to(dtype) if spread == "dense" else \
        torch.full((1,) * len(shape), 0.7, dtype=dtype).expand(shape) if spread == "expanded" else \
        torch.randn(shape[::-1], generator=generator).to(dtype).permute(*range(len(shape) - 1, -1, -1))
    learned = _learned(definition)
    wide = [x.double() for x in (*inputs, *learned)]
    count = len(inputs)
    value = dispatch.forward(definition, inputs, learned)
    outs, by_learned, again = dispatch.backward(definition, gradient, inputs, learned, want_value=True)
    want = torch_backend.forward(definition, wide[:count], wide[count:])
    want_in, want_learned, _ = torch_backend.backward(definition, gradient.double(), wide[:count], wide[count:])
    # The order of the dimensions in memory is the input's, as torch keeps it: dense, and not always contiguous.
    assert value.dtype == dtype and value.shape == shape and is_non_overlapping_and_dense_or_false(value)
    scale = EPS[dtype]
    torch.testing.assert_close(value.double(), want, rtol=scale, atol=scale)
    torch.testing.assert_close(again.double(), want, rtol=scale, atol=scale)
    terms = max(1, value.numel())
    for got, exact, leaf in zip((*outs, *by_learned), (*want_in, *want_learned), (*inputs, *learned), strict=True):
        summed = terms / max(1, leaf.numel())  # a sum's error grows with its terms
        eps = EPS[torch.float32] if leaf.dtype == torch.float32 else scale
        assert got.shape == leaf.shape and got.dtype == leaf.dtype
        torch.testing.assert_close(got.double(), exact, rtol=4 * eps, atol=4 * eps * max(1.0, summed**0.5) + 1e-30)


@needs_kernels
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", list(cpu_backend.CODES))
def test_every_activation_is_compiled_and_is_what_torch_computes(name, dtype):
    definition = get(name)
    kernel, reason = cpu_backend.find(definition)
    assert kernel is not None, reason
    torch.manual_seed(3)
    inputs = [torch.randn(37, 11).to(dtype) for _ in definition.variables]
    learned = [torch.tensor([q.initial]) for q in definition.parameters]
    gradient = torch.randn(37, 11).to(dtype)
    got = cpu_backend.backward(kernel, gradient, inputs, learned, want_value=True)
    want = torch_backend.backward(definition, gradient.double(), [x.double() for x in inputs],
                                  [q.double() for q in learned], want_value=True)
    for a, b in zip((*got[0], *got[1], got[2]), (*want[0], *want[1], want[2]), strict=True):
        eps = EPS[torch.float32] if a.shape == (1,) and a.dtype == torch.float32 else EPS[dtype]
        torch.testing.assert_close(a.double(), b, rtol=4 * eps, atol=40 * eps if a.shape == (1,) else 4 * eps)


@needs_kernels
def test_sums_and_values_do_not_depend_on_the_number_of_threads():
    torch.manual_seed(0)
    x, g = torch.randn(300, 1000), torch.randn(300, 1000)
    definition, learned = get("xielu"), [torch.tensor([0.3]), torch.tensor([-0.2])]
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outs, sums, value = dispatch.backward(definition, g, (x,), learned, want_value=True)
            found.append((*outs, *sums, value))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_kernels
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_one_pool_of_threads_is_alive():
    script = """
import os, torch
torch.set_num_threads(3)
from nonlin import functional
from nonlin.kernels.cpu import backend as cpu_backend
x = torch.randn(2000, 1000)
torch.exp(x)                                   # torch's own pool: this thread and two more
before = len(os.listdir("/proc/self/task"))
functional.gelu(x), functional.swiglu(x, x)
after = len(os.listdir("/proc/self/task"))
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line or "libomp" in line
             or "libiomp" in line}
print(before, after, len(libraries), cpu_backend.parallel() != 0)
"""
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    before, after, libraries, shared = done.stdout.split()
    assert before == after and libraries == "1" and shared == "True", done.stdout + done.stderr


@needs_kernels
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="readelf of an ELF file")
def test_the_library_links_neither_torch_nor_openmp():
    path = build.installed_library()
    if path is None:
        pytest.skip("the package was installed without a compiler")
    text = path.read_bytes()
    assert b"libtorch" not in text and b"libgomp" not in text and b"libc10" not in text


_ISA_SCRIPT = """
import json, sys, torch
from nonlin.functions import get, names, define
from nonlin.kernels.cpu import backend as cpu_backend
from nonlin.kernels import dispatch
from nonlin.kernels.codegen import cpp
define("mine", "x*sigmoid(3*x) + max(x, 0)**0.5")
out, isas = {}, set()
for name in [n for n in names() if get(n).expr is not None]:
    d = get(name)
    kernel, reason = cpu_backend.find(d)
    isas.add(kernel.isa if kernel else reason)
    torch.manual_seed(0)
    for dtype in cpu_backend.CODES:
        inputs = [(3 * torch.randn(100)).to(dtype) for _ in d.variables]
        learned = [torch.tensor([q.initial]) for q in d.parameters]
        o, s, v = dispatch.backward(d, torch.ones(100, dtype=dtype), inputs, learned, want_value=True)
        out[f"{name} {dtype}"] = [t.double().tolist() for t in (*o, *s, v)]
json.dump([sorted(isas), out], sys.stdout)
"""


@needs_kernels
def test_portable_code_computes_the_same():
    """The other instruction sets' code runs here where the processor has it, and agrees to rounding."""
    answers = {}
    tables = cpu_backend._tables(cpu_backend._installed()) if cpu_backend._installed() else {}
    if len(tables) < 2:
        pytest.skip("one instruction set was compiled, or none, when the package was installed")
    for isa in tables:
        done = subprocess.run([sys.executable, "-c", _ISA_SCRIPT], capture_output=True, text=True,
                              env=os.environ | {"NONLIN_ISA": isa})
        assert done.returncode == 0, done.stderr[-2000:]
        used, answers[isa] = json.loads(done.stdout)
        assert used == [isa], used
    first = answers.pop(next(iter(answers)))
    for other in answers.values():
        for key, rows in first.items():
            eps = EPS[getattr(torch, key.split("torch.")[1])]
            for a, b in zip(rows, other[key], strict=True):
                np.testing.assert_allclose(a, b, rtol=4 * eps, atol=8 * eps * max(1.0, float(np.abs(b).max())))


def test_an_unknown_instruction_set_is_explained():
    if cpu_backend._installed() is None:
        pytest.skip("the package was installed without a compiler")
    done = subprocess.run([sys.executable, "-c", "import nonlin; nonlin.kernels.explain('gelu')"],
                          capture_output=True, text=True, env=os.environ | {"NONLIN_ISA": "mmx"})
    assert "NONLIN_ISA: instruction set must be one of" in done.stderr


def _explain_in(env, name="mine=x*sigmoid(7*x)"):
    script = ("import sys, torch; from nonlin import kernels, functional; from nonlin.functions import parse_arms\n"
              "d = parse_arms(sys.argv[1])[0]\n"
              "e = kernels.explain(d); x = torch.randn(9, 70, requires_grad=True)\n"
              "functional.activation(d)(x).sum().backward()\n"
              "print(e); assert torch.isfinite(x.grad).all()")
    done = subprocess.run([sys.executable, "-c", script, name], capture_output=True, text=True, env=os.environ | env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_kernels
def test_a_users_own_is_compiled_once_and_cached(tmp_path):
    env = {"NONLIN_CACHE": str(tmp_path)}
    assert "compiled at first use" in _explain_in(env)
    (made,) = (tmp_path / "nonlin").glob("act-*.so")
    stamp = made.stat().st_mtime_ns
    assert "compiled at first use" in _explain_in(env) and made.stat().st_mtime_ns == stamp


def test_without_a_compiler_the_fallback_serves_and_says_so(tmp_path):
    env = {"NONLIN_CACHE": str(tmp_path), "PATH": str(tmp_path), "CXX": ""}
    assert "torch, because no C++ compiler" in _explain_in(env)
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho boom >&2\n[ \"$1\" = --version ]\n")
    broken.chmod(0o755)
    assert "torch, because the compiler failed: boom" in _explain_in(env | {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert "NONLIN_NATIVE=0" in _explain_in({"NONLIN_NATIVE": "0"}, "gelu")


def test_explain_says_why():
    assert "not pointwise" in str(kernels.explain("polynorm"))
    where = str(kernels.explain("gelu", torch.zeros(3, device="meta")))
    assert "torch, because" in where and "meta" in where
    many = kernels.explain("prelu", torch.zeros(3, 4), torch.zeros(4))
    assert many.backend == "torch" and "single number" in many.reason
    odd = nonlin.define("odd_root", "max(x, 0.1)**0.3")
    assert "power of 3/10" in kernels.explain(odd).reason
    torch.testing.assert_close(functional.odd_root(torch.tensor([2.0])), torch.tensor([2.0**0.3]))


@pytest.mark.parametrize(("name", "formula"), [
    ("of_root", "sigmoid(sqrt(max(x, 0)))"), ("less_root", "x*exp(-sqrt(max(x, 0)))"),
    ("log_root", "log1p(sqrt(max(x, 0)))"), ("three_halves", "tanh(max(x, 0)**1.5)*x")])
def test_a_root_of_zero_has_no_error_term(name, formula):
    """The error of a root of zero is 0/0: no number may come of it."""
    made, x = nonlin.define(name, formula), torch.tensor([-2.0, -0.5, 0.0, 1e-30, 0.25, 2.0], requires_grad=True)
    wanted = functional.activation(made)(x.detach().double()).float()
    found = functional.activation(made)(x)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-12)
    if name == "three_halves":
        found.sum().backward()
        assert x.grad is not None and not x.grad[:3].any()


def test_a_parameter_for_each_channel_has_its_gradient():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    slope = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, s: functional.prelu(x, slope=s), (x, slope))


def test_a_sigmoid_and_its_mirror_image_are_computed_once():
    """Of a product with a learnable parameter too: sigmoid(-beta x) is the mirror image of sigmoid(beta x)."""
    assert [body.count("= nl_sigmoids") for body in cpp.struct(get("swish_beta")).split(" slopes(")] == [1, 1]


@needs_kernels
def test_a_changed_formula_is_never_served_by_the_old_kernel():
    changed = pointwise("gelu", X * get("gelu").expr)  # the name of one that is installed, another formula
    x = torch.randn(50)
    torch.testing.assert_close(dispatch.forward(changed, (x,)), x * torch.nn.functional.gelu(x), rtol=1e-5, atol=1e-6)
    assert cpu_backend.find(changed)[0].origin == "first use"


@needs_kernels
@pytest.mark.parametrize("dtype", list(cpu_backend.CODES))
def test_nan_and_infinities(dtype):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([-inf, inf, nan, -0.0, 0.0] * 30, dtype=dtype)
    out = functional.gelu(x)
    assert torch.equal(out[:2], torch.tensor([0, inf], dtype=dtype)) and out[2].isnan() and (out[3:5] == 0).all()
    up = torch.tensor([1.0, 2.0, 1.0, inf, nan] * 30, dtype=dtype)
    out = functional.swiglu(x, up)
    assert out[0] == 0 and out[1] == inf and out[2].isnan() and out[4].isnan()
    (grad,), _, _ = dispatch.backward(get("gelu"), torch.ones_like(x), (x,))
    assert grad[0] == 0 and grad[1] == 1 and grad[2].isnan() and grad[3] == 0.5


@needs_kernels
@pytest.mark.slow
def test_large_tensors_are_addressed_beyond_thirty_two_bits():
    """Needs 9 GB of memory."""
    x = torch.zeros(2**31 + 100, dtype=torch.bfloat16)
    x[-1] = 3.0
    assert float(functional.relu(x)[-1]) == 3.0


def test_the_package_installs_without_a_compiler_and_with_one():
    """setup.py's own command, on two activations for portable code: the library is built, or a warning is."""
    root = Path(__file__).parents[3]
    script = """
import sys, runpy
from nonlin.functions import catalog
from nonlin.kernels.cpu import build
catalog.CATALOG = catalog.CATALOG[3:5]
for isa in [i for i in build.ISAS]:
    build.ISAS[isa] = ()
sys.argv = ["setup.py", "-q", "build_ext", "--build-lib", sys.argv[1], "--build-temp", sys.argv[1]]
runpy.run_path("setup.py", run_name="__main__")
"""
    for compiler, built in ((None, True), ("/nonexistent/c++", False)):
        if compiler is None and build.compiler() is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            env = os.environ | {"PYTHONPATH": "src"} | ({"CC": compiler, "CXX": compiler} if compiler else {})
            done = subprocess.run([sys.executable, "-c", script, folder], cwd=root, capture_output=True, text=True,
                                  env=env)
            assert done.returncode == 0, done.stderr[-2000:]
            assert bool(list(Path(folder).rglob("_catalog*.so"))) == built, done.stderr[-2000:]
            if not built:
                assert "building extension" in done.stderr and "failed" in done.stderr


@needs_kernels
@pytest.mark.parametrize("count", [7, 20000])
@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_without_the_extension_module_ctypes_calls_the_same_kernels(name, count, monkeypatch):
    definition = get(name)
    inputs = [torch.randn(count) for _ in definition.variables]
    gradient = torch.randn(count)
    usual = cpu_backend.dense(definition, torch.float32)
    monkeypatch.setattr(cpu_backend, "without_ctypes", lambda: None)
    other = cpu_backend.dense.__wrapped__(definition, torch.float32)
    assert other.value is other.shared_value
    assert torch.equal(cpu_backend.forward_dense(other, inputs), cpu_backend.forward_dense(usual, inputs))
    for want_value in (False, True):
        got = cpu_backend.backward_dense(other, gradient, inputs, want_value)
        wanted = cpu_backend.backward_dense(usual, gradient, inputs, want_value)
        assert len(got) == len(wanted) == len(inputs) + want_value
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_an_extension_module_of_an_old_build_is_not_called(monkeypatch):
    monkeypatch.setattr(cpu_backend, "_installed", lambda: None)  # the library lacks what this version calls
    assert cpu_backend.without_ctypes() is None


@needs_kernels
def test_results_lie_in_the_processors_memory_whatever_the_default_device():
    """A result on another device, "meta" above all, would have no memory to be written to."""
    kernel, _ = cpu_backend.find(get("silu"))
    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))[:, ::2]
    ones = torch.ones_like(x)
    torch.set_default_device("meta")
    try:
        value = cpu_backend.forward(kernel, [x], [])
        (gradient,), _, again = cpu_backend.backward(kernel, ones, [x], [], True)
    finally:
        torch.set_default_device(None)
    assert torch.allclose(value, torch.nn.functional.silu(x)) and torch.allclose(value, again)
    assert gradient.device.type == "cpu"


def test_openmp_is_found_where_a_mapped_file_has_a_name_that_is_no_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff"
    with open(path, "wb") as file:
        file.write(b"1")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        assert cpu_backend.parallel.__wrapped__() == cpu_backend.parallel()
