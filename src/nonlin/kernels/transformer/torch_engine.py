"""The small language model's operations in plain torch: on any device, and the definition of all others.

Legend of shapes: B batch, T time, D model width, H heads, K key-value heads, W width of one head, N outputs,
V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nonlin.functions import Definition

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

    def layer(self, x: Tensor, weights: Sequence[Tensor | None], activation: Definition, learned: Sequence[Tensor],
              heads: int, cos: Tensor, sin: Tensor) -> Tensor | None:
        """Return a whole layer's output (B, T, D), or None where it is to be computed operation by operation.

        ``weights`` begin with attention's: its norm, q, k, v, the norms of q and k, o. Then come the block's: its norm,
        gate (None where it is plain), up, down. ``learned`` are the activation's parameters.
        """
        return None

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
