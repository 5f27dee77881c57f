"""How a feed-forward block's weights lie: gate and up apart, one after the other, or row by row; all as views.

Legend: N rows, D input width, H hidden width; G is 2 where there is a gate, else 1.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nonlin.functions import Definition

X, GATE, UP, DOWN, GATE_BIAS, UP_BIAS, DOWN_BIAS, PARAMETERS = range(8)
"""The places of a block's tensors, in :class:`Tensors` and in every list of their gradients."""


class Tensors(NamedTuple):
    """What a block computes with: x (..., D), weights (outputs, inputs), biases, the activation's parameters as one.

    ``gate`` is None where the block is plain, and where ``up`` holds both.
    """

    x: Tensor | None
    gate: Tensor | None
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    parameters: Tensor | None = None


class Saved(NamedTuple):
    """What the forward pass saved besides its tensors: pre-activations (G, N, H), hidden (N, H), or neither."""

    pre: Tensor | None
    hidden: Tensor | None


class Form(NamedTuple):
    """The activation, and how gate and up lie: "plain", "separate", "concatenated" or "interleaved"; which is first."""

    definition: Definition
    layout: str
    up_first: bool


def halves(packed: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Return (gate, up), views of a packed weight or bias: its two halves, or its even and its odd rows."""
    middle = packed.shape[0] // 2
    if form.layout == "interleaved":
        first, second = packed[::2], packed[1::2]
    else:
        first, second = packed[:middle], packed[middle:]
    return (second, first) if form.up_first else (first, second)


def pair(gate: Tensor | None, up: Tensor | None, form: Form) -> list[Tensor | None]:
    """Return gate's and up's own tensors, or up's alone where the block is plain."""
    if form.layout == "plain":
        return [up]
    if form.layout == "separate":
        return [gate, up]
    return [None, None] if up is None else list(halves(up, form))


def joined_pair(parts: Sequence[Any], form: Form) -> tuple[Any, Any]:
    """Return (gate, up) as they lie, from gate's and up's own tensors: what :func:`pair` undoes; None stays None."""
    if form.layout == "plain":
        return None, parts[0]
    if form.layout == "separate":
        return parts[0], parts[1]
    if parts[0] is None:
        return None, None
    ordered = (parts[1], parts[0]) if form.up_first else (parts[0], parts[1])
    if form.layout == "concatenated":
        return None, torch.cat(ordered)
    # No flatten: torch's older vmap has no rule for it.
    return None, torch.stack(ordered, 1).reshape(2 * parts[0].shape[0], *parts[0].shape[1:])


def product_form(up: Tensor, form: Form) -> Form:
    """Return the form in which the first products are made.

    Every other row of a weight that is stored transposed has no stride of 1, and a matrix product would copy it.
    Then gate and up are made in one product, and their columns taken apart.
    """
    whole = form.layout == "interleaved" and up.stride(1) != 1
    return Form(form.definition, "plain", False) if whole else form


def columns(packed_NC: Tensor, form: Form) -> list[Tensor]:
    """Return the columns (gate, up) of one product with a packed weight, as views."""
    return [half.t() for half in halves(packed_NC.t(), form)]


def inputs_of(pre_GNH: Tensor, form: Form) -> list[Tensor]:
    """Return the activation's inputs of the first products, however those were made."""
    if pre_GNH.shape[0] == 1 and form.layout != "plain":
        return columns(pre_GNH[0], form)
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
