"""Every activation, value and derivatives, in three dtypes, against the committed tables of 50 digits."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nonlin import functional
from nonlin.functions import get, names
from nonlin.kernels import dispatch
from nonlin.kernels.cpu import backend as cpu_backend
from nonlin.kernels.torch import backend as torch_backend
from tests.functions import accuracy

_kernel, _reason = cpu_backend.find(get("gelu"))
needs_kernels = pytest.mark.skipif(_kernel is None, reason=f"no compiled kernels: {_reason}")


def test_every_pointwise_or_gated_activation_has_a_table():
    assert {p.stem for p in accuracy.TABLES} == {n for n in names() if get(n).expr is not None}


def test_tables_are_what_the_definitions_give():
    script = Path(__file__).parents[2] / "benchmarks" / "make_accuracy_tables.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _check(path, dtype, backend):
    """Compare value and derivatives by a backend's two calls with the table."""
    fallback = backend is torch_backend
    points, outs = accuracy.read(path, dtype, fallback)
    definition, torch_dtype = get(path.stem), accuracy.DTYPES[dtype]
    inputs = [torch.from_numpy(column.copy()).to(torch_dtype) for column in points.T]
    learned = [torch.tensor([q.initial]) for q in definition.parameters]
    slopes, _, again = backend.backward(definition, torch.ones_like(inputs[0]), inputs, learned, want_value=True)
    value = backend.forward(definition, inputs, learned)
    assert torch.equal(value, again) or not fallback
    bad = []
    for what, (exact, largest), got in zip(("value", *(f"d/d{v}" for v in definition.variables)), outs,
                                           (value, *slopes), strict=True):
        bad += [f"{what} at {line}"
                for line in accuracy.failures(path.stem, dtype, points, exact, largest, got, fallback)]
    assert not bad, f"{path.stem}, {dtype}:\n" + "\n".join(bad)


@pytest.mark.parametrize("dtype", accuracy.DTYPES)
@pytest.mark.parametrize("path", accuracy.TABLES, ids=lambda p: p.stem)
def test_fallback(path, dtype):
    _check(path, dtype, torch_backend)


@needs_kernels
@pytest.mark.parametrize("dtype", accuracy.DTYPES)
@pytest.mark.parametrize("path", accuracy.TABLES, ids=lambda p: p.stem)
def test_compiled(path, dtype):
    _check(path, dtype, dispatch)


def test_a_wrong_value_is_noticed():
    path = next(p for p in accuracy.TABLES if p.stem == "gelu")
    points, outs = accuracy.read(path, "float32", False)
    exact, largest = outs[0]
    x = torch.from_numpy(points[:, 0]).float()
    torch_own = torch.nn.functional.gelu(x)  # by erf: it loses the negative tail
    bad = accuracy.failures("gelu", "float32", points, exact, largest, torch_own, False)
    assert any(float(line.split("]")[0].strip("[")) < -5 for line in bad)


@pytest.mark.parametrize("name", [n for n in names() if get(n).expr is not None])
def test_nan_stays_and_infinite_ends_are_limits(name):
    definition = get(name)
    function = functional.activation(name)
    if definition.kind == "gated":
        assert torch.isnan(function(torch.tensor([math.nan, 1.0]), torch.tensor([1.0, math.nan]))).all()
        return
    assert torch.isnan(function(torch.tensor([math.nan]))).all()
    if name in ("softsign", "xielu", "xatlu"):
        return  # inf / inf, inf - inf, and a product whose limit is neither 0 nor infinite: their notes say so
    far = function(torch.tensor([-math.inf, math.inf]))
    near = function(torch.tensor([-1e20, 1e20]))
    for limit, value in zip(far.tolist(), near.tolist(), strict=True):
        assert not math.isnan(limit), (name, far)
        assert limit == value if math.isfinite(limit) else np.sign(limit) == np.sign(value) and abs(value) >= 1e9
