"""The second derivative of the feed-forward block, from the definition's derivatives; there is no third.

With a the pre-activations, f the activation, g the output's gradient and ' the cotangents of the first gradients,
what is differentiated is, element by element, E = dh (sum t_i f_i + sum p'_k f_k) + q f, where dh = g down,
t_i = x' weight_i^T + x weight_i'^T + bias_i' and q = g down'. Sixteen-bit tensors are computed in float32.
"""

from typing import Any

import sympy
import torch
from torch import Tensor

from nonlin.errors import UserError
from nonlin.functions import Definition
from nonlin.kernels import torch_backend
from nonlin.kernels.block_layout import Packing, inputs_of, joined, pair, products, rows, split
from nonlin.kernels.naming import definition_of


def _symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, real=True)


def _sum(parts: list[Any]) -> Any:
    found = [p for p in parts if p is not None]
    return sum(found[1:], found[0]) if found else None


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a @ b


def _transposed(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.t()


class _Elements:
    """E of the module's text: its leaves, and the value of any derivative of it."""

    def __init__(self, definition: Definition, inputs: list[Tensor], learned: list[Tensor], dh: Tensor,
                 t: list[Tensor | None], learned_cotangents: list[Tensor], q: Tensor | None):
        self.definition, self.variables = definition, definition.variables
        self.parameters = tuple(p.name for p in definition.parameters)
        self.leaves = dict(zip((*self.variables, *self.parameters), (*inputs, *learned), strict=True)) | {"dh": dh}
        towards = [*zip(self.variables, t, strict=True), *zip(self.parameters, learned_cotangents, strict=False)]
        inner: Any = sympy.Integer(0)
        for name, value in towards:
            if value is not None:
                self.leaves[f"t_{name}"] = value
                inner += _symbol(f"t_{name}") * definition.derivative(name)
        self.inner, self.whole = inner, _symbol("dh") * inner
        if q is not None:
            self.leaves["q"] = q
            self.whole += _symbol("q") * definition.expr

    def value(self, expr: Any) -> Tensor | None:
        """Return the expression's value (N, H), or None where it is 0 everywhere."""
        expr = sympy.sympify(expr)
        if expr == 0:
            return None
        names = {*self.variables, *(s.name for s in expr.free_symbols)}
        made = Definition(self.definition.name, "pointwise", expr)
        return torch_backend.value(made, {n: leaf for n, leaf in self.leaves.items() if n in names})

    def by(self, name: str) -> Tensor | None:
        """Return the derivative of E by a leaf."""
        return self.value(sympy.diff(self.whole, _symbol(name)))

    def slope(self, name: str) -> Tensor | None:
        """Return dh x the activation's derivative."""
        return self.value(_symbol("dh") * self.definition.derivative(name))


def second(definition: Definition, packing: Packing, tensors: list[Any], cotangents: list[Any]) -> list[Any]:
    """Return the gradients by (grad, x, gate, up, down, gate_bias, up_bias, parameters) of the first gradients.

    ``tensors`` are the backward operation's, ``cotangents`` the gradients of its eight results; None stands for 0.
    """
    like = tensors
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    grad, x, gate, up, down, gate_bias, up_bias, parameters, pre, hidden = (
        None if t is None else t.to(wide) for t in tensors)
    vx, vgate, vup, vdown, vgate_bias, vup_bias, vdown_bias, vparameters = (
        None if t is None else t.to(wide) for t in cotangents)
    g, x_ND, vx_ND = rows(grad), None if x is None else rows(x), None if vx is None else rows(vx)
    weights, vweights = pair(gate, up, *packing), pair(vgate, vup, *packing)
    biases, vbiases = pair(gate_bias, up_bias, *packing), pair(vgate_bias, vup_bias, *packing)
    if pre is not None or hidden is not None:
        inputs = [hidden] if pre is None else inputs_of(pre, *packing)
    else:
        inputs = list(products(x_ND, weights, biases).unbind())
    t = [_sum([_product(vx_ND, w.t()), _product(x_ND, _transposed(vw)),  # type: ignore[union-attr]
               None if vb is None else vb.expand(inputs[0].shape)])
         for w, vw, vb in zip(weights, vweights, vbiases, strict=True)]
    e = _Elements(definition, inputs, split(parameters, wide), g @ down, t, split(vparameters, wide),
                  _product(g, vdown))
    m, h = e.value(e.inner), e.value(definition.expr) if hidden is None else hidden
    c = [e.by(name) for name in definition.variables]
    s = [e.slope(name) for name in definition.variables]
    dg = _sum([_product(m, down.t()), _product(h, _transposed(vdown)),
               None if vdown_bias is None else vdown_bias.expand(g.shape)])
    dx = _sum([_product(a, b) for a, b in (*zip(c, weights, strict=True), *zip(s, vweights, strict=True))])
    dweights = [_sum([_product(_transposed(a), x_ND), _product(_transposed(b), vx_ND)])
                for a, b in zip(c, s, strict=True)]
    dbiases = [None if a is None or bias is None else a.sum(0) for a, bias in zip(c, biases, strict=True)]
    learned = [e.by(name) for name in e.parameters]
    made = [None if dg is None else dg.view(grad.shape), None if dx is None or x is None else dx.view(x.shape),
            *_packed(dweights, packing), _product(g.t(), m), *_packed(dbiases, packing),
            torch.stack([down.new_zeros(()) if d is None else d.sum() for d in learned]) if learned else None]
    return [None if d is None else d.to(t.dtype) for d, t in zip(made, like[:8], strict=True)]


def _packed(parts: list[Any], packing: Packing) -> tuple[Any, Any]:
    """Return the gradients of (gate, up) as the weights lie."""
    if packing[0] == "plain":
        return None, parts[0]
    if packing[0] == "separate":
        return parts[0], parts[1]
    some = parts[0] if parts[0] is not None else parts[1]
    if some is None:
        return None, None
    return None, joined(*(torch.zeros_like(some) if p is None else p for p in parts), *packing)


class SecondFunction(torch.autograd.Function):
    """:func:`second` for autograd, and the refusal of a third derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(activation: str, packing: Packing, *tensors: Any) -> Any:
        made = second(definition_of(activation), packing, list(tensors[:10]), list(tensors[10:]))
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
