"""The largest attention logit, seen where torch computes attention: at ``scaled_dot_product_attention``."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_QUERIES = 64  # a call's queries whose logits are computed


class AttentionLogits(TorchFunctionMode):
    """While active, keeps the largest q·k/sqrt(d) of each attention of a forward pass, in order (arXiv:2309.14322).

    Attention that does not call torch's function is not seen. :meth:`restart` before each forward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest: list[float] = []
        self._call = 0

    def restart(self) -> None:
        """Begin to count from the first attention again."""
        self._call = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            value = self._measure(*args, **kwargs)
            if self._call == len(self.largest):
                self.largest.append(value)
            self.largest[self._call] = max(self.largest[self._call], value)
            self._call += 1
        return func(*args, **kwargs)

    @torch.no_grad()
    def _measure(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                 dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
                 enable_gqa: bool = False) -> float:
        with torch._C.DisableTorchFunction():
            length = query.shape[-2]
            rows = torch.arange(0, length, max(1, length // _QUERIES), device=query.device)
            q, k = query[..., rows, :].float(), key.float()
            if enable_gqa:
                k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
            logits = (q @ k.transpose(-1, -2)).abs() * (scale if scale is not None else q.shape[-1] ** -0.5)
            allowed = torch.ones(rows.numel(), k.shape[-2], dtype=torch.bool, device=q.device)
            if is_causal:
                allowed = torch.arange(k.shape[-2], device=q.device) <= rows[:, None]
            if attn_mask is not None:
                mask = attn_mask if attn_mask.dtype == torch.bool else attn_mask > torch.finfo(attn_mask.dtype).min / 2
                allowed = allowed & (mask[..., rows, :] if mask.shape[-2] > 1 else mask)
            return float(torch.where(allowed, logits, logits.new_zeros(())).max())
