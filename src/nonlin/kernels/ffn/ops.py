"""The feed-forward block as registered operations: forward, backward, and the derivative of the backward.

``nonlin::feed_forward`` makes the products, the activation and the last product. ``nonlin::feed_forward_backward``
makes every gradient; the activation's value, which the gradient of the last weight needs, is made again in the
pass that makes the activation's gradients. Nothing that is saved is ever written to.

Legend: N rows (all leading dimensions of x as one), D input width, H hidden width, O output width; G is 2 where the
activation is gated, else 1. Weights are (outputs, inputs) in any strides: a view stays a view.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nonlin.functions import Definition
from nonlin.functions.registry import resolve
from nonlin.kernels import dispatch
from nonlin.kernels.ffn import double_backward
from nonlin.kernels.ffn.layout import (
    Packing,
    columns,
    inputs_of,
    pair,
    product_into,
    product_packing,
    products,
    rows,
    split,
)

# Places of the differentiable arguments, in the order of both operations' results and arguments.
X, GATE, UP, DOWN, GATE_BIAS, UP_BIAS, DOWN_BIAS, PARAMETERS = range(8)


@torch.library.custom_op("nonlin::feed_forward", mutates_args=())
def forward_op(x: Tensor, gate: Tensor | None, up: Tensor, down: Tensor, gate_bias: Tensor | None,
               up_bias: Tensor | None, down_bias: Tensor | None, parameters: Tensor | None, activation: str,
               layout: str, up_first: bool, keep: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return (output, pre-activations, hidden (N, H)); what ``keep`` does not name is empty.

    Pre-activations are (G, N, H), or (1, N, 2 H) where one product makes both.

    ``keep``: "nothing", "inputs" (pre-activations), "output" (hidden) or "all" (both).
    """
    return forward_of(x, gate, up, down, gate_bias, up_bias, down_bias, parameters, activation, layout, up_first, keep)


def forward_of(x: Tensor, gate: Tensor | None, up: Tensor, down: Tensor, gate_bias: Tensor | None,
               up_bias: Tensor | None, down_bias: Tensor | None, parameters: Tensor | None, activation: str,
               layout: str, up_first: bool, keep: str) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what the forward operation returns."""
    with torch.no_grad(), as_they_are(x):
        packing = product_packing(up, layout, up_first)
        pre_GNH, inputs_NH = products(rows(x), pair(gate, up, *packing), pair(gate_bias, up_bias, *packing))
        if packing[0] == "plain" and layout != "plain":
            inputs_NH = inputs_of(pre_GNH, layout, up_first)
        hidden_NH = dispatch.forward(resolve(activation), inputs_NH, split(parameters, x.dtype))
        # A whole tensor, no view of one: models add to a block's output in place (Falcon), which autograd allows then.
        out = x.new_empty((*x.shape[:-1], down.shape[0]))
        product_into(rows(out), hidden_NH, down, down_bias)
    empty = x.new_empty(0)
    return (out, pre_GNH if keep in ("inputs", "all") else empty,
            hidden_NH if keep in ("output", "all") else x.new_empty(0))


@forward_op.register_fake
def _(x: Tensor, gate: Tensor | None, up: Tensor, down: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None,
      down_bias: Tensor | None, parameters: Tensor | None, activation: str, layout: str, up_first: bool,
      keep: str) -> tuple[Tensor, Tensor, Tensor]:
    count, hidden = math.prod(x.shape[:-1]), down.shape[1]
    whole = product_packing(up, layout, up_first)[0] == "plain"
    pre = (1, count, up.shape[0]) if whole else (2, count, hidden)
    return (x.new_empty(*x.shape[:-1], down.shape[0]),
            x.new_empty(pre) if keep in ("inputs", "all") else x.new_empty(0),
            x.new_empty(count, hidden) if keep in ("output", "all") else x.new_empty(0))


@torch.library.custom_op("nonlin::feed_forward_backward", mutates_args=())
def backward_op(grad: Tensor, x: Tensor | None, gate: Tensor | None, up: Tensor, down: Tensor,
                gate_bias: Tensor | None, up_bias: Tensor | None, parameters: Tensor | None, pre: Tensor | None,
                hidden: Tensor | None, activation: str, layout: str, up_first: bool,
                needs: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients by x, gate, up, down, their biases and the parameters; what is not needed is empty.

    ``x`` may be left out where no first weight needs a gradient and something else was kept. Where only ``hidden``
    was kept, the activation's derivative is taken at it.
    """
    return backward_of(grad, x, gate, up, down, gate_bias, up_bias, parameters, pre, hidden, activation, layout,
                       up_first, needs)


def backward_of(grad: Tensor, x: Tensor | None, gate: Tensor | None, up: Tensor, down: Tensor,
                gate_bias: Tensor | None, up_bias: Tensor | None, parameters: Tensor | None, pre: Tensor | None,
                hidden: Tensor | None, activation: str, layout: str, up_first: bool, needs: list[bool]) -> Any:
    """Compute what the backward operation returns."""
    with torch.no_grad(), as_they_are(grad):
        return _gradients(grad, x, (gate, up, down, gate_bias, up_bias, parameters), pre, hidden,
                          resolve(activation), (layout, up_first), needs)


def as_they_are(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Keep autocast from changing dtypes, where it is on: entering its context costs as much as a small product."""
    device = x.device.type
    on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


def _gradients(grad: Tensor, x: Tensor | None, tensors: tuple[Any, ...], pre: Tensor | None, hidden: Tensor | None,
               definition: Definition, packing: Packing, needs: list[bool]) -> Any:
    gate, up, down, gate_bias, up_bias, parameters = tensors
    apart = product_packing(up, *packing)
    weights, biases = pair(gate, up, *apart), pair(gate_bias, up_bias, *apart)
    grad_NO, x_ND = rows(grad), None if x is None else rows(x)
    if pre is None and hidden is None:
        pre, _ = products(x_ND, weights, biases)
    inputs_NH = [hidden] if pre is None else inputs_of(pre, *packing)
    learned = split(parameters, grad.dtype)
    out = [grad.new_empty(0) for _ in range(8)]
    slopes_NH: list[Tensor] = []
    if any(needs[i] for i in (X, GATE, UP, GATE_BIAS, UP_BIAS, PARAMETERS)):
        dh_NH, whole_NC = grad_NO @ down, None
        if apart != packing:  # gate and up were made in one product: their gradients are columns of one tensor too
            whole_NC = dh_NH.new_empty(dh_NH.shape[0], up.shape[0])
        slopes_NH, sums, made = dispatch.backward(
            definition, dh_NH, inputs_NH, learned, want_value=needs[DOWN] and hidden is None,
            into=None if whole_NC is None else columns(whole_NC, *packing))
        slopes_NH = slopes_NH if whole_NC is None else [whole_NC]
        hidden = made if hidden is None else hidden
        if needs[PARAMETERS]:
            out[PARAMETERS] = torch.cat(sums).to(parameters.dtype)
    elif needs[DOWN] and hidden is None:
        hidden = dispatch.forward(definition, inputs_NH, learned)
    if needs[DOWN]:
        out[DOWN] = torch.empty_like(down)
        torch.mm(grad_NO.t(), hidden, out=out[DOWN])
    if needs[DOWN_BIAS]:
        out[DOWN_BIAS] = grad_NO.sum(0)
    if needs[X]:
        dx_ND = slopes_NH[0] @ weights[0]
        for slope_NH, weight in zip(slopes_NH[1:], weights[1:], strict=True):
            dx_ND.addmm_(slope_NH, weight)
        out[X] = dx_ND.view(*grad.shape[:-1], dx_ND.shape[1])
    _first_weights(out, slopes_NH, x_ND, (gate, up, gate_bias, up_bias), apart, needs)
    return tuple(out)


def _first_weights(out: list[Tensor], slopes_NH: list[Tensor], x_ND: Tensor | None, tensors: tuple[Any, ...],
                   packing: Packing, needs: list[bool]) -> None:
    """Make the gradients of gate, up and their biases: into one tensor, through views, where they are packed."""
    places = (GATE, UP, GATE_BIAS, UP_BIAS)
    for at, tensor in zip(places, tensors, strict=True):
        if needs[at]:
            out[at] = torch.empty_like(tensor)
    gate, up, gate_bias, up_bias = (out[at] if needs[at] else None for at in places)
    for slope_NH, to_weight, to_bias in zip(slopes_NH, pair(gate, up, *packing), pair(gate_bias, up_bias, *packing),
                                            strict=False):
        if to_weight is not None:
            torch.mm(slope_NH.t(), x_ND, out=to_weight)
        if to_bias is not None:
            torch.sum(slope_NH, 0, out=to_bias)


@backward_op.register_fake
def _(grad: Tensor, x: Tensor | None, gate: Tensor | None, up: Tensor, down: Tensor, gate_bias: Tensor | None,
      up_bias: Tensor | None, parameters: Tensor | None, pre: Tensor | None, hidden: Tensor | None, activation: str,
      layout: str, up_first: bool, needs: list[bool]) -> Any:
    out = [grad.new_empty(0) for _ in range(8)]
    for at, tensor in ((GATE, gate), (UP, up), (DOWN, down), (GATE_BIAS, gate_bias), (UP_BIAS, up_bias)):
        if needs[at] and tensor is not None:
            out[at] = torch.empty_like(tensor)
    if needs[X]:
        out[X] = grad.new_empty(*grad.shape[:-1], up.shape[1])
    if needs[DOWN_BIAS]:
        out[DOWN_BIAS] = grad.new_empty(down.shape[0])
    if needs[PARAMETERS] and parameters is not None:
        out[PARAMETERS] = torch.empty_like(parameters)
    return tuple(out)


def setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gate, up, down, gate_bias, up_bias, _down_bias, parameters, *ctx.how, keep = inputs
    _, pre, hidden = output
    ctx.mark_non_differentiable(pre, hidden)
    ctx.set_materialize_grads(False)
    pre, hidden = (pre if keep in ("inputs", "all") else None), (hidden if keep in ("output", "all") else None)
    if keep != "nothing" and not any(ctx.needs_input_grad[i] for i in (X, GATE, UP)):
        x = None
    ctx.save_for_backward(x, gate, up, down, gate_bias, up_bias, parameters, pre, hidden)


def backward_of_forward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 12
    needs = list(ctx.needs_input_grad[:8])
    made = call(backward_op, BackwardFunction, grad, *ctx.saved_tensors, *ctx.how, needs)
    return *(out if need else None for out, need in zip(made, needs, strict=True)), *(None,) * 4


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.activation, layout, up_first, needs = inputs
    ctx.packing, ctx.needs = (layout, up_first), needs
    ctx.mark_non_differentiable(*(out for out, need in zip(output, needs, strict=True) if not need))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _backward_of_backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
    wanted = [c if need else None for c, need in zip(cotangents, ctx.needs, strict=True)]
    made = double_backward.SecondFunction.apply(ctx.activation, ctx.packing, *ctx.saved_tensors, *wanted)
    needed = ctx.needs_input_grad[:8]
    return *(out if need else None for out, need in zip(made, needed, strict=True)), *(None,) * 6


forward_op.register_autograd(backward_of_forward, setup_context=setup_forward)
backward_op.register_autograd(_backward_of_backward, setup_context=_setup_backward)


class ForwardFunction(torch.autograd.Function):
    """The forward operation for torch.func, whose transforms want a ``setup_context`` of their own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Any:
        return forward_op(*inputs)

    setup_context = staticmethod(setup_forward)
    backward = staticmethod(backward_of_forward)


class BackwardFunction(torch.autograd.Function):
    """The backward operation for torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Any:
        return backward_op(*inputs)

    setup_context = staticmethod(_setup_backward)
    backward = staticmethod(_backward_of_backward)


def call(op: Any, function: Any, *inputs: Any) -> Any:
    """Call an operation, through its autograd function where a transform of torch.func is at work."""
    return function.apply(*inputs) if torch._C._are_functorch_transforms_active() else op(*inputs)


def _one_by_one(op: Any) -> Callable[..., Any]:
    """Return the vmap rule that calls the operation for each element: per-sample gradients share no products."""

    def rule(info: Any, in_dims: Sequence[Any], *inputs: Any) -> Any:
        def at(i: int) -> Any:
            return op(*(x.select(dim, i) if isinstance(x, Tensor) and dim is not None else x
                        for x, dim in zip(inputs, in_dims, strict=True)))

        made = [torch.stack(outs) for outs in zip(*map(at, range(info.batch_size)), strict=True)]
        return tuple(made), (0,) * len(made)

    return rule


torch.library.register_vmap(forward_op, _one_by_one(forward_op))
torch.library.register_vmap(backward_op, _one_by_one(backward_op))
