"""The small language model's operations in two implementations: plain torch, and our C++ for one CPU thread.

Both compute the same function; the native one serves float32 on a CPU, forward and first derivative. Legend of
shapes: B batch, T time, D model width, H heads, K key-value heads, W width of one head, N outputs, V vocabulary.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nonlin.errors import UserError
from nonlin.kernels.transformer import native

EPS = 1e-6


class TorchEngine:
    """Every operation by torch, on any device; ``dtype`` is the matrix products'."""

    name = "torch"

    def __init__(self, dtype: torch.dtype = torch.float32):
        self.dtype = dtype

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return x weight^T: (..., D) and (N, D) to (..., N)."""
        if self.dtype == torch.float32:
            return F.linear(x, weight)
        return F.linear(x.to(self.dtype), weight.to(self.dtype)).to(x.dtype)

    def linears(self, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return x W^T for each W, in the products' dtype where an engine's other operations read that."""
        return tuple(self.linear(x, weight) for weight in weights)

    def linear_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        """Return residual + x weight^T."""
        return residual + self.linear(x, weight)

    def activation(self, module: Any, *inputs: Tensor) -> Tensor:
        """Return an activation module's output."""
        return module(*inputs)

    def rms_norm(self, x: Tensor, weight: Tensor, narrow: bool = False) -> Tensor:
        """Return x / rms(x) * weight over the last dimension.

        ``narrow``: products alone read it, so an engine may round it to their dtype.
        """
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight

    def layer_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return (x - mean) / std * weight over the last dimension; always by torch."""
        return F.layer_norm(x, weight.shape, weight, eps=EPS)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, wq: Tensor, wk: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return causal attention (B, T, H W) of q (B, T, H, W), k and v (B, T, K, W).

        Queries and keys are normalized by root mean square with scales wq, wk (W,) and rotated by the angles
        whose cosine and sine (T, W) are given.
        """

        def rotate(x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            return x * cos + torch.cat((-second, first), dim=-1) * sin

        q_BHTW = rotate(self.rms_norm(q, wq).transpose(1, 2))
        k_BKTW = rotate(self.rms_norm(k, wk).transpose(1, 2))
        y = F.scaled_dot_product_attention(
            q_BHTW, k_BKTW, v.transpose(1, 2), is_causal=True, enable_gqa=q.shape[2] != k.shape[2])
        return y.transpose(1, 2).flatten(2)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats of logits (..., V) against target (...)."""
        return F.cross_entropy(logits.flatten(0, -2), target.flatten())


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        (n, d), rows = weight.shape, x.numel() // x.shape[-1]
        out = x.new_empty(*x.shape[:-1], n)
        library().nl_gemm(rows, n, d, x.data_ptr(), d, 1, weight.data_ptr(), 1, d, out.data_ptr(), n, 0)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        (n, d), rows, grad = weight.shape, x.numel() // x.shape[-1], grad.contiguous()
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            library().nl_gemm(rows, d, n, grad.data_ptr(), n, 1, weight.data_ptr(), d, 1, dx.data_ptr(), d, 0)
        if ctx.needs_input_grad[1]:
            dw = torch.empty_like(weight)
            library().nl_gemm(n, d, rows, grad.data_ptr(), 1, n, x.data_ptr(), d, 1, dw.data_ptr(), d, 0)
        return dx, dw


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        d, rows = x.shape[-1], x.numel() // x.shape[-1]
        y, scale = torch.empty_like(x), x.new_empty(rows)
        library().nl_rms_norm(rows, d, EPS, x.data_ptr(), weight.data_ptr(), y.data_ptr(), scale.data_ptr())
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        dx, dw, grad = torch.empty_like(x), torch.zeros_like(weight), grad.contiguous()
        library().nl_rms_norm_backward(scale.numel(), x.shape[-1], x.data_ptr(), weight.data_ptr(), scale.data_ptr(),
                                    grad.data_ptr(), dx.data_ptr(), dw.data_ptr())
        return dx, dw


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, wq, wk, cos, sin):
        (B, T, H, W), K = q.shape, k.shape[2]
        padded = -(-T // 16) * 16  # a whole vector register of any instruction set
        out, probabilities = q.new_empty(B, T, H * W), q.new_empty(B, H, T, padded)
        tensors = (q, k, v, wq, wk, cos, sin)
        ctx.shape = native.Shape(B, T, H, K, W)
        library().nl_attention(ctx.shape, EPS, *(x.data_ptr() for x in tensors), out.data_ptr(), probabilities.data_ptr())
        ctx.save_for_backward(*tensors, probabilities)
        return out

    @staticmethod
    def backward(ctx, grad):
        *tensors, probabilities = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in tensors[:5]]
        grad = grad.contiguous()
        library().nl_attention_backward(ctx.shape, EPS, *(x.data_ptr() for x in tensors), probabilities.data_ptr(),
                                     grad.data_ptr(), *(g.data_ptr() for g in grads))
        return *grads, None, None


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target):
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        loss = library().nl_cross_entropy(target.numel(), logits.shape[-1], logits.data_ptr(), target.data_ptr(),
                                       None if gradient is None else gradient.data_ptr())
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return logits.new_tensor(loss)

    @staticmethod
    def backward(ctx, grad):
        gradient = ctx.saved_tensors[0]
        return gradient if float(grad) == 1 else gradient * grad, None


def library() -> ctypes.CDLL:
    """Return the compiled operations; UserError where they cannot be built."""
    made = native.library()
    if made is None:
        raise UserError(f"the transformer kernels are not available: {native.unavailable()}. Use the engine 'torch'.")
    return made


class NativeEngine(TorchEngine):
    """The same operations by our C++ on one thread, float32 on a CPU.

    With ``dtype`` bfloat16 torch computes the layers' matrix products, with AMX instructions if the processor has
    them; everything else stays float32.
    """

    name = "native"

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__(dtype)
        library()

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.dtype != torch.float32:
            return super().linear(x, weight)
        return _Linear.apply(*self._checked(x, weight))

    def rms_norm(self, x: Tensor, weight: Tensor, narrow: bool = False) -> Tensor:
        return _RmsNorm.apply(*self._checked(x, weight))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, wq: Tensor, wk: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        self._check_width(q)
        return _Attention.apply(*self._checked(q, k, v, wq, wk, cos, sin))

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        (logits,) = self._checked(logits)
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
    def _check_width(q: Tensor) -> None:
        if q.shape[-1] > 512 or q.shape[-1] % 2:
            raise UserError(f"attention: the width of a head must be even and at most 512; got {q.shape[-1]}. "
                            "Choose other heads or another dim.")


def engine(name: str, dtype: str = "float32") -> TorchEngine:
    """Return the engine of that name, with that dtype of matrix products.

    "torch": all by torch; "native": all by our C++; "mixed": by our C++ all but the products, which torch computes.

    >>> engine("torch").name
    'torch'
    """
    if name == "torch":
        return TorchEngine(getattr(torch, dtype))
    if name == "mixed" or (name == "native" and dtype == "float32"):
        return NativeEngine(getattr(torch, dtype))
    if name == "native":
        from nonlin.kernels.transformer.bf16 import Bf16Engine

        return Bf16Engine()
    raise UserError(f"engine must be 'torch', 'native' or 'mixed'; got {name!r}. Choose one of them.")
