"""The Triton kernels' numbers, on a GPU or in the interpreter: tables of 50 digits, and ranges against float64."""

import math

import mpmath
import numpy as np
import pytest
import torch

from nonlin.functions import Definition, get, names
from nonlin.kernels.codegen import triton as triton_source
from nonlin.kernels.triton import backend as triton_backend
from tests.functions import accuracy
from tests.functions.unread import unread
from tests.kernels import exact
from tests.kernels.cpu import test_ranges
from tests.kernels.triton.device import DEVICE, INTERPRETED

NAMES = [n for n in names() if get(n).expr is not None]


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch):
    """The interpreter is quicker with few programs; smaller tiles are another file's."""
    if INTERPRETED:
        monkeypatch.setattr(triton_backend, "_BLOCK", 2**14)


def _all(definition, inputs, dtype=torch.float32):
    """Return (value, derivatives by the inputs, value made with them)."""
    kernel, reason = triton_backend.find(definition)
    assert kernel is not None, reason
    inputs = [x.to(DEVICE) for x in inputs]
    learned = [torch.tensor([q.initial], dtype=dtype, device=DEVICE) for q in definition.parameters]
    slopes, _, again = triton_backend.backward(kernel, torch.ones_like(inputs[0]), inputs, learned, want_value=True)
    value = triton_backend.forward(kernel, inputs, learned)
    assert bool(torch.equal(value, again))
    return value.cpu(), [slope.cpu() for slope in slopes]


@pytest.mark.parametrize("path", accuracy.TABLES, ids=lambda p: p.stem)
def test_tables_of_fifty_digits(path):
    """4 ulp of the largest term in float32, though formulas magnify roundings; in sixteen bits 1 ulp."""
    bad = []
    for dtype, torch_dtype in accuracy.DTYPES.items():
        points, outs = accuracy.read(path, dtype, True)
        inputs = [torch.from_numpy(column.copy()).to(torch_dtype) for column in points.T]
        value, slopes = _all(get(path.stem), inputs)
        for what, (wanted, largest), got in zip(("value", "first", "second"), outs, (value, *slopes), strict=False):
            bad += [f"{dtype}, {what} at {line}" for line in accuracy.failures(
                path.stem, dtype, points, wanted, largest, got, False, subnormal=True)]
    assert not bad, f"{path.stem}:\n" + "\n".join(bad)


@pytest.mark.parametrize("name", NAMES)
def test_float64(name):
    """Within 64 roundings of the largest term, and as many times what a rounded argument costs (accuracy.ARGUMENT)."""
    definition = get(name)
    random = np.random.default_rng(2)
    inputs = [torch.from_numpy(random.uniform(-12, 12, 400)) for _ in definition.variables]
    value, slopes = _all(definition, inputs, torch.float64)
    wide = [x.numpy() for x in inputs]
    argument = accuracy.ARGUMENT.get(name, lambda x, *_: np.abs(x))(*wide)
    for got, expr in zip((value, *slopes), (definition.expr, *map(definition.derivative, definition.variables)),
                         strict=True):
        wanted, largest = exact.compute(definition, expr, wide)
        scale = np.maximum(np.abs(wanted), largest) + 1e-300
        off = float((np.abs(got.numpy() - wanted) / scale / (1 + argument)).max())
        assert off <= 64 * 2.0**-53, f"{expr}: {off / 2.0**-53:.3g} roundings"


def _floats():
    random = np.random.default_rng(0)
    bits = np.arange(0, 2**32, 523987, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return np.concatenate([bits[np.isfinite(bits) & (np.abs(bits) < 1e15)],
                           random.uniform(-20, 20, 6000).astype(np.float32)])


# A subnormal exp is a multiple of 2^-149; it is multiplied by the inputs, in this one by their cube.
CUBED = ("gelu_tanh",)


@pytest.mark.parametrize("name", ["gelu", "quick_gelu", "gelu_tanh", "mish", "softplus", "tanh", "swiglu"])
def test_float32_over_its_range(name):
    definition, x = get(name), torch.from_numpy(_floats())
    inputs = [x, torch.full_like(x, 1.5)][:len(definition.variables)]
    wide = [x.double().numpy() for x in inputs]
    value, slopes = _all(definition, inputs)
    for got, expr in zip((value, *slopes), (definition.expr, *map(definition.derivative, definition.variables)),
                         strict=True):
        wanted, largest = exact.compute(definition, expr, wide)
        ulps = exact.off(got, wanted, np.maximum(np.abs(wanted), largest), torch.float32)
        least = 2.0**-147 * (1 + np.abs(wide[0])) ** (3 if name in CUBED else 1) * 1.5
        ulps = np.where(np.abs(got.double().numpy() - wanted) <= least, 0, ulps)
        worst = int(np.argmax(ulps))
        assert float(ulps.max()) <= 4, f"{expr}: {ulps[worst]:.3g} ulp at {float(x[worst])}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gelu", "silu", "tanh", "hardswish"])
def test_every_sixteen_bit_number(name, dtype):
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    x = every[torch.isfinite(every)]
    definition = get(name)
    got = triton_backend.forward(triton_backend.find(definition)[0], [x.to(DEVICE)], []).cpu()
    wanted, _ = exact.compute(definition, definition.expr, [x.double().numpy()])
    ulps = exact.off(got, wanted, np.abs(wanted), dtype)
    assert float(ulps.max()) <= 1, f"{ulps.max():.3g} ulp at {float(x[int(np.argmax(ulps))])}"
    right = torch.from_numpy(wanted).to(dtype) == got
    normal = torch.from_numpy(np.abs(wanted) >= 2.0**-126)  # less: float32 itself has no room for a step on the way
    assert float(right[normal].double().mean()) >= 0.999


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_and_infinite_ends_are_limits(name):
    definition = get(name)
    kernel = triton_backend.find(definition)[0]
    learned = [torch.tensor([q.initial], device=DEVICE) for q in definition.parameters]
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        if definition.gated:
            pair = [torch.tensor([math.nan, 1.0], dtype=dtype, device=DEVICE),
                    torch.tensor([1.0, math.nan], dtype=dtype, device=DEVICE)]
            assert bool(triton_backend.forward(kernel, pair, learned).isnan().all())
            continue
        x = torch.tensor([math.nan, -math.inf, math.inf, -1e20, 1e20], dtype=dtype, device=DEVICE)
        out = triton_backend.forward(kernel, [x], learned)
        assert out[0].isnan()
        if name not in ("softsign", "xielu", "xatlu"):  # their notes say what they do there
            for limit, near in zip(out[1:3].tolist(), out[3:5].tolist(), strict=True):
                assert not math.isnan(limit)
                assert limit == near if math.isfinite(limit) else np.sign(limit) == np.sign(near) and abs(near) >= 1e9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", [*test_ranges.FORMULAS, *test_ranges.QUOTIENTS])
def test_values_and_derivatives_are_right_where_a_step_leaves_float32(text, dtype):
    call, large = (test_ranges.FORMULAS | test_ranges.QUOTIENTS)[text], text in test_ranges.QUOTIENTS
    points = [s * x for x in (1e9, 1e13, 1e20, 1e30, 3e37) for s in (1, -1)] if large else test_ranges.POINTS
    x = torch.tensor(points, dtype=dtype)
    value, (slope,) = _all(Definition("beyond", "pointwise", unread(text), user_defined=True), [x], dtype)
    mpmath.mp.dps = 150
    close = 1e-5 if dtype == torch.float32 else 1e-2
    for point, *found in zip(x.tolist(), value.tolist(), slope.tolist(), strict=True):
        for got, exact_ in zip(found, mpmath.taylor(call, mpmath.mpf(point), 1), strict=True):
            if abs(exact_) < 3e38:
                single = (large and "sqrt" not in text) or text in test_ranges.SINGLE
                least = 1e-37 if single else close  # of terms that cancel, rounding of 1 remains
                assert got == pytest.approx(float(exact_), rel=close, abs=least), (text, point)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [n for n in NAMES if triton_source.leaves_by_quotients(get(n))])
def test_the_catalog_is_right_at_huge_numbers_without_double_precision(name, dtype):
    definition, sizes = get(name), [60.0, 80.0, 1e9, 1e13, 1e20, 1e30]
    points = [s * x for x in sizes for s in (1, -1)]
    second = [0.5 if x > 1e9 else -3.0 for x in sizes for _ in (1, -1)]
    inputs = [torch.tensor(p, dtype=dtype) for p in (points, second)[:len(definition.variables)]]
    wide = [x.double().numpy() for x in inputs]
    value, slopes = _all(definition, inputs, dtype)
    for got, expr in zip((value, *slopes), (definition.expr, *map(definition.derivative, definition.variables)),
                         strict=True):
        wanted, largest = exact.compute(definition, expr, wide)
        fits = np.abs(wanted) < 3e38
        near = np.maximum(np.abs(wanted), largest)[fits] * (1e-5 if dtype == torch.float32 else 1e-2) + 1e-19
        assert (np.abs(got.double().numpy() - wanted)[fits] <= near).all(), (expr, got, wanted)


FAULTS = {
    "the second derivative in place of the first": ("upstream * r0", "upstream * r1"),
    "sigmoid of the negative": ("t0[0]", "t0[1]"),
    "a forgotten factor": ("t1 = x0 * x1", "t1 = x0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault, monkeypatch, tmp_path):
    definition, (right, wrong) = get("swiglu"), FAULTS[fault]
    text = triton_source.module(definition)
    assert right in text
    monkeypatch.setattr(triton_source, "module", lambda d: text.replace(right, wrong))
    monkeypatch.setattr(triton_source, "identity", lambda d: f"fault{abs(hash(fault))}")
    monkeypatch.setattr(triton_backend, "find", triton_backend.find.__wrapped__)
    path = next(p for p in accuracy.TABLES if p.stem == "swiglu")
    with pytest.raises(AssertionError):
        test_tables_of_fifty_digits(path)
