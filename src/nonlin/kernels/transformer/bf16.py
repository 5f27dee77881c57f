"""The small language model's operations with bfloat16 matrix products, by our C++ for one CPU thread.

Tensors between two products are bfloat16 in memory: half of the traffic, and nothing is converted on the way. Every sum
is float32, and so are the residual stream, its gradient, weights and logits. Letters of shapes as in
:mod:`nonlin.kernels.transformer.torch_engine`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nonlin.functions import Definition
from nonlin.kernels.transformer import layer
from nonlin.kernels.transformer.float32 import NativeEngine, buffers
from nonlin.kernels.transformer.linear import LinearAdd, Linears, must_be_wide, rows
from nonlin.kernels.transformer.native import operations
from nonlin.kernels.transformer.once import once_differentiable
from nonlin.kernels.transformer.torch_engine import EPS

_BF16 = torch.bfloat16


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        must_be_wide("rms_norm", x, weight.numel())
        y, scale = torch.empty_like(x, dtype=_BF16), x.new_empty(rows(x)[0])
        operations().nl_bf16_rms_norm(*rows(x), EPS, x.data_ptr(), weight.data_ptr(), y.data_ptr(), scale.data_ptr())
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        dx, dw, grad = torch.empty_like(x), torch.zeros_like(weight), grad.contiguous()
        operations().nl_bf16_rms_norm_backward(*rows(x), x.data_ptr(), weight.data_ptr(), scale.data_ptr(),
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
    @once_differentiable
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
        return LinearAdd.apply(self._narrow(x), self._weight(weight), None)

    def linears(self, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return Linears.apply(self._narrow(x), *(self._weight(w) for w in weights))

    def linear_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        (residual,) = self._checked(residual)
        return LinearAdd.apply(self._narrow(x), self._weight(weight), residual)

    def rms_norm(self, x: Tensor, weight: Tensor, narrow: bool = False) -> Tensor:
        return _RmsNorm.apply(*self._checked(x, weight)) if narrow else super().rms_norm(x, weight)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, wq: Tensor, wk: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        self._check_heads(q, k, v, wq, wk, cos, sin)
        return _Attention.apply(*(self._narrow(x) for x in (q, k, v)), *self._checked(wq, wk, cos, sin))

    def layer(self, x: Tensor, weights: Sequence[Tensor | None], activation: Definition, learned: Sequence[Tensor],
              heads: int, cos: Tensor, sin: Tensor) -> Tensor | None:
        return layer.apply(_BF16, x, weights, activation, learned, heads, cos, sin)

    def _narrow(self, x: Tensor) -> Tensor:
        return x.contiguous() if x.dtype == _BF16 and x.device.type == "cpu" else self._checked(x)[0].to(_BF16)

    def _weight(self, weight: Tensor) -> Tensor:
        return self._checked(weight)[0]
