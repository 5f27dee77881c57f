"""Which inputs leave float32 in a step of a formula although its result fits: they are computed in double precision."""

import functools
import itertools
import math

import numpy as np
import sympy

from nonlin.functions import Definition
from nonlin.functions.expression import fold, terms
from nonlin.functions.numeric import TABLE, start
from nonlin.functions.primitives import (
    NAMES,
    Phi,
    absolute,
    cauchy,
    exp,
    expm1,
    maximum,
    minimum,
    nonnegative,
    phi,
    sigmoid,
    sign,
    softplus,
    step,
)
from nonlin.kernels.codegen.emitter import divisor

_COMPARISONS = (maximum, minimum, absolute, sign, step, nonnegative)
_DECAYING = (exp, expm1, sigmoid, Phi, phi, softplus)
_EXPONENT = 76.0  # of e, times a power: float32 reaches from -87 to 88
_MOST_REACH = 1e15


def leaves(definition: Definition) -> tuple[bool, bool]:
    """Return whether huge, and whether tiny, inputs may exceed float32 in a step although the result fits."""
    assert definition.expr is not None
    everything = whole(definition)
    huge = any(p.exp < 0 for p in everything.atoms(sympy.Pow) if p.free_symbols)
    products = [term for term in terms(definition.expr) if term.as_coeff_Mul()[1].is_Mul]
    huge = huge or everything.has(cauchy) or _grows(definition.expr) or any(divisor(term) > 1 for term in products)
    huge = huge or _reach(definition) < _MOST_REACH
    # Parts that are scaled down, then multiplied or passed to a primitive: a subnormal step loses digits.
    steps = [part for call in definition.expr.atoms(sympy.Function) for part in call.args if part.free_symbols]
    steps += [term for term in products if divisor(term) == 1]
    return huge, any(abs(part.as_coeff_Mul()[0]) < 1 for part in steps) or (huge and definition.gated)


def light(definition: Definition) -> bool:
    """Return whether a formula's arithmetic is comparisons, sums and products alone."""
    everything = whole(definition)
    return all(call.func in _COMPARISONS for call in everything.atoms(sympy.Function)) \
        and all(p.exp.is_Integer and p.exp > 0 for p in everything.atoms(sympy.Pow) if p.free_symbols)


def far(definition: Definition) -> float:
    """Return the magnitude from which an input may overflow float32, by the highest degree of any part."""
    def degree(e: sympy.Expr) -> int:
        if isinstance(e, sympy.Pow):
            return math.ceil(abs(e.exp) * degree(e.base))
        if isinstance(e, sympy.Mul):
            return sum(map(degree, e.args))
        if isinstance(e, sympy.Function) and NAMES.get(e.func) not in ("max", "min", "abs", "softplus"):
            return 0
        return int(e.is_Symbol) or max([0, *map(degree, e.args)])

    return min(1e15, 10.0 ** (37 // max(1, degree(whole(definition)))), _reach(definition))


@functools.cache
def _reach(definition: Definition) -> float:
    """Return the magnitude up to which no exponential leaves float32 in a step; 1e15 where none ever does.

    An exp may overflow although it is divided, or multiplied by what decays. A decaying divisor may underflow.
    Learnable parameters are at their start, and inputs of a gated formula equally large.
    """
    everything = whole(definition)
    powers = [p for p in everything.atoms(sympy.Pow) if p.base.atoms(*_DECAYING)]
    grow = {(call.args[0], max(1.0, abs(float(p.exp)))) for p in powers for call in p.base.atoms(exp, expm1)}
    grow |= {(call.args[0], 1.0) for call in everything.atoms(exp, expm1)}
    # Beside an exp what decays may be multiplied up again.
    small = {(p.base, max(1.0, abs(float(p.exp)))) for p in powers if p.exp < 0 or grow}
    sizes, most = np.arange(0.0, 201.0), np.full(201, -np.inf)
    with np.errstate(all="ignore"):
        for signs in itertools.product((-1.0, 1.0), repeat=len(definition.variables)):
            leaves = start(definition) | {v: s * sizes for v, s in zip(definition.variables, signs, strict=True)}
            for part, times in grow:
                most = np.fmax(most, times * fold(part, leaves, TABLE))
            for part, times in small:
                logarithm = np.log(np.abs(fold(part, leaves, TABLE)))  # of 0: neither tiny nor divided by
                most = np.fmax(most, np.where(np.isfinite(logarithm), -times * logarithm, -np.inf))
    beyond = np.flatnonzero(most > _EXPONENT)
    return float(max(1.0, sizes[beyond[0]] - 1)) if len(beyond) else _MOST_REACH


def near(definition: Definition) -> float:
    """Return the magnitude up to which an input's power may be subnormal, and lose digits, before it is multiplied."""
    assert definition.expr is not None
    most = max([1.0, *(float(p.exp) for p in definition.expr.atoms(sympy.Pow) if p.free_symbols)])
    return max(1e-15, 10.0 ** -(37 // most))


def whole(definition: Definition) -> sympy.Expr:
    """Return one expression with every part of the value and of the derivatives."""
    names = (*definition.variables, *(q.name for q in definition.parameters))
    return sympy.Tuple(definition.expr, *(definition.derivative(name) for name in names))


def _grows(e: sympy.Expr) -> bool:
    """Return whether a power above one is part of the result, outside of saturating primitives.

    Such a power may overflow float32 although the result does not. Inside of sigmoid and its like overflow is harmless:
    the limit is right, and the nan of 0 times infinity is detected.
    """
    if isinstance(e, sympy.Pow) and e.exp > 1 and e.free_symbols:
        return True
    saturates = isinstance(e, sympy.Function) and NAMES.get(e.func) not in ("max", "min", "abs")
    return not saturates and any(_grows(part) for part in e.args)
