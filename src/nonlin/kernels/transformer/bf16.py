"""The small language model's operations with bfloat16 matrix products, by our C++ for one CPU thread.

Tensors between two products are bfloat16 in memory: half of the traffic, and nothing is converted on the way. Every sum
is float32, and so are the residual stream, its gradient, weights and logits. Letters of shapes as in
:mod:`nonlin.kernels.transformer.torch_engine`.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from nonlin.kernels.transformer.float32 import NativeEngine, buffers, operations
from nonlin.kernels.transformer.native import pointers
from nonlin.kernels.transformer.torch_engine import EPS

_BF16 = torch.bfloat16


def _rows(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1] if x.shape[-1] else 0, x.shape[-1]


class _Linears(torch.autograd.Function):
    """x to x W^T for several W at once, in bfloat16."""

    @staticmethod
    def forward(ctx, x, *weights):
        ctx.save_for_backward(x, *weights)
        ctx.sizes = (ctypes.c_int64 * len(weights))(*(w.shape[0] for w in weights))
        out = tuple(x.new_empty(*x.shape[:-1], w.shape[0]) for w in weights)
        operations().nl_bf16_linears(*_rows(x), x.data_ptr(), len(weights), ctx.sizes, pointers(weights),
                                     pointers(out))
        return out

    @staticmethod
    def backward(ctx, *grads):
        x, *weights = ctx.saved_tensors
        grads = [g.contiguous() for g in grads]
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dw = [torch.empty_like(w) for w in weights] if any(ctx.needs_input_grad[1:]) else None
        operations().nl_bf16_linears_backward(
            *_rows(x), x.data_ptr(), len(weights), ctx.sizes, pointers(weights), pointers(grads),
            None if dx is None else dx.data_ptr(), None if dw is None else pointers(dw))
        return dx, *(dw or [None] * len(weights))


class _LinearAdd(torch.autograd.Function):
    """x and R to R + x W^T in float32; R may be None."""

    @staticmethod
    def forward(ctx, x, weight, residual):
        ctx.save_for_backward(x, weight)
        out = x.new_empty(*x.shape[:-1], weight.shape[0], dtype=torch.float32)
        operations().nl_bf16_linear_add(*_rows(x), x.data_ptr(), weight.shape[0], weight.data_ptr(),
                                     None if residual is None else residual.data_ptr(), out.data_ptr())
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dw = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        operations().nl_bf16_linear_add_backward(
            *_rows(x), x.data_ptr(), weight.shape[0], weight.data_ptr(), grad.data_ptr(),
            None if dx is None else dx.data_ptr(), None if dw is None else dw.data_ptr())
        return dx, dw, grad if ctx.needs_input_grad[2] else None


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        y, scale = torch.empty_like(x, dtype=_BF16), x.new_empty(_rows(x)[0])
        operations().nl_bf16_rms_norm(*_rows(x), EPS, x.data_ptr(), weight.data_ptr(), y.data_ptr(), scale.data_ptr())
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        dx, dw, grad = torch.empty_like(x), torch.zeros_like(weight), grad.contiguous()
        operations().nl_bf16_rms_norm_backward(*_rows(x), x.data_ptr(), weight.data_ptr(), scale.data_ptr(),
                                            grad.data_ptr(), dx.data_ptr(), dw.data_ptr())
        return dx, dw


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, wq, wk, cos, sin):
        tensors = (q, k, v, wq, wk, cos, sin)
        ctx.shape, out, probabilities = buffers(q, k)
        operations().nl_bf16_attention(ctx.shape, EPS, *(x.data_ptr() for x in tensors), out.data_ptr(),
                                    probabilities.data_ptr(), probabilities.shape[-1])
        ctx.save_for_backward(*tensors, probabilities)
        return out

    @staticmethod
    def backward(ctx, grad):
        *tensors, probabilities = ctx.saved_tensors
        q, k, v, wq, wk = tensors[:5]
        grads = [*(torch.empty_like(x) for x in (q, k, v)), torch.zeros_like(wq), torch.zeros_like(wk)]
        operations().nl_bf16_attention_backward(
            ctx.shape, EPS, *(x.data_ptr() for x in tensors), probabilities.data_ptr(), probabilities.shape[-1],
            grad.contiguous().data_ptr(), *(g.data_ptr() for g in grads))
        return *grads, None, None


class Bf16Engine(NativeEngine):
    """The transformer kernels with bfloat16 products, summed in float32.

    Processors with ``avx512_bf16`` multiply pairs in one instruction; it takes subnormal numbers as zeros.
    """

    def __init__(self):
        super().__init__(_BF16)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return _LinearAdd.apply(self._narrow(x), self._weight(weight), None)

    def linears(self, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return _Linears.apply(self._narrow(x), *(self._weight(w) for w in weights))

    def linear_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        (residual,) = self._checked(residual)
        return _LinearAdd.apply(self._narrow(x), self._weight(weight), residual)

    def rms_norm(self, x: Tensor, weight: Tensor, narrow: bool = False) -> Tensor:
        return _RmsNorm.apply(*self._checked(x, weight)) if narrow else super().rms_norm(x, weight)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, wq: Tensor, wk: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        self._check_width(q)
        return _Attention.apply(*(self._narrow(x) for x in (q, k, v)), *self._checked(wq, wk, cos, sin))

    def _narrow(self, x: Tensor) -> Tensor:
        return x.contiguous() if x.dtype == _BF16 and x.device.type == "cpu" else self._checked(x)[0].to(_BF16)

    def _weight(self, weight: Tensor) -> Tensor:
        return self._checked(weight)[0]
