"""The tensors of one kernel call, on any device: their common shape, their strides, and their refusal."""

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""The dtypes that kernels read and write, in the order of our C++ (cpu/loops.h)."""


def refusal(inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> str | None:
    """Return why no kernel can read these tensors, wherever they are, or None."""
    first = inputs[0]
    if any(x.dtype not in DTYPES for x in inputs):
        return f"{first.dtype} has no compiled kernel"
    if any(x.dtype != first.dtype for x in inputs):
        return "the inputs' dtypes differ"
    if any(q.numel() != 1 for q in parameters):
        return "a learnable parameter is not a single number"
    if any(x.layout != torch.strided for x in inputs):
        return "an input is not a strided tensor"
    return None


def common_shape(inputs: Sequence[Tensor]) -> torch.Size:
    """Return the shape that the inputs broadcast to."""
    first = inputs[0].shape
    return first if all(x.shape == first for x in inputs) else torch.broadcast_shapes(*(x.shape for x in inputs))


def dense_order(tensors: Sequence[Tensor]) -> tuple[int, ...] | None:
    """Return the order of dimensions in which the tensors lie in memory, where that is one for all, without gaps.

    None where they are contiguous as they are, or do not lie so: then a result is contiguous.
    """
    first = tensors[0]
    if first.ndim < 2 or first.is_contiguous():
        return None
    if any(x.shape != first.shape or x.stride() != first.stride() for x in tensors):
        return None
    strides = first.stride()
    order = tuple(sorted(range(first.ndim), key=lambda d: -strides[d]))
    return order if first.permute(order).is_contiguous() else None


def inverse(order: Sequence[int]) -> tuple[int, ...]:
    """Return the order of dimensions that undoes one."""
    return tuple(sorted(range(len(order)), key=lambda d: order[d]))


def empty_for(inputs: Sequence[Tensor]) -> Tensor:
    """Return a tensor that lies as an activation's result of these inputs does: as they do, or contiguous."""
    if (order := dense_order(inputs)) is None:
        return inputs[0].new_empty(torch.broadcast_shapes(*(x.shape for x in inputs)))
    return inputs[0].new_empty([inputs[0].shape[d] for d in order]).permute(inverse(order))


def layout(shape: torch.Size, operands: Sequence[Tensor | None],
           ) -> tuple[int, int, list[tuple[int, int]]] | None:
    """Return (rows, columns, strides of each operand), or None where more than two dimensions remain."""
    present = [x for x in operands if x is not None]
    if all(x.shape == shape and x.is_contiguous() for x in present):
        return 1, shape.numel(), [(0, 1)] * len(operands)
    dims: list[tuple[int, list[int]]] = []
    strides = [x.expand(shape).stride() if x is not None else (0,) * len(shape) for x in operands]
    for d, size in enumerate(shape):
        if size == 1:
            continue
        steps = [s[d] for s in strides]
        if dims and all(a == b * size for a, b in zip(dims[-1][1], steps, strict=True)):
            dims[-1] = (dims[-1][0] * size, steps)
        else:
            dims.append((size, steps))
    if len(dims) > 2:
        return None
    while len(dims) < 2:
        dims.insert(0, (1, [0] * len(operands)))
    (rows, outer), (columns, inner) = dims
    return rows, columns, list(zip(outer, inner, strict=True))
