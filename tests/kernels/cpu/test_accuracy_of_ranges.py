"""Accuracy over whole ranges: float32 sampled densely over all its bits, every bfloat16 and every float16.

The reference is the definition in float64 by numpy and SciPy (exact.py); that itself is held to 50 digits by the
tables of tests/functions.
"""


import numpy as np
import pytest
import torch

from nonlin import functional
from nonlin.functions import define, get, names
from nonlin.functions.expression import fold, terms
from nonlin.functions.numeric import TABLE
from nonlin.kernels import dispatch
from nonlin.kernels.codegen import cpp
from nonlin.kernels.cpu import backend as cpu_backend
from tests.kernels import exact

_kernel, _reason = cpu_backend.find(get("gelu"))
pytestmark = pytest.mark.skipif(_kernel is None, reason=f"no compiled kernels: {_reason}")
NAMES = [n for n in names() if get(n).expr is not None]
UPS = np.array([-3.7, -1.0, 0.01, 0.3, 1.5, 9.0, 25.0], np.float32)
# It crosses zero where two terms cancel: where less than half of the larger one is left, the ulp is that one's.
CANCELS = ("xielu",)


def _floats(denser=1):
    random = np.random.default_rng(0)
    bits = np.arange(0, 2**32, 40009 // denser, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return np.concatenate([bits[np.isfinite(bits)], random.uniform(-20, 20, 400000 * denser).astype(np.float32),
                           random.normal(size=200000 * denser).astype(np.float32)])


def _inputs(definition, x):
    random = np.random.default_rng(1)
    some, any_ = UPS[random.integers(0, len(UPS), len(x))], random.normal(0, 4, len(x)).astype(np.float32)
    ups = torch.from_numpy(np.where(random.random(len(x)) < 0.5, some, any_)).to(x.dtype)
    return [x, ups][:len(definition.variables)]


def _learned(definition):
    return [torch.tensor([q.initial], dtype=torch.float64) for q in definition.parameters]


def _worst(ulps, inputs):
    k = int(np.argmax(ulps))
    return f"{ulps[k]:.3g} ulp at {[float(x[k]) for x in inputs]}"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_float32_ten_times_denser(name):
    """Finds errors up to a tenth larger."""
    check_float32(name, _floats(denser=10))


@pytest.mark.parametrize("name", NAMES)
def test_float32(name):
    check_float32(name, _floats())


@pytest.mark.parametrize("divisor,dtype", [(55, torch.bfloat16), (83, torch.float16)], ids=str)
def test_a_division_by_a_constant_keeps_ties(divisor, dtype):
    """By the rounded reciprocal alone, exact halves of a last place fall to the wrong side."""
    x = torch.arange(1, 200, dtype=torch.float64) * divisor / 16
    x = x[x.to(dtype).double() == x]
    wanted = (x * x / divisor).to(dtype)
    assert not torch.equal((x * x).float().mul(1 / torch.tensor(float(divisor))).to(dtype), wanted)
    assert torch.equal(functional.activation(define(f"square_of_{divisor}", f"x*x/{divisor}"))(x.to(dtype)), wanted)
    far = torch.tensor([-float("inf"), -3e38, -1e-39, float("inf")], dtype=torch.float64).to(dtype)
    assert torch.equal(functional.leaky_relu(far), torch.where(far > 0, far.double(), far.double() / 100).to(dtype))


PORTABLE = ("mish", "situ_glu", "gtu", "powlu")
"""Where a product that is rounded before it is added would show: three sigmoids or more, or a power."""


@pytest.mark.parametrize("name", [n if n in PORTABLE else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_float32_without_fused_multiply_adds(name, monkeypatch):
    """The portable code of a processor of x86 has none."""
    library = cpu_backend._installed()
    if library is None or "portable" not in (tables := cpu_backend._tables(library)):
        pytest.skip("no portable code was compiled when the package was installed")
    entry = library.nl_find(tables["portable"], cpp.identity(get(name)).encode())
    kernel = cpu_backend.Kernel(library, entry, "portable", "installed")
    monkeypatch.setattr(cpu_backend, "find", lambda definition: (kernel, "portable"))
    monkeypatch.setattr(cpu_backend, "dense_of", lambda *args: None)  # what it has found is remembered
    check_float32(name, _floats())


def check_float32(name, points):
    """Value and derivatives are within 4 ulp at each of these points."""
    definition = get(name)
    inputs = _inputs(definition, torch.from_numpy(points))
    wide = [x.double().numpy() for x in inputs]
    learned = [q.double() for q in _learned(definition)]
    slopes, _, again = dispatch.backward(definition, torch.ones_like(inputs[0]), inputs, learned, want_value=True)
    value, largest = exact.compute(definition, definition.expr, wide)
    scale = np.abs(value)
    if name in CANCELS:
        scale = np.where(scale < largest / 2, largest, scale)
    for got in (dispatch.forward(definition, inputs, learned), again):
        ulps = exact.off(got, value, scale, torch.float32)
        assert ulps.max() <= 4, f"value: {_worst(ulps, inputs)}"
    for variable, got in zip(definition.variables, slopes, strict=True):
        value, largest = exact.compute(definition, definition.derivative(variable), wide)
        ulps = exact.off(got, value, np.maximum(np.abs(value), largest), torch.float32)
        assert ulps.max() <= 4, f"d/d{variable}: {_worst(ulps, inputs)}"


def test_a_power_is_not_rounded_to_a_subnormal_before_it_is_multiplied():
    gate = torch.from_numpy(np.geomspace(1e-15, 1e-12, 1000, dtype=np.float32))
    inputs = [gate, torch.full_like(gate, 25.0)]
    definition = define("cubed_gate", "gate**3*up")
    wanted = gate.double().numpy() ** 3 * 25
    ulps = exact.off(dispatch.forward(definition, inputs, []), wanted, wanted, torch.float32)
    assert ulps.max() <= 1, _worst(ulps, inputs)


def _never_leaves_float32(definition):
    """Return whether every term of the derivatives is finite in float32: else its lanes are computed in double."""
    x = np.linspace(-6, 6, 1200, dtype=np.float32)
    leaves = dict(zip(definition.variables, (x, x[::-1].copy()), strict=False))
    leaves |= {q.name: np.float32(q.initial) for q in definition.parameters}
    table = TABLE | {"number": lambda e: np.float32(float(e))}
    with np.errstate(all="ignore"):
        return all(np.isfinite(fold(term, leaves, table)).all()
                   for v in definition.variables for term in terms(definition.derivative(v)))


@pytest.mark.parametrize("name", NAMES)
def test_usual_numbers_need_no_double_precision(name):
    assert _never_leaves_float32(get(name))


def test_a_formula_that_divides_by_a_tiny_square_would_be_noticed():
    assert not _never_leaves_float32(define("held", "max(x, 1e-37) + 1/max(x, 1e-37)"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_every_sixteen_bit_number(name, dtype):
    definition = get(name)
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    inputs = _inputs(definition, every[torch.isfinite(every)])
    got = dispatch.forward(definition, inputs, _learned(definition))
    value, _ = exact.compute(definition, definition.expr, [x.double().numpy() for x in inputs])
    ulps = exact.off(got, value, np.abs(value), dtype)
    assert ulps.max() <= 1, _worst(ulps, inputs)
    right = (torch.from_numpy(value).to(dtype) == got).double().mean()
    assert right >= 0.999, f"{float(right) * 100:.3f} % are correctly rounded"


def test_torchs_own_gelu_would_fail():
    definition = get("gelu")
    x = torch.from_numpy(_floats())
    value, _ = exact.compute(definition, definition.expr, [x.double().numpy()])
    ulps = exact.off(torch.nn.functional.gelu(x), value, np.abs(value), torch.float32)
    assert ulps.max() > 1e5


@pytest.mark.parametrize(("formula", "up"), [("tanh(3*x)", None), ("-x/(1+x^2)", None), ("gate^2*up/1000003", 1e12)])
def test_numbers_that_leave_float32s_range_on_the_way(formula, up):
    definition = define("far", formula)
    x = torch.cat([s * torch.logspace(-3, 13 if up else 38.5, 400, dtype=torch.float64) for s in (1, -1)]).float()
    inputs = [x] if up is None else [x, torch.full_like(x, up)]
    wide = [t.double().numpy() for t in inputs]
    slopes, _, value = dispatch.backward(definition, torch.ones_like(x), inputs, (), want_value=True)
    found = [dispatch.forward(definition, inputs), value, *slopes]
    wanted = [definition.expr] * 2 + [definition.derivative(v) for v in definition.variables]
    for got, expr in zip(found, wanted, strict=True):
        reference, largest = exact.compute(definition, expr, wide)
        ulps = exact.off(got, reference, np.maximum(np.abs(reference), largest), torch.float32)
        assert ulps.max() <= 4, _worst(ulps, inputs)


def test_what_falls_off_is_not_multiplied_before_what_grows():
    """exp(-x) sigmoid(-x) is no float32 at 52; times x^10 it is."""
    falls = define("falls", "x^10*exp(-x)*sigmoid(-x) + exp(-x)*sigmoid(-x)")
    x = torch.tensor([52.0, 40.0])
    wide = [x.double().numpy()]
    for got, expr in ((dispatch.forward(falls, [x], []), falls.expr),
                      (dispatch.backward(falls, torch.ones_like(x), [x], [])[0][0], falls.derivative("x"))):
        value, largest = exact.compute(falls, expr, wide)
        assert exact.off(got, value, largest, torch.float32).max() <= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_infinity_less_infinity_is_no_zero(dtype):
    """Terms that share a factor: their sum is nan, which is not mended as 0 x infinity is."""
    against = define("against", "gate*up*sigmoid(-gate) + gate*up^2*sigmoid(-gate)")
    gate, up = torch.tensor([0.0948, 0.5], dtype=dtype), torch.tensor([-torch.inf, 2.0], dtype=dtype)
    slopes = dispatch.backward(against, torch.ones_like(gate), [gate, up], [])[0]
    assert torch.isnan(slopes[0][0]) and torch.isfinite(slopes[0][1])


def test_tanh_of_what_overflows_is_one():
    ends = torch.tensor([torch.inf, -torch.inf, 3e38, -3e38])
    assert dispatch.forward(define("far", "tanh(3*x)"), [ends]).tolist() == [1, -1, 1, -1]
    gate, up = torch.ones(1), torch.full((1,), torch.inf)
    got, want = (dispatch.forward(get("situ_glu"), [gate.to(t), up.to(t)]) for t in (torch.float32, torch.float64))
    assert float((got.double() - want).abs()) <= 4 * 2**-20  # of a number between 16 and 32
