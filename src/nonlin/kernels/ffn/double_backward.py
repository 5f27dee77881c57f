"""The second derivative of the feed-forward block, of operations that can be differentiated again.

Let a be the pre-activations, f the activation, g the output's gradient and ' the cotangents of the first gradients.
Element by element, dh (sum t_i f_i + sum p'_k f_k) + q f is differentiated. There dh = g down and q = g down'; and
t_i = x' weight_i^T + x weight_i'^T + bias_i'. Below, m and c are its derivatives by dh and by a.
16-bit tensors are computed in float32.
"""

from typing import Any

import torch
from torch import Tensor

from nonlin.functions.registry import serialize
from nonlin.kernels.activation import ops as activation
from nonlin.kernels.ffn.composed import pre_activations
from nonlin.kernels.ffn.layout import Form, Saved, Tensors, joined_pair, pair, rows, split


def _sum(parts: list[Any]) -> Any:
    found = [p for p in parts if p is not None]
    return sum(found[1:], found[0]) if found else None


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a @ b


def _transposed(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.t()


def second(gradient: Tensor, tensors: Tensors, saved: Saved, form: Form, cotangents: Tensors) -> list[Any]:
    """Return the gradients by ``gradient`` and by the tensors of the first gradients; None stands for 0.

    ``cotangents`` are the gradients of the first gradients, in the order of their tensors.
    """
    wide = torch.promote_types(gradient.dtype, torch.float32)
    likes = [gradient, *tensors]
    tensors, saved, v = (type(group)(*(None if t is None else t.to(wide) for t in group))  # type: ignore[misc]
                         for group in (tensors, saved, cotangents))
    g, text = rows(gradient.to(wide)), serialize(form.definition)
    x_ND, vx_ND = (None if x is None else rows(x) for x in (tensors.x, v.x))
    weights, vweights = pair(tensors.gate, tensors.up, form), pair(v.gate, v.up, form)
    biases, vbiases = pair(tensors.gate_bias, tensors.up_bias, form), pair(v.gate_bias, v.up_bias, form)
    learned = split(tensors.parameters, wide)
    a = pre_activations(tensors, saved, form)
    all_of, dh, q = [*a, *learned], g @ tensors.down, _product(g, v.down)
    t = [_sum([_product(vx_ND, _transposed(w)), _product(x_ND, _transposed(vw)),
               None if vb is None else vb.expand(dh.shape)])
         for w, vw, vb in zip(weights, vweights, vbiases, strict=True)]
    directions = [*t, *(split(v.parameters, wide) or [None] * len(learned))]
    m, c = activation.second(text, directions, dh, all_of)
    s = activation.gradients(text, dh, all_of)[:len(a)]
    h = activation.activation(text, all_of)
    if q is not None:
        c = [_sum([first, more]) for first, more in zip(c, activation.gradients(text, q, all_of), strict=True)]
    c, dlearned = c[:len(a)], c[len(a):]
    dg = _sum([_product(m, tensors.down.t()), _product(h, _transposed(v.down)),
               None if v.down_bias is None else v.down_bias.expand(g.shape)])
    dx = _sum([_product(u, w) for u, w in (*zip(c, weights, strict=True), *zip(s, vweights, strict=True))])
    dweights = [_sum([_product(_transposed(u), x_ND), _product(_transposed(w), vx_ND)])
                for u, w in zip(c, s, strict=True)]
    dbiases = [None if bias is None or u is None else u.sum(0) for u, bias in zip(c, biases, strict=True)]
    made = [dg, dx, *joined_pair(_filled(dweights, weights), form), _product(g.t(), m),
            *joined_pair(_filled(dbiases, biases), form), None, _joined(dlearned, learned)]
    return [None if d is None or like is None else d.reshape(like.shape).to(like.dtype)
            for d, like in zip(made, likes, strict=True)]


def _filled(gradients: list[Any], likes: list[Any]) -> list[Any]:
    """Put zeros where one of several gradients that lie in one tensor is None."""
    if all(d is None for d in gradients):
        return gradients
    return [torch.zeros_like(like) if d is None and like is not None else d
            for d, like in zip(gradients, likes, strict=True)]


def _joined(gradients: list[Any], likes: list[Tensor]) -> Tensor | None:
    filled = _filled(gradients, likes)
    return torch.cat(filled) if filled and filled[0] is not None else None
