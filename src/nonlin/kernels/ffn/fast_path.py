"""The block's fast path for plain tensors in eager mode bypasses torch's dispatcher, as activation/fast_path.py.

A registered operation with a gradient costs a fraction of a millisecond per call, a fifth of a small block at one
token. If nothing can observe the difference, the same bodies are called directly. Without a gradient, torch computes
the matrix products, and the activation works in place on the gate's pre-activation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from nonlin.kernels import dispatch
from nonlin.kernels.activation.fast_path import plain
from nonlin.kernels.ffn import ops
from nonlin.kernels.ffn.layout import Form, Tensors, columns, pair, product_form, rows, split
from nonlin.kernels.registration import batched_gradient


class _Direct(torch.autograd.Function):
    """The forward operation without the operation; its backward likewise, unless a second derivative is wanted."""

    @staticmethod
    def forward(ctx: Any, form: Form, keep: str, *inputs: Any) -> Any:
        tensors = Tensors(*inputs)
        made = ops.forward(tensors, form, keep)
        ops.save(ctx, ctx.needs_input_grad[2:], tensors, form, keep, made)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient, needs = gradients[0], ctx.needs_input_grad[2:]
        if gradient is None or torch.is_grad_enabled() or batched_gradient(gradient) or not serves((gradient,)):
            return None, None, *ops.gradients(ctx, needs, gradient)
        made = ops.backward(gradient, *ops.saved_of(ctx), ctx.form, needs)
        return None, None, *(out if need else None for out, need in zip(made, needs, strict=True))


def serves(tensors: Sequence[Tensor | None]) -> bool:
    """Return whether these are plain CPU tensors in eager mode and nothing watches what is called."""
    return not torch.compiler.is_compiling() and plain([t for t in tensors if t is not None])


def recorded(tensors: Tensors, form: Form, keep: str) -> Tensor:
    """Return the block's output, its gradient recorded."""
    made: Any = _Direct.apply(form, keep, *tensors)
    return made[0]


def value(tensors: Tensors, form: Form) -> Tensor:
    """Return the block's output where nothing records a gradient."""
    x, down = tensors.x, tensors.down
    assert x is not None
    with ops.as_they_are(x):
        apart = product_form(tensors.up, form)
        inputs = [linear(x, w, b) for w, b in zip(  # type: ignore[arg-type]
            pair(tensors.gate, tensors.up, apart), pair(tensors.gate_bias, tensors.up_bias, apart), strict=True)]
        if apart != form:
            inputs = columns(rows(inputs[0]), form)
        hidden = dispatch.forward(form.definition, inputs, split(tensors.parameters, x.dtype), over=True)
        out = linear(hidden, down, tensors.down_bias)
        return out if out.ndim == x.ndim else out.view(*x.shape[:-1], down.shape[0])
