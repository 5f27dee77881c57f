"""The feed-forward block as registered operations, forward and backward.

``nonlin::feed_forward`` makes the products, the activation and the last product. ``nonlin::feed_forward_backward``
makes every gradient. The gradient of the last weight needs the activation's value: it is made again in the
pass that makes the activation's gradients. The operations never write to what is saved. The block's own autograd
function (fast_path.py) lets a GPU write gradients over it, where backward runs once.

Legend: N rows (all leading dimensions of x as one), D input width, H hidden width, O output width; G is 2 where the
activation is gated, else 1. Weights are (outputs, inputs) in any strides: a view stays a view.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nonlin.functions.registry import deserialize, serialize
from nonlin.kernels import dispatch
from nonlin.kernels.ffn import composed
from nonlin.kernels.ffn.double_backward import second
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
    pair,
    product_form,
    product_into,
    products,
    rows,
    split,
)
from nonlin.kernels.registration import batched_gradient, register, vmapped

COUNT = len(Tensors._fields)


def forward(tensors: Tensors, form: Form, keep: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return (output, pre-activations, hidden (N, H)); what ``keep`` does not name is empty.

    Pre-activations are (G, N, H), or (1, N, 2 H) where one product makes both. ``keep`` names what is saved for
    backward: "nothing", "inputs" (pre-activations), "output" (hidden) or "all" (both).
    """
    x = tensors.x
    assert x is not None
    with torch.no_grad(), as_they_are(x):
        apart = product_form(tensors.up, form)
        pre_GNH, inputs_NH = products(rows(x), pair(tensors.gate, tensors.up, apart),
                                      pair(tensors.gate_bias, tensors.up_bias, apart))
        if apart != form:
            inputs_NH = inputs_of(pre_GNH, form)
        hidden_NH = dispatch.forward(form.definition, inputs_NH, split(tensors.parameters, x.dtype))
        # A whole tensor, no view of one: models add to a block's output in place (Falcon), which autograd allows then.
        out = x.new_empty((*x.shape[:-1], tensors.down.shape[0]))
        product_into(rows(out), hidden_NH, tensors.down, tensors.down_bias)
    return (out, pre_GNH if keep in ("inputs", "all") else x.new_empty(0),
            hidden_NH if keep in ("output", "all") else x.new_empty(0))


def backward(gradient: Tensor, tensors: Tensors, saved: Saved, form: Form, needs: Sequence[bool],
             last: bool = False) -> list[Tensor]:
    """Return the gradients by the tensors, in their order; what is not needed is empty.

    ``x`` may be left out where no first weight needs a gradient and something else was saved. If only ``hidden``
    was, the activation's derivative is evaluated at it. ``last``: the pre-activations are needed no more, and a GPU
    writes their gradients over them.
    """
    with torch.no_grad(), as_they_are(gradient):
        return _gradients(gradient, tensors, saved, form, needs, last)


def as_they_are(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Keep autocast from changing dtypes, where it is on: entering its context costs as much as a small product."""
    device = x.device.type
    on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


def _gradients(gradient: Tensor, tensors: Tensors, saved: Saved, form: Form, needs: Sequence[bool], last: bool
               ) -> list[Tensor]:
    apart = product_form(tensors.up, form)
    weights = pair(tensors.gate, tensors.up, apart)
    grad_NO, x_ND = rows(gradient), None if tensors.x is None else rows(tensors.x)
    pre, hidden = saved
    if pre is None and hidden is None:
        pre, last = products(x_ND, weights, pair(tensors.gate_bias, tensors.up_bias, apart))[0], True
    inputs_NH = [hidden] if pre is None else inputs_of(pre, form)
    learned = split(tensors.parameters, gradient.dtype)
    out = [gradient.new_empty(0) for _ in range(COUNT)]
    da_NH: list[Tensor] = []
    if any(needs[i] for i in (X, GATE, UP, GATE_BIAS, UP_BIAS, PARAMETERS)):
        dh_NH, whole_NC = grad_NO @ tensors.down, None
        over = last and pre is not None and pre.dtype == dh_NH.dtype and dispatch.on_gpu(pre)
        if apart != form:  # gate and up were made in one product: their gradients are columns of one tensor too
            whole_NC = pre[0] if over else dh_NH.new_empty(dh_NH.shape[0], tensors.up.shape[0])
        da_NH, sums, made = dispatch.backward(
            form.definition, dh_NH, inputs_NH, learned, want_value=needs[DOWN] and hidden is None, over=True,
            into=columns(whole_NC, form) if whole_NC is not None else inputs_NH if over else None)
        da_NH = da_NH if whole_NC is None else [whole_NC]
        hidden = made if hidden is None else hidden
        del dh_NH, made
        if needs[PARAMETERS]:
            out[PARAMETERS] = torch.cat(sums).to(tensors.parameters.dtype)
    elif needs[DOWN] and hidden is None:
        hidden = dispatch.forward(form.definition, inputs_NH, learned)
    if needs[DOWN]:
        out[DOWN] = torch.empty_like(tensors.down)
        torch.mm(grad_NO.t(), hidden, out=out[DOWN])
        del hidden
    if needs[DOWN_BIAS]:
        out[DOWN_BIAS] = grad_NO.sum(0)
    if needs[X]:
        dx_ND = da_NH[0] @ weights[0]
        for part_NH, weight in zip(da_NH[1:], weights[1:], strict=True):
            dx_ND.addmm_(part_NH, weight)
        out[X] = dx_ND.view(*gradient.shape[:-1], dx_ND.shape[1])
    _first_weights(out, da_NH, x_ND, tensors, apart, needs)
    return out


def _first_weights(out: list[Tensor], da_NH: list[Tensor], x_ND: Tensor | None, tensors: Tensors, apart: Form,
                   needs: Sequence[bool]) -> None:
    """Make the gradients of gate, up and their biases: into one tensor, through views, where they are packed."""
    places = (GATE, UP, GATE_BIAS, UP_BIAS)
    for at in places:
        if needs[at]:
            out[at] = torch.empty_like(tensors[at])
    gate, up, gate_bias, up_bias = (out[at] if needs[at] else None for at in places)
    for part_NH, to_weight, to_bias in zip(da_NH, pair(gate, up, apart), pair(gate_bias, up_bias, apart),
                                           strict=False):
        if to_weight is not None:
            torch.mm(part_NH.t(), x_ND, out=to_weight)
        if to_bias is not None:
            torch.sum(part_NH, 0, out=to_bias)


def save(ctx: Any, needs: Sequence[bool], tensors: Tensors, form: Form, keep: str, result: Sequence[Tensor]) -> None:
    """Save for backward what ``keep`` names of the forward pass's result, and of the tensors what is read again."""
    _, pre, hidden = result
    ctx.mark_non_differentiable(pre, hidden)
    ctx.set_materialize_grads(False)
    saved = Saved(pre if keep in ("inputs", "all") else None, hidden if keep in ("output", "all") else None)
    read = tensors._replace(down_bias=None)
    if keep != "nothing" and not any(needs[i] for i in (X, GATE, UP)):
        read = read._replace(x=None)
    ctx.form = form
    ctx.save_for_backward(*read, *saved)


def saved_of(ctx: Any) -> tuple[Tensors, Saved]:
    """Return what :func:`save` saved."""
    saved = ctx.saved_tensors
    return Tensors(*saved[:COUNT]), Saved(*saved[COUNT:])


def gradients(ctx: Any, needs: Sequence[bool], gradient: Tensor | None) -> list[Any]:
    """Return the gradients by the tensors of what :func:`save` saved, None where not needed: of one, or of a batch."""
    if gradient is None:
        return [None] * COUNT
    tensors, saved = saved_of(ctx)
    needs = list(needs)
    if batched_gradient(gradient) or vmapped():
        made = composed.backward(gradient, tensors, saved, ctx.form, needs)
    else:
        made = backward_op(gradient, *tensors, *saved, *_words(ctx.form), needs)
    return [d if need else None for d, need in zip(made, needs, strict=True)]


def _words(form: Form) -> tuple[str, str, bool]:
    return serialize(form.definition), form.layout, form.up_first


def _form(words: Sequence[Any]) -> Form:
    return Form(deserialize(words[0]), *words[1:])


# feed_forward: (*tensors, activation, layout, up_first, keep) -> (output, pre-activations, hidden)

def _read(args: Sequence[Any]) -> tuple[Tensors, Form, str]:
    return Tensors(*args[:COUNT]), _form(args[COUNT:-1]), args[-1]


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    tensors, form, keep = _read(args)
    x: Any = tensors.x
    count, hidden = math.prod(x.shape[:-1]), tensors.down.shape[1]
    apart = product_form(tensors.up, form)
    pre = (1, count, tensors.up.shape[0]) if apart.layout == "plain" else (2, count, hidden)
    return (x.new_empty(*x.shape[:-1], tensors.down.shape[0]),
            x.new_empty(pre) if keep in ("inputs", "all") else x.new_empty(0),
            x.new_empty(count, hidden) if keep in ("output", "all") else x.new_empty(0))


def _save(ctx: Any, needs: Sequence[Any], args: Sequence[Any], result: Any) -> None:
    save(ctx, needs[:COUNT], *_read(args), result)


def _backward(ctx: Any, needs: Sequence[Any], gradient: Tensor | None, *_: Any) -> Any:
    return *gradients(ctx, needs[:COUNT], gradient), *(None,) * 4


# feed_forward_backward: (gradient, *tensors, pre, hidden, activation, layout, up_first, needs) -> gradients

def _read_backward(args: Sequence[Any]) -> tuple[Tensor, Tensors, Saved, Form, list[bool]]:
    gradient, *rest = args
    return (gradient, Tensors(*rest[:COUNT]), Saved(*rest[COUNT:COUNT + 2]), _form(rest[COUNT + 2:-1]), rest[-1])


def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    gradient, tensors, _, _, needs = _read_backward(args)
    out = [torch.empty_like(tensor) if need and tensor is not None else gradient.new_empty(0)
           for tensor, need in zip(tensors, needs, strict=True)]
    if needs[X]:
        out[X] = gradient.new_empty(*gradient.shape[:-1], tensors.up.shape[1])
    if needs[DOWN_BIAS]:
        out[DOWN_BIAS] = gradient.new_empty(tensors.down.shape[0])
    return tuple(out)


def _save_backward(ctx: Any, needs: Sequence[Any], args: Sequence[Any], result: Sequence[Tensor]) -> None:
    gradient, tensors, saved, ctx.form, ctx.asked = _read_backward(args)
    ctx.mark_non_differentiable(*(out for out, need in zip(result, ctx.asked, strict=True) if not need))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(gradient, *tensors, *saved)


def _backward_of_backward(ctx: Any, needs: Sequence[Any], *cotangents: Tensor | None) -> Any:
    gradient, *rest = ctx.saved_tensors
    wanted = Tensors(*(c if need else None for c, need in zip(cotangents, ctx.asked, strict=True)))  # type: ignore[arg-type]
    made = second(gradient, Tensors(*rest[:COUNT]), Saved(*rest[COUNT:]), ctx.form, wanted)
    return *(d if need else None for d, need in zip(made, needs, strict=False)), *(None,) * 6


def _one_by_one(op: Callable[..., Any]) -> Callable[..., Any]:
    """Return the rule that calls the operation for each element: our own calls take the composition instead."""

    def rule(info: Any, in_dims: Sequence[Any], *args: Any) -> Any:
        def at(i: int) -> Any:
            return op(*(x.select(dim, i) if isinstance(x, Tensor) and dim is not None else x
                        for x, dim in zip(args, in_dims, strict=True)))

        made = [torch.stack(outs) for outs in zip(*map(at, range(info.batch_size)), strict=True)]
        return tuple(made), (0,) * len(made)

    return rule


def _composed(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return composed.forward(*_read(args))


def _composed_backward(*args: Any) -> tuple[Tensor, ...]:
    return tuple(composed.backward(*_read_backward(args)))


_TENSORS = ("Tensor{} x, Tensor? gate, Tensor up, Tensor down, Tensor? gate_bias, Tensor? up_bias, "
            "Tensor? down_bias, Tensor? parameters")
forward_op = register(
    f"feed_forward({_TENSORS.format('')}, str activation, str layout, bool up_first, str keep)"
    " -> (Tensor, Tensor, Tensor)",
    compute=lambda *args: forward(*_read(args)), fake=_fake, composed=_composed, save=_save, backward=_backward,
    vmap=_one_by_one(lambda *args: forward_op(*args)))
backward_op = register(
    f"feed_forward_backward(Tensor gradient, {_TENSORS.format('?')}, Tensor? pre, Tensor? hidden, str activation, "
    f"str layout, bool up_first, bool[] needs) -> ({', '.join(['Tensor'] * COUNT)})",
    compute=lambda *args: tuple(backward(*_read_backward(args))), fake=_fake_backward, composed=_composed_backward,
    save=_save_backward, backward=_backward_of_backward, vmap=_one_by_one(lambda *args: backward_op(*args)))
