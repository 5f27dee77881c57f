"""The block's fast path for plain tensors in eager mode bypasses torch's dispatcher, as activation/fast_path.py.

A registered operation with a gradient costs a fraction of a millisecond per call, a fifth of a small block at one
token. If nothing can observe the difference, the same bodies are called directly. Without a gradient, torch computes
the matrix products, and the activation works in place on the gate's pre-activation.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from nonlin.functions import Definition
from nonlin.kernels import dispatch
from nonlin.kernels.activation.fast_path import apply, plain, shortened
from nonlin.kernels.cpu.backend import PIECE
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
        # Without retain_graph nothing reads the pre-activations again: a GPU writes their gradients over them.
        made = ops.backward(gradient, *ops.saved_of(ctx), ctx.form, needs, last=not _keeps_graph())
        return None, None, *(out if need else None for out, need in zip(made, needs, strict=True))


def _keeps_graph() -> bool:
    """Return whether backward may run again on what was saved; True where torch does not tell."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is None or bool(asked())


def serves(tensors: Sequence[Tensor | None]) -> bool:
    """Return whether these are plain tensors in eager mode and nothing watches what is called."""
    return not torch.compiler.is_compiling() and plain([t for t in tensors if t is not None])


FEW = 8
"""Tokens up to which a recorded block is composed of layers: its products take less time than Python does."""


def few(x: Tensor) -> bool:
    """Return whether x (..., D) has few tokens."""
    return x.ndim > 0 and x.numel() <= FEW * x.shape[-1]


def layers(definition: Definition, x: Tensor, gate: Tensor | None, up: Tensor, down: Tensor,
           gate_bias: Tensor | None, up_bias: Tensor | None, down_bias: Tensor | None) -> Tensor:
    """Return the output of a block whose weights lie apart by torch's linear layers, which record by themselves.

    They save gate, up and the activation's output, (G + 1) H numbers per token, and the input.
    """
    with ops.as_they_are(x):
        inputs = [linear(x, up, up_bias)]
        if gate is not None:
            inputs.insert(0, linear(x, gate, gate_bias))
        return linear(_differentiable(definition)(*inputs), down, down_bias)


@functools.lru_cache(maxsize=1024)
def _differentiable(definition: Definition) -> Callable[..., Tensor]:
    """Return the activation of plain tensors, differentiable."""
    return shortened(definition, lambda *inputs: apply(definition, inputs, ()))


def recorded(tensors: Tensors, form: Form, keep: str) -> Tensor:
    """Return the block's output, its gradient recorded."""
    made: Any = _Direct.apply(form, keep, *tensors)
    return made[0]


@functools.lru_cache(maxsize=1024)  # a process may define formulas without end
def _activation(definition: Definition) -> Callable[..., Tensor]:
    """Return the activation of tensors that nothing watches and that record nothing."""
    def general(*inputs: Tensor) -> Tensor:
        return dispatch.forward(definition, inputs, over=True)

    return shortened(definition, general)


def apart(definition: Definition, x: Tensor, gate: Tensor | None, up: Tensor, down: Tensor,
          gate_bias: Tensor | None, up_bias: Tensor | None, down_bias: Tensor | None) -> Tensor:
    """Return the output of a block whose weights lie apart, where nothing records a gradient and autocast is off."""
    first = linear(x, up if gate is None else gate, up_bias if gate is None else gate_bias)
    inputs = (first,) if gate is None else (first, linear(x, up, up_bias))
    if first.numel() <= PIECE:
        return linear(_activation(definition)(*inputs), down, down_bias)
    # In place: many numbers cost their memory.
    return linear(dispatch.forward(definition, inputs, over=True), down, down_bias)


def value(tensors: Tensors, form: Form) -> Tensor:
    """Return the block's output where nothing records a gradient."""
    x, gate, up, down, gate_bias, up_bias, down_bias, parameters = tensors
    assert x is not None
    with ops.as_they_are(x):
        if form.layout == "separate":
            inputs = [linear(x, gate, gate_bias), linear(x, up, up_bias)]  # type: ignore[arg-type]
        elif form.layout == "plain":
            inputs = [linear(x, up, up_bias)]
        else:
            apart = product_form(up, form)
            inputs = [linear(x, w, b) for w, b in zip(  # type: ignore[arg-type]
                pair(gate, up, apart), pair(gate_bias, up_bias, apart), strict=True)]
            if apart != form:
                inputs = columns(rows(inputs[0]), form)
        if parameters is None and inputs[0].numel() <= PIECE:
            hidden = _activation(form.definition)(*inputs)
        else:
            hidden = dispatch.forward(form.definition, inputs, split(parameters, x.dtype), over=True)
        out = linear(hidden, down, down_bias)
        return out if out.ndim == x.ndim else out.view(*x.shape[:-1], down.shape[0])
