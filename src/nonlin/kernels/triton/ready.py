"""Launches made before, ready to be made again: Triton's own call of a kernel takes longer than a small kernel.

A call on tensors of the same dtypes, shapes, strides, alignment and device has the same compiled kernel, grid and
numbers among its arguments. Gate and up must alternate in one tensor in both calls, or in neither. All this is
remembered, so that only the pointers are new.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_MOST = 4096  # a process may see shapes without end
_WIDEST = 8  # bytes of a number


@dataclass(frozen=True)
class Ready:
    """A kernel's launch but for its tensors: ``run(*tensors, *tail)``.

    ``pairs`` and ``pairs_out`` say whether two inputs, or two gradients, lie interleaved in one tensor. ``programs`` is
    their number, each of which adds up a part of a learnable parameter's gradient.
    """

    run: Callable[..., None]
    tail: tuple[Any, ...]
    pairs: int
    pairs_out: int
    programs: int


_READY: dict[Any, Ready] = {}


def facts(definition: Any, tensors: Sequence[Tensor], *rest: Any) -> Any:
    """Return what decides how a call is launched, hashable; None for tensors without strides."""
    told: list[Any] = [definition, *rest]
    before = 0
    for x in tensors:
        if x.layout is not torch.strided or x.is_nested:
            return None
        at = x.data_ptr()
        told += (x.dtype, x.shape, x.stride(), at & 15, x.get_device())
        if -_WIDEST <= at - before <= _WIDEST:  # two tensors may alternate in one
            told.append(at - before)
        before = at
    return tuple(told)


def find(told: Any) -> Ready | None:
    """Return the launch of these facts, if one was made."""
    return _READY.get(told)


def remember(told: Any, compiled: Any, grid: tuple[int, int], ready: Callable[[Callable[..., None]], Ready]) -> None:
    """Keep a launch of the kernel that Triton compiled for it; its interpreter compiles none."""
    if told is None or compiled is None:
        return
    if len(_READY) >= _MOST:
        _READY.clear()
    _READY[told] = ready(compiled[(*grid, 1)])
