"""Sums, products and choices that Triton kernels are made of: their error terms, limits and nans, as in cpu/math.h.

KIND selects the arithmetic, as in math.py.
"""

import torch
import triton
import triton.language as tl

from nonlin.kernels.triton.backend import interpreted

PTX = tl.constexpr(torch.version.hip is None and not interpreted())
"""Whether kernels may hold instructions of NVIDIA's assembler: neither in Triton's interpreter nor on AMD's GPUs."""


@triton.jit
def ptx(instruction: tl.constexpr, x):
    """A float32 number by one instruction of NVIDIA's assembler from another."""
    return tl.inline_asm_elementwise(instruction, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def product_error(a, b, product):
    """Two-product: a * b - product exactly, for product = fl(a * b)."""
    return tl.fma(a, b, -product)


@triton.jit
def sum_error(a, b, total):
    """Two-sum (Knuth): a + b - total exactly, for total = fl(a + b)."""
    t = total - a
    return (a - (total - t)) + (b - t)


@triton.jit
def remainder(a, b, quotient):
    """a - quotient * b exactly, for quotient = fl(a / b)."""
    return tl.fma(-quotient, b, a)


@triton.jit
def within_range(value, other):
    """Return the value, or the other if it is infinite."""
    return tl.where(tl.abs(value) == float("inf"), other, value)


@triton.jit
def low_of(taken, a, a_low, b_low):
    """Return the error term of the selected one of two."""
    return tl.where(taken == a, a_low, b_low)


@triton.jit
def settled(value, low, KIND: tl.constexpr):
    """Add a long product's error term, if results are exact."""
    if KIND == 1:
        return tl.where(low == low, value + low, value)
    else:
        return value


@triton.jit
def mended(term, whole):
    """NaN guard: 0 for a nan without a nan input, which is 0 times infinity far from the origin; the limit is 0."""
    return tl.where((term != term) & whole, 0.0, term)


@triton.jit
def bounded(low):
    # Never nan: an infinite or clamped argument has no meaningful error term.
    return tl.where(tl.abs(low) < 0.0078125, low, 0.0)


@triton.jit
def plus(a, low, KIND: tl.constexpr):
    if low is None:
        return a
    elif KIND == 1:
        return a + bounded(low)
    else:
        return a


@triton.jit
def signed_like(low, x):
    return tl.where(x < 0, -bounded(low), bounded(low))


@triton.jit
def divide(a, b, KIND: tl.constexpr):
    """a / b, correctly rounded except in the fast kind."""
    if KIND == 1:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def root(a, KIND: tl.constexpr):
    """The correctly rounded square root."""
    if KIND == 2:
        return tl.sqrt(a)
    else:
        return tl.sqrt_rn(a)


@triton.jit
def larger(a, b):
    """The larger of two; nan if either is nan."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def smaller(a, b):
    """The smaller of two; a nan in either stays."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
