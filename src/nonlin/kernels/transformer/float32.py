"""The small language model's operations by our C++ for one CPU thread: float32, forward and first derivative.

Letters of shapes as in :mod:`nonlin.kernels.transformer.torch_engine`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nonlin.errors import UserError, rule
from nonlin.functions import Definition
from nonlin.kernels.transformer import layer, native
from nonlin.kernels.transformer.linear import LinearAdd, Linears, must_be_wide
from nonlin.kernels.transformer.native import operations
from nonlin.kernels.transformer.once import once_differentiable
from nonlin.kernels.transformer.torch_engine import EPS, TorchEngine


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        must_be_wide("rms_norm", x, weight.numel())
        d, rows = x.shape[-1], x.numel() // x.shape[-1]
        y, scale = torch.empty_like(x), x.new_empty(rows)
        operations().nl_rms_norm(rows, d, EPS, x.data_ptr(), weight.data_ptr(), y.data_ptr(), scale.data_ptr())
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        dx, dw, grad = torch.empty_like(x), torch.zeros_like(weight), grad.contiguous()
        operations().nl_rms_norm_backward(scale.numel(), x.shape[-1], x.data_ptr(), weight.data_ptr(), scale.data_ptr(),
                                    grad.data_ptr(), dx.data_ptr(), dw.data_ptr())
        return dx, dw


def buffers(q: Tensor, k: Tensor) -> tuple[native.Shape, Tensor, Tensor]:
    """Return an attention's sizes, and room for its output (B, T, H W) and its probabilities (B, H, T, padded T)."""
    (B, T, H, W), K = q.shape, k.shape[2]
    padded = -(-T // 16) * 16  # a whole vector register of any instruction set
    return native.Shape(B, T, H, K, W), q.new_empty(B, T, H * W), q.new_empty(B, H, T, padded)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, wq, wk, cos, sin):
        tensors = (q, k, v, wq, wk, cos, sin)
        ctx.shape, out, probabilities = buffers(q, k)
        operations().nl_attention(ctx.shape, EPS, *(x.data_ptr() for x in tensors), out.data_ptr(),
                               probabilities.data_ptr())
        ctx.save_for_backward(*tensors, probabilities)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *tensors, probabilities = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in tensors[:5]]
        grad = grad.contiguous()
        operations().nl_attention_backward(ctx.shape, EPS, *(x.data_ptr() for x in tensors), probabilities.data_ptr(),
                                     grad.data_ptr(), *(g.data_ptr() for g in grads))
        return *grads, None, None


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target):
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        loss = operations().nl_cross_entropy(target.numel(), logits.shape[-1], logits.data_ptr(), target.data_ptr(),
                                       None if gradient is None else gradient.data_ptr())
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return logits.new_tensor(loss)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gradient = ctx.saved_tensors[0]
        return gradient if float(grad) == 1 else gradient * grad, None


class NativeEngine(TorchEngine):
    """The same operations by our C++ on one thread, float32 on a CPU.

    With ``dtype`` bfloat16 torch computes the layers' matrix products, with AMX instructions if the processor has
    them; everything else stays float32.
    """

    name = "native"

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__(dtype)
        operations()

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.dtype != torch.float32:
            return super().linear(x, weight)
        return LinearAdd.apply(*self._checked(x, weight), None)

    def linears(self, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self.dtype != torch.float32:
            return super().linears(x, weights)
        return Linears.apply(*self._checked(x, *weights))

    def linear_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        if self.dtype != torch.float32:
            return super().linear_add(x, weight, residual)
        return LinearAdd.apply(*self._checked(x, weight, residual))

    def layer(self, x: Tensor, weights: Sequence[Tensor | None], activation: Definition, learned: Sequence[Tensor],
              heads: int, cos: Tensor, sin: Tensor) -> Tensor | None:
        return layer.apply(torch.float32, x, weights, activation, learned, heads, cos, sin) \
            if self.dtype == torch.float32 else None

    def rms_norm(self, x: Tensor, weight: Tensor, narrow: bool = False) -> Tensor:
        return _RmsNorm.apply(*self._checked(x, weight))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, wq: Tensor, wk: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        self._check_heads(q, k, v, wq, wk, cos, sin)
        return _Attention.apply(*self._checked(q, k, v, wq, wk, cos, sin))

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        (logits,) = self._checked(logits)
        want = logits.shape[:-1]
        if target.shape != want or target.dtype != torch.int64:
            raise UserError(rule("cross_entropy", "target", f"be int64 {tuple(want)}, one for each row of logits",
                                 f"{target.dtype} {tuple(target.shape)}", "Pass the tokens that follow."))
        if target.numel() and not 0 <= int(target.min()) <= int(target.max()) < logits.shape[-1]:
            raise UserError(f"cross_entropy: target must lie in 0…{logits.shape[-1] - 1}. Check the vocabulary.")
        return _CrossEntropy.apply(logits, target.contiguous())

    @staticmethod
    def _checked(*tensors: Tensor) -> tuple[Tensor, ...]:
        # The C++ reads raw memory: it would misread anything but float32 on the CPU.
        for x in tensors:
            if x.dtype != torch.float32 or x.device.type != "cpu":
                raise UserError(f"the transformer kernels compute float32 on the CPU; got {x.dtype} on {x.device}. "
                                "Use the engine 'torch'.")
        return tuple(x.contiguous() for x in tensors)

    @staticmethod
    def _check_heads(q: Tensor, k: Tensor, v: Tensor, wq: Tensor, wk: Tensor, cos: Tensor, sin: Tensor) -> None:
        width = q.shape[-1]
        if width > 512 or width % 2:
            raise UserError(f"attention: the width of a head must be even and at most 512; got {width}. "
                            "Choose other heads or another dim.")
        fit = q.ndim == 4 and k.shape == v.shape == (*q.shape[:2], k.shape[-2], width) and k.shape[-2] \
            and q.shape[2] % k.shape[2] == 0 and wq.shape == wk.shape == (width,) \
            and cos.shape == sin.shape == (q.shape[1], width)
        if not fit:  # the C++ would read beyond the smaller one
            raise UserError(rule("attention", "queries, keys, values, scales and angles", "fit each other",
                                 [tuple(x.shape) for x in (q, k, v, wq, wk, cos, sin)],
                                 "Pass (B, T, H, W), twice (B, T, K, W), twice (W,) and twice (T, W)."))
