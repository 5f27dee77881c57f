"""The block's short way for plain tensors in eager mode, past torch's dispatcher, as activation/fast_path.py is.

A registered operation with a gradient costs a fraction of a millisecond a call, which at one token is a fifth of a
small block. Where nothing listens, the same bodies are called directly; where no gradient is recorded either, the
products are torch's own and the activation is written over the gate's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from nonlin.functions.registry import resolve
from nonlin.kernels import dispatch
from nonlin.kernels.activation.fast_path import plain
from nonlin.kernels.ffn import ops
from nonlin.kernels.ffn.layout import columns, pair, product_packing, rows, split


class _Direct(torch.autograd.Function):
    """The forward operation without the operation; its backward likewise, unless a second derivative is wanted."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        made = ops.forward_of(*inputs)
        ops.setup_forward(ctx, inputs, made)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        grad = gradients[0]
        if grad is None or torch.is_grad_enabled() or not serves((grad,)):
            return ops.backward_of_forward(ctx, grad)
        needs = list(ctx.needs_input_grad[:8])
        made = ops.backward_of(grad, *ctx.saved_tensors, *ctx.how, needs)
        return *(out if need else None for out, need in zip(made, needs, strict=True)), *(None,) * 4


def serves(tensors: Sequence[Tensor | None]) -> bool:
    """Return whether these are plain CPU tensors in eager mode and nothing watches what is called."""
    return not torch.compiler.is_compiling() and plain([t for t in tensors if t is not None])


def recorded(tensors: Sequence[Any], learned: Tensor | None, activation: str, layout: str, up_first: bool,
             keep: str) -> Tensor:
    """Return the block's output, its gradient recorded."""
    made: Any = _Direct.apply(*tensors, learned, activation, layout, up_first, keep)
    return made[0]


def value(x: Tensor, gate: Tensor | None, up: Tensor, down: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None,
          down_bias: Tensor | None, learned: Tensor | None, activation: str, layout: str, up_first: bool) -> Tensor:
    """Return the block's output where nothing records a gradient."""
    with ops.as_they_are(x):
        apart = product_packing(up, layout, up_first)
        inputs = [linear(x, w, b) for w, b in zip(pair(gate, up, *apart), pair(gate_bias, up_bias, *apart),
                                                  strict=True)]  # type: ignore[arg-type]
        if apart != (layout, up_first):
            inputs = columns(rows(inputs[0]), layout, up_first)
        hidden = dispatch.forward(resolve(activation), inputs, split(learned, x.dtype), over=True)
        out = linear(hidden, down, down_bias)
        return out if out.ndim == x.ndim else out.view(*x.shape[:-1], down.shape[0])

