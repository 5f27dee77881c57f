"""The second derivative of the feed-forward block, from the definition's derivatives; there is no third.

With a the pre-activations, f the activation, g the output's gradient and ' the cotangents of the first gradients,
what is differentiated is, element by element, dh (sum t_i f_i + sum p'_k f_k) + q f, where dh = g down,
t_i = x' weight_i^T + x weight_i'^T + bias_i' and q = g down'; m and c below are its derivatives by dh and by a.
Sixteen-bit tensors are computed in float32.
"""

from typing import Any

import torch
from torch import Tensor

from nonlin.errors import UserError
from nonlin.functions import Definition
from nonlin.functions.registry import resolve
from nonlin.kernels.ffn.layout import Packing, inputs_of, joined, pair, products, rows, split
from nonlin.kernels.torch import backend as torch_backend


def _sum(parts: list[Any]) -> Any:
    found = [p for p in parts if p is not None]
    return sum(found[1:], found[0]) if found else None


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a @ b


def _transposed(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.t()


def second(definition: Definition, packing: Packing, tensors: list[Any], cotangents: list[Any]) -> list[Any]:
    """Return the gradients by (grad, x, gate, up, down, gate_bias, up_bias, parameters) of the first gradients.

    ``tensors`` are the backward operation's, ``cotangents`` the gradients of its eight results; None stands for 0.
    """
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    grad, x, gate, up, down, gate_bias, up_bias, parameters, pre, hidden = (
        None if t is None else t.to(wide) for t in tensors)
    vx, vgate, vup, vdown, vgate_bias, vup_bias, vdown_bias, vparameters = (
        None if t is None else t.to(wide) for t in cotangents)
    g, x_ND, vx_ND = rows(grad), None if x is None else rows(x), None if vx is None else rows(vx)
    weights, vweights = pair(gate, up, *packing), pair(vgate, vup, *packing)
    biases, vbiases = pair(gate_bias, up_bias, *packing), pair(vgate_bias, vup_bias, *packing)
    if pre is not None or hidden is not None:
        a = [hidden] if pre is None else inputs_of(pre, *packing)
    else:
        _, a = products(x_ND, weights, biases)
    learned, dh, q = split(parameters, wide), g @ down, _product(g, vdown)
    t = [_sum([_product(vx_ND, w.t()), _product(x_ND, _transposed(vw)),
               None if vb is None else vb.expand(dh.shape)])
         for w, vw, vb in zip(weights, vweights, vbiases, strict=True)]
    directions = [*t, *(split(vparameters, wide) or [None] * len(learned))]
    m, c = torch_backend.second(definition, directions, dh, a, learned)
    s, _, h = torch_backend.backward(definition, dh, a, learned, want_value=hidden is None)
    if q is not None:
        outs, sums, _ = torch_backend.backward(definition, q, a, learned)
        c = [first + more for first, more in zip(c, [*outs, *sums], strict=True)]
    c, dlearned = c[:len(a)], c[len(a):]
    dg = _sum([m @ down.t(), _product(h if hidden is None else hidden, _transposed(vdown)),
               None if vdown_bias is None else vdown_bias.expand(g.shape)])
    dx = _sum([_product(u, v) for u, v in (*zip(c, weights, strict=True), *zip(s, vweights, strict=True))])
    dweights = [_sum([_product(u.t(), x_ND), _product(v.t(), vx_ND)]) for u, v in zip(c, s, strict=True)]
    dbiases = [None if bias is None else u.sum(0) for u, bias in zip(c, biases, strict=True)]
    made = [dg.view(grad.shape), None if x is None else dx.view(x.shape), *_packed(dweights, packing), g.t() @ m,
            *_packed(dbiases, packing), torch.cat(dlearned) if dlearned else None]
    return [None if d is None else d.to(like.dtype) for d, like in zip(made, tensors[:8], strict=True)]


def _packed(parts: list[Any], packing: Packing) -> tuple[Any, Any]:
    """Return the gradients of (gate, up) as the weights lie."""
    if packing[0] == "plain":
        return None, parts[0]
    if packing[0] == "separate":
        return parts[0], parts[1]
    return None, None if parts[0] is None else joined(parts[0], parts[1], *packing)


class SecondFunction(torch.autograd.Function):
    """:func:`second` for autograd, and the refusal of a third derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(activation: str, packing: Packing, *tensors: Any) -> Any:
        made = second(resolve(activation), packing, list(tensors[:10]), list(tensors[10:]))
        # One tensor for each, so that transforms find what they expect; a zero gradient is a zero tensor.
        return tuple(torch.zeros(0) if d is None and t is None else torch.zeros_like(t) if d is None else d
                     for d, t in zip(made, tensors[:8], strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise UserError("feed_forward: derivatives must be of first or second order; got a third. "
                        "Compose torch.nn.functional.linear and nonlin.functional's activation instead.")
