"""The fallback: a definition computed in plain torch, value and derivatives, on any device and dtype.

Sixteen-bit inputs are computed in float32 and rounded once. Where a product of 0 and infinity would make a nan
that no input brought, the value is 0: every such product in the catalog decays faster than it grows.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import Tensor

from nonlin.functions import Definition
from nonlin.functions.walk import fold, terms

_HALF = (torch.float16, torch.bfloat16)


def _sigmoid(x: Tensor) -> Tensor:
    # By exp(-|x|): the small side keeps its digits where exp(|x|) would overflow.
    z = torch.exp(-x.abs())
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


def _power(base: Any, exponent: sympy.Expr) -> Any:
    if exponent.is_Integer:
        return base ** int(exponent)
    return torch.sqrt(base) if exponent == sympy.Rational(1, 2) else base ** float(exponent)


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
    if isinstance(b, (int, float)):
        return torch.clamp(a, max=b)
    return _as_tensor(torch.minimum)(a, b)


def _maximum(a: Any, b: Any) -> Any:
    if isinstance(b, (int, float)):
        return torch.clamp(a, min=b)
    return _as_tensor(torch.maximum)(a, b)


def _softplus(x: Tensor) -> Tensor:
    return torch.clamp(x, min=0) + torch.log1p(torch.exp(-x.abs()))


def _of_number(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Tensor]:
    """Let a primitive of one argument take a number; one of no dimension takes on the others' dtype."""
    return lambda x: function(x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64))


_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": _sigmoid, "tanh": torch.tanh, "Phi": _normal_cdf, "phi": _phi_density, "erf": torch.erf,
    "exp": torch.exp, "expm1": torch.expm1, "log1p": torch.log1p, "softplus": _softplus, "atan": torch.atan,
    "step": lambda x: (x > 0).to(x.dtype), "sign": torch.sign, "abs": torch.abs,
}
TABLE: dict[str, Callable[..., Any]] = {
    **{name: _of_number(function) for name, function in _ONE.items()},
    "number": float, "add": lambda a, b: a + b, "mul": lambda a, b: a * b, "pow": _power,
    "max": _maximum, "min": _minimum,
}


def _compute(expr: sympy.Expr, leaves: dict[str, Tensor]) -> Tensor:
    """Fold the expression, at the inputs' common shape, the 0 x infinity of its terms mended."""
    shape = torch.broadcast_shapes(*(leaf.shape for leaf in leaves.values()))
    some = next(iter(leaves.values()))
    total: Any = None
    for term in terms(expr):
        out = fold(term, leaves, TABLE)
        if isinstance(out, Tensor):
            made = torch.isnan(out)
            for leaf in leaves.values():
                made = made & ~torch.isnan(leaf)
            out = torch.where(made, torch.zeros((), dtype=out.dtype, device=out.device), out)
        total = out if total is None else total + out
    return total.to(some.dtype).expand(shape) if isinstance(total, Tensor) else some.new_full(shape, total)


def _reduce_to(gradient: Tensor, shape: torch.Size) -> Tensor:
    """Sum a broadcast gradient back to its input's shape."""
    while gradient.ndim > len(shape):
        gradient = gradient.sum(0)
    for dim, size in enumerate(shape):
        if size == 1 and gradient.shape[dim] != 1:
            gradient = gradient.sum(dim, keepdim=True)
    return gradient


def value(definition: Definition, leaves: dict[str, Tensor]) -> Tensor:
    """Return the activation's value; ``leaves`` maps inputs and parameters to tensors of one dtype."""
    assert definition.expr is not None
    return _compute(definition.expr, leaves)


class _Apply(torch.autograd.Function):
    """Value forward; the derived partial derivatives backward, recomputed from the inputs."""

    @staticmethod
    def forward(ctx: Any, definition: Definition, names: tuple[str, ...], *inputs: Tensor) -> Tensor:
        ctx.definition, ctx.names = definition, names
        ctx.save_for_backward(*inputs)
        return _rounded(definition.expr, names, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        inputs, out = ctx.saved_tensors, []
        for i, name in enumerate(ctx.names):
            if not ctx.needs_input_grad[2 + i]:
                out.append(None)
                continue
            slope = _Slope.apply(ctx.definition, ctx.names, name, grads[0], *inputs)
            out.append(_reduce_to(slope, inputs[i].shape).to(inputs[i].dtype))
        return None, None, *out


def slopes(definition: Definition, gradient: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Return gradient x derivative by each leaf (inputs, then parameters), differentiable once more."""
    names = (*definition.variables, *(q.name for q in definition.parameters))
    return [_reduce_to(_Slope.apply(definition, names, name, gradient, *leaves), leaf.shape).to(leaf.dtype)
            for name, leaf in zip(names, leaves, strict=True)]


class _Slope(torch.autograd.Function):
    """gradient x derivative by one input, itself differentiable once more."""

    @staticmethod
    def forward(ctx: Any, definition: Definition, names: tuple[str, ...], by: str, gradient: Tensor,
                *inputs: Tensor) -> Tensor:
        ctx.definition, ctx.names, ctx.by = definition, names, by
        ctx.save_for_backward(gradient, *inputs)
        wide = torch.float32 if gradient.dtype in _HALF else gradient.dtype
        slope = _wide(definition.derivative(by), names, inputs)
        return gradient.to(wide) * slope

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        gradient, *inputs = ctx.saved_tensors
        slope = _wide(ctx.definition.derivative(ctx.by), ctx.names, inputs)
        first = (grads[0] * slope).to(gradient.dtype)
        rest = []
        for name, leaf in zip(ctx.names, inputs, strict=True):
            second = _wide(sympy.diff(ctx.definition.derivative(ctx.by), sympy.Symbol(name, real=True)),
                           ctx.names, inputs)
            rest.append(_reduce_to(grads[0] * gradient * second, leaf.shape).to(leaf.dtype))
        return None, None, None, first, *rest


def _wide(expr: Any, names: tuple[str, ...], inputs: Any) -> Tensor:
    wide = [x.float() if x.dtype in _HALF else x for x in inputs]
    return _compute(expr, dict(zip(names, wide, strict=True)))


def _rounded(expr: Any, names: tuple[str, ...], inputs: tuple[Tensor, ...]) -> Tensor:
    return _wide(expr, names, inputs).to(inputs[0].dtype)


@functools.cache
def _callable(definition: Definition) -> Callable[..., Tensor]:
    names = (*definition.variables, *(q.name for q in definition.parameters))

    def call(*inputs: Tensor) -> Tensor:
        return _Apply.apply(definition, names, *inputs)  # type: ignore[return-value]

    return call


def apply(definition: Definition, *inputs: Tensor) -> Tensor:
    """Return the activation of inputs (any shapes that broadcast), then its parameters; differentiable twice."""
    return _callable(definition)(*inputs)
