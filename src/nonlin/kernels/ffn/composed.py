"""The block of torch's products and the activation's operation: what differentiates it in any way and to any order.

Forward-mode differentiation, batches of gradients, vmap and exporters compute so; the block's own operations are for
one gradient at a time.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from nonlin.functions.registry import serialize
from nonlin.kernels.activation import ops as activation
from nonlin.kernels.ffn.layout import (
    DOWN,
    DOWN_BIAS,
    GATE,
    GATE_BIAS,
    PARAMETERS,
    UP,
    UP_BIAS,
    Form,
    Saved,
    Tensors,
    X,
    columns,
    inputs_of,
    joined_pair,
    pair,
    product_form,
    rows,
    split,
)


def forward(tensors: Tensors, form: Form, keep: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the forward operation does: (output, pre-activations, hidden)."""
    x = tensors.x
    assert x is not None
    apart = product_form(tensors.up, form)
    # One row as a matrix: torch squeezes a linear layer's in place, which its func.linearize cannot do for weights.
    made = products(tensors._replace(x=rows(x)) if x.ndim == 1 else tensors, apart)
    inputs = columns(rows(made[0]), form) if apart != form else made
    hidden = activation.activation(serialize(form.definition), [*inputs, *split(tensors.parameters, x.dtype)])
    out = linear(hidden, tensors.down, tensors.down_bias)
    pre = torch.stack([rows(a) for a in made]) if keep in ("inputs", "all") else x.new_empty(0)
    return (out.reshape(*x.shape[:-1], tensors.down.shape[0]), pre,
            rows(hidden) if keep in ("output", "all") else x.new_empty(0))


def products(tensors: Tensors, form: Form) -> list[Tensor]:
    """Return the first products (..., H), as the weights are packed."""
    weights, biases = pair(tensors.gate, tensors.up, form), pair(tensors.gate_bias, tensors.up_bias, form)
    return [linear(tensors.x, w, b) for w, b in zip(weights, biases, strict=True)]  # type: ignore[arg-type]


def pre_activations(tensors: Tensors, saved: Saved, form: Form) -> list[Tensor]:
    """Return the activation's inputs (N, H) as functions of the tensors, so that they can be differentiated again."""
    if tensors.x is not None:
        return products(tensors._replace(x=rows(tensors.x)), form)
    # The input is not saved where neither it nor a first weight is differentiated: only the biases move these.
    found = [saved.hidden] if saved.pre is None else inputs_of(saved.pre, form)
    biases = pair(tensors.gate_bias, tensors.up_bias, form)
    return [a if b is None else a + (b - b.detach()) for a, b in zip(found, biases, strict=True)]  # type: ignore[misc]


def backward(gradient: Tensor, tensors: Tensors, saved: Saved, form: Form, needs: list[bool]) -> list[Tensor]:
    """Return what the backward operation does: the gradients by the tensors, empty where not needed."""
    text, learned = serialize(form.definition), split(tensors.parameters, gradient.dtype)
    g_NO, a_NH = rows(gradient), pre_activations(tensors, saved, form)
    made = activation.gradients(text, g_NO @ tensors.down, [*a_NH, *learned])
    da_NH, sums = made[:len(a_NH)], made[len(a_NH):]
    weights = pair(tensors.gate, tensors.up, form)
    out: dict[int, Any] = {DOWN_BIAS: g_NO.sum(0)}
    if needs[DOWN]:
        out[DOWN] = g_NO.t() @ activation.activation(text, [*a_NH, *learned])
    if needs[X]:
        dx = sum(d @ w for d, w in zip(da_NH, weights, strict=True))  # type: ignore[operator]
        out[X] = dx.reshape(*gradient.shape[:-1], dx.shape[-1])  # type: ignore[union-attr]
    if needs[GATE] or needs[UP]:
        x_ND = rows(tensors.x)  # type: ignore[arg-type]
        out[GATE], out[UP] = joined_pair([d.t() @ x_ND for d in da_NH], form)
    if needs[GATE_BIAS] or needs[UP_BIAS]:
        out[GATE_BIAS], out[UP_BIAS] = joined_pair([d.sum(0) for d in da_NH], form)
    if needs[PARAMETERS]:
        out[PARAMETERS] = torch.cat(sums).to(tensors.parameters.dtype)  # type: ignore[union-attr]
    return [out[k] if need else gradient.new_empty(0) for k, need in enumerate(needs)]
