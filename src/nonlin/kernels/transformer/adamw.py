"""AdamW in one pass over memory, by our C++ for one CPU thread; its states are those of torch's."""

import ctypes
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonlin.kernels.transformer import native


class AdamW(torch.optim.AdamW):
    """torch's AdamW for contiguous float32 parameters on the CPU, without its options.

    Gradients are multiplied by :attr:`scale` as they are read, so that clipping writes nothing.

    >>> weight = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = AdamW([weight], lr=0.5, weight_decay=0.0)
    >>> weight.grad = torch.tensor([1.0, -1.0, 0.0])
    >>> optimizer.step()
    >>> [round(x, 4) for x in weight.tolist()]
    [0.5, 1.5, 1.0]
    """

    scale = 1.0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Do one step of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            states = [self._state(p) for p in params]
            beta1, beta2 = group["betas"]
            how = native.AdamW(group["lr"], beta1, beta2, group["eps"], group["weight_decay"])
            read = params, [_plain(p.grad) for p in params]
            moments = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
            addresses = map(native.pointers, (*read, *moments))
            native.operations().nl_adamw(len(params), _sizes(params), *addresses, how, self.scale)
            # As torch's own writes do: autograd refuses an older graph, and copies of weights are known to be old.
            torch.autograd.graph.increment_version(params)

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state.update(step=torch.zeros((), dtype=torch.float32), exp_avg=torch.zeros_like(p),
                         exp_avg_sq=torch.zeros_like(p))
        return state


def norm(tensors: Sequence[Tensor]) -> float:
    """Return the Euclidean norm of all numbers of contiguous float32 tensors on the CPU.

    >>> norm([torch.full((3,), 2.0), torch.tensor([2.0])])
    4.0
    """
    tensors = [_plain(tensor) for tensor in tensors]
    return math.sqrt(native.operations().nl_sum_of_squares(len(tensors), _sizes(tensors), native.pointers(tensors)))


def serves(params: Sequence[Tensor]) -> bool:
    """Return whether :class:`AdamW` can train these parameters here."""
    return native.library() is not None and all(
        type(p.data) is Tensor and p.dtype == torch.float32 and p.device.type == "cpu" and p.is_contiguous()
        for p in params)


def library_name() -> str:
    """Return the file of our C++: its name has the hash of what it holds."""
    return Path(native.operations()._name).name


def _plain(grad: Tensor | None) -> Tensor:
    assert grad is not None
    return grad.contiguous()


def _sizes(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_int64 * len(tensors))(*(x.numel() for x in tensors))
