"""How a feed-forward block's weights lie: gate and up apart, one after the other, or row by row; all as views.

Legend: N rows, D input width, H hidden width; G is 2 where there is a gate, else 1.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Packing = tuple[str, bool]
"""(layout, whether up comes first); the layout is "plain", "separate", "concatenated" or "interleaved"."""


def halves(packed: Tensor, layout: str, up_first: bool) -> tuple[Tensor, Tensor]:
    """Return (gate, up), views of a packed weight or bias: its two halves, or its even and its odd rows."""
    middle = packed.shape[0] // 2
    if layout == "interleaved":
        first, second = packed[::2], packed[1::2]
    else:
        first, second = packed[:middle], packed[middle:]
    return (second, first) if up_first else (first, second)


def pair(gate: Tensor | None, up: Tensor | None, layout: str, up_first: bool) -> list[Tensor | None]:
    """Return gate's and up's own tensors, or up's alone where the block is plain."""
    if layout == "plain":
        return [up]
    if layout == "separate":
        return [gate, up]
    return [None, None] if up is None else list(halves(up, layout, up_first))


def joined(gate: Tensor, up: Tensor, layout: str, up_first: bool) -> Tensor:
    """Return the packed tensor whose halves are gate and up."""
    ordered = (up, gate) if up_first else (gate, up)
    return torch.stack(ordered, 1).flatten(0, 1) if layout == "interleaved" else torch.cat(ordered)


def product_packing(up: Tensor, layout: str, up_first: bool) -> Packing:
    """Return the packing in which the first products are made.

    Every other row of a weight that is stored transposed has no stride of 1, and a matrix product would copy it:
    then gate and up are made in one product, and their columns taken apart.
    """
    whole = layout == "interleaved" and up.stride(1) != 1
    return ("plain", False) if whole else (layout, up_first)


def columns(packed_NC: Tensor, layout: str, up_first: bool) -> list[Tensor]:
    """Return the columns (gate, up) of one product with a packed weight, as views."""
    return [half.t() for half in halves(packed_NC.t(), layout, up_first)]


def inputs_of(pre_GNH: Tensor, layout: str, up_first: bool) -> list[Tensor]:
    """Return the activation's inputs of the first products, however those were made."""
    if pre_GNH.shape[0] == 1 and layout != "plain":
        return columns(pre_GNH[0], layout, up_first)
    return list(pre_GNH.unbind())


def rows(x: Tensor) -> Tensor:
    """Return x (..., D) as (N, D)."""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def split(parameters: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    """Return the activation's parameters one by one, each (1,), at least as precise as ``dtype``."""
    if parameters is None:
        return []
    return list(parameters.to(torch.promote_types(parameters.dtype, dtype)).split(1))


def products(x_ND: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
    """Return x weight^T + bias for each weight: (G, N, H), one tensor to keep, and its G contiguous parts."""
    out_GNH = x_ND.new_empty((len(weights), x_ND.shape[0], weights[0].shape[0]))
    parts = list(out_GNH.unbind())
    for out_NH, weight, bias in zip(parts, weights, biases, strict=True):
        product_into(out_NH, x_ND, weight, bias)
    return out_GNH, parts


def product_into(out_NH: Tensor, x_ND: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Write x weight^T + bias."""
    if bias is None:
        torch.mm(x_ND, weight.t(), out=out_NH)
    else:
        torch.addmm(bias, x_ND, weight.t(), out=out_NH)
