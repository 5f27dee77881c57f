"""Products of the transformer kernels with the layers' weights, which are float32, for x of float32 or bfloat16.

Weights are rounded to x's dtype, and sums are float32.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nonlin.errors import UserError, rule
from nonlin.kernels.transformer.native import operations, pointers
from nonlin.kernels.transformer.once import once_differentiable


def _of(x: Tensor, name: str) -> Callable[..., Any]:
    return getattr(operations(), f"nl_{'bf16_' if x.dtype == torch.bfloat16 else ''}{name}")


def must_be_wide(call: str, x: Tensor, columns: int) -> None:
    """Raise UserError for an x of other columns: C++ would read beyond it, or beyond the weight."""
    if not x.ndim or x.shape[-1] != columns:
        raise UserError(rule(call, "x", f"have {columns} columns, as the weight has", tuple(x.shape),
                             "Pass what the layer before it returns."))


def rows(x: Tensor) -> tuple[int, int]:
    """Return how many rows there are, and their length."""
    return x.numel() // x.shape[-1] if x.shape[-1] else 0, x.shape[-1]


class Linears(torch.autograd.Function):
    """x to x W^T for several W at once, in x's dtype."""

    @staticmethod
    def forward(ctx, x, *weights):
        for w in weights:
            must_be_wide("linears", x, w.shape[1])
        ctx.save_for_backward(x, *weights)
        ctx.sizes = (ctypes.c_int64 * len(weights))(*(w.shape[0] for w in weights))
        out = tuple(x.new_empty(*x.shape[:-1], w.shape[0]) for w in weights)
        _of(x, "linears")(*rows(x), x.data_ptr(), len(weights), ctx.sizes, pointers(weights), pointers(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, *weights = ctx.saved_tensors
        grads = [g.contiguous() for g in grads]
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dw = [torch.empty_like(w) for w in weights] if any(ctx.needs_input_grad[1:]) else None
        _of(x, "linears_backward")(
            *rows(x), x.data_ptr(), len(weights), ctx.sizes, pointers(weights), pointers(grads),
            None if dx is None else dx.data_ptr(), None if dw is None else pointers(dw))
        return dx, *(dw or [None] * len(weights))


class LinearAdd(torch.autograd.Function):
    """x and R to R + x W^T in float32; R may be None."""

    @staticmethod
    def forward(ctx, x, weight, residual):
        must_be_wide("linear_add", x, weight.shape[1])
        if residual is not None and residual.shape != (*x.shape[:-1], weight.shape[0]):
            raise UserError(rule("linear_add", "residual", "have the shape of the product", tuple(residual.shape),
                                 "Pass what is added to it."))
        ctx.save_for_backward(x, weight)
        out = x.new_empty(*x.shape[:-1], weight.shape[0], dtype=torch.float32)
        _of(x, "linear_add")(*rows(x), x.data_ptr(), weight.shape[0], weight.data_ptr(),
                             None if residual is None else residual.data_ptr(), out.data_ptr())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dw = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        _of(x, "linear_add_backward")(
            *rows(x), x.data_ptr(), weight.shape[0], weight.data_ptr(), grad.data_ptr(),
            None if dx is None else dx.data_ptr(), None if dw is None else dw.data_ptr())
        return dx, dw, grad if ctx.needs_input_grad[2] else None
