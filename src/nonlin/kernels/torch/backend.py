"""The fallback: a definition computed in plain torch, value and derivatives, on any device and dtype.

16-bit inputs are computed in float32 and rounded once. A product of 0 and infinity without a nan input is NaN-guarded.
Its value is 0, since every such product in the catalog decays faster than it grows. A root of a negative number and
0 divided by 0 stay nan (nonlin.functions.domain).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor

from nonlin.functions import Definition
from nonlin.functions.domain import undefined
from nonlin.functions.expression import Table, fold, terms
from nonlin.kernels.codegen import ranges

DOUBLE = ("cpu", "cuda")
"""Devices that compute in double precision."""
_FAR = 1e3  # an exponential that reaches further overflows nowhere
_HALF = (torch.float16, torch.bfloat16)


def _size(x: Tensor) -> Tensor:
    """|x|, with the derivative of x at 0: what is smooth there stays so where torch differentiates it."""
    return torch.where(x < 0, -x, x)


def _sigmoid(x: Tensor) -> Tensor:
    # By exp(-|x|): the small side keeps its digits where exp(|x|) would overflow.
    z = torch.exp(-_size(x))
    return torch.where(x < 0, z, torch.ones((), dtype=x.dtype, device=x.device)) / (1 + z)


def _gauss(x: Tensor) -> Tensor:
    """exp(-x^2 / 2), the square's rounding compensated: multiplied by x^2, it would cost the tail its digits."""
    a = x.abs().clamp(max=40.0)
    high = (a * 256).round() / 256 if a.dtype == torch.float32 else a  # 12 bits below 16: its square is exact
    return torch.exp(-0.5 * high * high) * torch.exp(-0.5 * (a - high) * (a + high))


def _phi_density(x: Tensor) -> Tensor:
    return _gauss(x) * (1 / math.sqrt(2 * math.pi))


def _normal_cdf(x: Tensor) -> Tensor:
    # The tail by the scaled complementary error function: 1 + erf would lose all its digits, erfc(x/sqrt 2) many.
    tail = 0.5 * torch.special.erfcx(x.abs() * math.sqrt(0.5)) * _gauss(x)
    return torch.where(x.abs() < 1, 0.5 * torch.erfc(x * -math.sqrt(0.5)), torch.where(x > 0, 1 - tail, tail))


def _exported_normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))


def _exported_density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


def _power(base: Any, exponent: sympy.Expr) -> Any:
    if exponent.is_Integer:
        return base ** int(exponent)
    root = exponent == sympy.Rational(1, 2) and isinstance(base, Tensor)
    return torch.sqrt(base) if root else base ** float(exponent)


def _as_tensor(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a primitive of two arguments take numbers."""

    def call(a: Any, b: Any) -> Tensor:
        if not isinstance(a, Tensor):
            a = torch.as_tensor(a, dtype=b.dtype, device=b.device)
        if not isinstance(b, Tensor):
            b = torch.as_tensor(b, dtype=a.dtype, device=a.device)
        return function(a, b)

    return call


def _minimum(a: Any, b: Any) -> Any:
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return min(a, b)
    if isinstance(b, (int, float)):
        return torch.clamp(a, max=b)
    return _as_tensor(torch.minimum)(a, b)


def _maximum(a: Any, b: Any) -> Any:
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return max(a, b)
    if isinstance(b, (int, float)):
        return torch.clamp(a, min=b)
    return _as_tensor(torch.maximum)(a, b)


def _softplus(x: Tensor) -> Tensor:
    return torch.clamp(x, min=0) + torch.log1p(torch.exp(-_size(x)))


def _of_number(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Tensor]:
    """Let a primitive of one argument take a number; one of no dimension takes on the others' dtype."""
    return lambda x: function(x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64))


def _numbered(holds: Tensor, x: Tensor) -> Tensor:
    """1 where a comparison of x holds, 0 where not, nan where x is nan: torch's own sign and comparisons hide it."""
    return torch.where(torch.isnan(x), torch.full((), math.nan, dtype=x.dtype, device=x.device), holds.to(x.dtype))


def _cauchy(x: Tensor) -> Tensor:
    # Where x is very negative, by 1/x: 1/2 + atan(x)/pi would lose its digits.
    return torch.atan2(torch.ones((), dtype=x.dtype, device=x.device), -x) * (1 / math.pi)


_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": _sigmoid, "tanh": torch.tanh, "Phi": _normal_cdf, "phi": _phi_density, "erf": torch.erf,
    "exp": torch.exp, "expm1": torch.expm1, "log1p": torch.log1p, "softplus": _softplus, "atan": torch.atan,
    "cauchy": _cauchy,
    "step": lambda x: _numbered(x > 0, x), "nonnegative": lambda x: _numbered(x >= 0, x),
    "sign": lambda x: _numbered(x > 0, x) - _numbered(x < 0, x), "abs": torch.abs,
}
TABLE: dict[str, Callable[..., Any]] = {
    **{name: _of_number(function) for name, function in _ONE.items()},
    "number": float, "add": lambda a, b: a + b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
    "pow": _power, "max": _maximum, "min": _minimum,
}


EXPORTED: Table = TABLE | {"Phi": _of_number(_exported_normal_cdf), "phi": _of_number(_exported_density)}
"""The same of operations that exporters know: as exact as torch's own gelu, in the tail less than ours."""


def _compute(expr: sympy.Expr, leaves: dict[str, Tensor], table: Table = TABLE) -> Tensor:
    """Fold the expression at the inputs' common shape; each term is NaN-guarded (0 x infinity)."""
    shape = torch.broadcast_shapes(*(leaf.shape for leaf in leaves.values()))
    some = next(iter(leaves.values()))
    total: Any = None
    for term in terms(expr):
        out = fold(term, leaves, table)
        if isinstance(out, Tensor):
            made = torch.isnan(out)
            for part in (*leaves.values(), *(fold(part, leaves, table) for part in undefined(term))):
                made = made & ~torch.isnan(part)
            out = torch.where(made, torch.zeros((), dtype=out.dtype, device=out.device), out)
        total = out if total is None else total + out
    return total.to(some.dtype).expand(shape) if isinstance(total, Tensor) else some.new_full(shape, total)


def reduce_to(gradient: Tensor, shape: torch.Size) -> Tensor:
    """Return a broadcast gradient, summed back to its input's shape."""
    while gradient.ndim > len(shape):
        gradient = gradient.sum(0)
    for dim, size in enumerate(shape):
        if size == 1 and gradient.shape[dim] != 1:
            gradient = gradient.sum(dim, keepdim=True)
    return gradient


def _leaves(definition: Definition, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    names = (*definition.variables, *(q.name for q in definition.parameters))
    return {name: wide(x) for name, x in zip(names, (*inputs, *parameters), strict=True)}


def _within_reach(definition: Definition, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the leaves in double precision where an exponential may leave float32 although the result fits."""
    if ranges.far(definition) >= _FAR or any(x.device.type not in DOUBLE for x in leaves.values()):
        return leaves
    return {name: x.double() for name, x in leaves.items()}


def wide(x: Tensor) -> Tensor:
    """Return a 16-bit tensor in float32, others as they are."""
    return x.float() if x.dtype in _HALF else x


def forward(definition: Definition, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return the activation in the inputs' dtype, rounded once; of differentiable operations."""
    assert definition.expr is not None
    leaves = _within_reach(definition, _leaves(definition, inputs, parameters))
    return _compute(definition.expr, leaves).to(inputs[0].dtype)


def backward(definition: Definition, gradient: Tensor, inputs: Sequence[Tensor], parameters: Sequence[Tensor],
             want_value: bool = False) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Return gradient x derivative by each input, by each parameter, and the value where it is wanted."""
    leaves = _within_reach(definition, _leaves(definition, inputs, parameters))
    outs = [reduce_to(wide(gradient) * _compute(definition.derivative(name), leaves), leaf.shape).to(leaf.dtype)
            for name, leaf in zip(leaves, (*inputs, *parameters), strict=True)]
    made = forward(definition, inputs, parameters) if want_value else None
    return outs[:len(inputs)], outs[len(inputs):], made


@functools.cache
def mixed(definition: Definition, orders: tuple[int, ...]) -> sympy.Expr:
    """Return the formula's derivative of these orders by the inputs, then the learnable parameters.

    >>> from nonlin.functions import get
    >>> mixed(get("bilinear"), (1, 1))
    1
    """
    names = (*definition.variables, *(q.name for q in definition.parameters))
    return definition.partial(*(name for name, order in zip(names, orders, strict=True) for _ in range(order)))


def derivative(definition: Definition, orders: Sequence[int], tensors: Sequence[Tensor],
               table: Table = TABLE) -> Tensor:
    """Return the formula's derivative of these orders at the inputs and parameters, in float32 or float64."""
    count = len(definition.variables)
    leaves = _leaves(definition, tensors[:count], tensors[count:])
    return _compute(mixed(definition, tuple(orders)), leaves, table)
