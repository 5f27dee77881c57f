"""The registered operations of activations: ``torch.ops.nonlin.activation``, ``.packed``, their backward operations,
and ``.derivative``. The last is any derivative of a formula; through it all of them are differentiated to any order.

An operation names its activation by a text that another process can deserialize
(``nonlin.functions.registry.serialize``), so that an exported program runs there. ``tensors`` are always the inputs,
then the learnable parameters: one list, which is never empty, since exporters cannot tell what an empty one holds.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nonlin.functions.registry import deserialize
from nonlin.kernels import dispatch, operands
from nonlin.kernels.registration import batched_gradient, register
from nonlin.kernels.torch import backend as torch_backend
from nonlin.kernels.torch.backend import reduce_to, wide


def halves(packed: Tensor, interleaved: bool, up_first: bool) -> tuple[Tensor, Tensor]:
    """Return views (gate, up) of a tensor (..., 2 hidden) that holds both."""
    width = packed.shape[-1] // 2
    pair = (packed[..., 0::2], packed[..., 1::2]) if interleaved else (packed[..., :width], packed[..., width:])
    return (pair[1], pair[0]) if up_first else pair


def _joined(gate: Tensor, up: Tensor, interleaved: bool, up_first: bool) -> Tensor:
    """Return the tensor whose halves are gate and up."""
    pair = (up, gate) if up_first else (gate, up)
    # No flatten: the older vmap has no rule for it.
    return torch.stack(pair, -1).reshape(*up.shape[:-1], -1) if interleaved else torch.cat(pair, -1)


def _split(definition: str, tensors: Sequence[Tensor]) -> tuple[Any, Sequence[Tensor], Sequence[Tensor]]:
    made = deserialize(definition)
    count = len(made.variables)
    return made, tensors[:count], tensors[count:]


def _orders(tensors: Sequence[Any], *places: int) -> list[int]:
    """Return the orders of a derivative: once by the tensor at each place."""
    return [places.count(k) for k in range(len(tensors))]


def _zero(definition: str, orders: Sequence[int]) -> bool:
    return torch_backend.mixed(deserialize(definition), tuple(orders)) == 0


# derivative: (definition, orders, tensors) -> that derivative, element by element, in float32 or float64

def _compute_derivative(definition: str, orders: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    with torch.no_grad():
        if tensors[0].device.type in torch_backend.DOUBLE:
            # Parts may cancel, or leave float32 although their sum does not.
            tensors = [x.double() for x in tensors]
        return torch_backend.derivative(deserialize(definition), orders, tensors).to(dtype).contiguous()


def _fake_derivative(definition: str, orders: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
    return tensors[0].new_empty(shape, dtype=torch.promote_types(tensors[0].dtype, torch.float32))


def _composed_derivative(definition: str, orders: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
    return torch_backend.derivative(deserialize(definition), orders, tensors, torch_backend.EXPORTED)


def _save_derivative(ctx: Any, needs: Any, args: Any, result: Any) -> None:
    ctx.definition, ctx.orders, tensors = args
    ctx.dtype, ctx.shape = result.dtype, result.shape
    ctx.set_materialize_grads(False)  # a tangent of zeros, times an infinite derivative, would be nan
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _save_activation(ctx: Any, needs: Any, args: Any, result: Any) -> None:
    definition, tensors = args
    _save_derivative(ctx, needs, (definition, [0] * len(tensors), tensors), result)


def _tangent(ctx: Any, tensors: Sequence[Tensor], *tangents: Any) -> Tensor:
    """Return the sum of each tensor's tangent x the derivative by it."""
    total = None
    for k, tangent in enumerate(tangents[-1]):
        orders = [n + (i == k) for i, n in enumerate(ctx.orders)]
        if tangent is None or _zero(ctx.definition, orders):
            continue
        part = wide(tangent) * derivative(ctx.definition, orders, tensors)
        total = part if total is None else total + part
    if total is None:
        return torch.zeros(ctx.shape, dtype=ctx.dtype, device=tensors[0].device)
    # A parameter of shape (1,) beside an input of no dimension, and torch's older vmap, may bring one dimension more.
    return total.to(ctx.dtype).reshape(ctx.shape)


def _backward_derivative(ctx: Any, needs: Any, gradient: Tensor | None) -> Any:
    tensors = ctx.saved_tensors
    if gradient is None:
        return None, None, [None] * len(tensors)
    return None, None, [_by(gradient, ctx.definition, tensors, k, ctx.orders) if need else None
                        for k, need in enumerate(needs[-1])]


def _by(gradient: Tensor, definition: str, tensors: Sequence[Tensor], k: int, orders: Sequence[int]) -> Tensor | None:
    """Return the gradient by one tensor of a derivative of these orders."""
    orders = [n + (i == k) for i, n in enumerate(orders)]
    if _zero(definition, orders):
        return None
    product = wide(gradient) * derivative(definition, orders, tensors)
    return reduce_to(product, tensors[k].shape).to(tensors[k].dtype)


# activation: (definition, tensors) -> the activation

def _compute_activation(definition: str, tensors: Sequence[Tensor]) -> Tensor:
    return dispatch.forward(*_split(definition, tensors))


def _fake_activation(definition: str, tensors: Sequence[Tensor]) -> Tensor:
    return operands.empty_for(_split(definition, tensors)[1])


def _composed_activation(definition: str, tensors: Sequence[Tensor]) -> Tensor:
    made = torch_backend.derivative(deserialize(definition), [0] * len(tensors), tensors, torch_backend.EXPORTED)
    return made.to(tensors[0].dtype)


def _backward_activation(ctx: Any, needs: Any, gradient: Tensor | None) -> Any:
    saved = list(ctx.saved_tensors)  # read once: checkpointing recomputes at every reading
    return None, [None] * len(saved) if gradient is None else gradients(ctx.definition, gradient, saved)


# activation_backward: (definition, gradient, tensors) -> the gradients by the tensors

def _compute_activation_backward(definition: str, gradient: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    made, inputs, parameters = _split(definition, tensors)
    outs, learned, _ = dispatch.backward(made, gradient, inputs, parameters)
    return [*outs, *learned]


def _fake_activation_backward(definition: str, gradient: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    _, inputs, parameters = _split(definition, tensors)
    alike = operands.dense_order((*inputs, gradient)) is not None and all(q.numel() == 1 for q in parameters)
    return [*(operands.empty_for([x]) if alike else x.new_empty(x.shape) for x in inputs),
            *(q.new_empty(q.shape) for q in parameters)]


def _composed_activation_backward(definition: str, gradient: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    none = [0] * len(tensors)
    made = (_by(gradient, definition, tensors, k, none) for k in range(len(tensors)))
    return [torch.zeros_like(x) if d is None else d for d, x in zip(made, tensors, strict=True)]


def _save_backward(ctx: Any, needs: Any, args: Any, result: Any) -> None:
    ctx.definition, gradient, tensors = args
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(gradient, *tensors)


def _backward_activation_backward(ctx: Any, needs: Any, *directions: Tensor | None) -> Any:
    gradient, *tensors = ctx.saved_tensors
    first, rest = second(ctx.definition, directions, gradient, tensors)
    # As torch has it, what is piecewise linear has a second derivative, which is 0: it is no input that nobody used.
    return None, first, [torch.zeros_like(x) if d is None and x.requires_grad else d
                         for d, x in zip(rest, tensors, strict=True)]


def gradients(definition: str, gradient: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients by the tensors: of one gradient, or of a batch of them."""
    if batched_gradient(gradient):
        return _composed_activation_backward(definition, gradient, tensors)
    return activation_backward(definition, gradient, tensors)


def second(definition: str, directions: Sequence[Tensor | None], gradient: Tensor, tensors: Sequence[Tensor],
           ) -> tuple[Tensor | None, list[Tensor | None]]:
    """Return the gradients of sum(directions x :func:`gradients`) by ``gradient`` and by the tensors; None is 0."""
    first: Any = None
    rest: list[Any] = [None] * len(tensors)
    for k, direction in enumerate(directions):
        if direction is None:
            continue
        direction = wide(direction)
        if not _zero(definition, _orders(tensors, k)):
            part = direction * derivative(definition, _orders(tensors, k), tensors)
            first = part if first is None else first + part
        for j in range(len(tensors)):
            if not _zero(definition, _orders(tensors, k, j)):
                part = direction * wide(gradient) * derivative(definition, _orders(tensors, k, j), tensors)
                rest[j] = part if rest[j] is None else rest[j] + part
    return (None if first is None else first.to(gradient.dtype),
            [None if r is None else reduce_to(r, x.shape).to(x.dtype) for r, x in zip(rest, tensors, strict=True)])


# packed: (definition, [packed, *parameters], interleaved, up_first) -> the gated activation of one tensor's two halves

def _apart(tensors: Sequence[Tensor], order: Sequence[bool]) -> list[Tensor]:
    return [*halves(tensors[0], *order), *tensors[1:]]


def compute_packed(definition: str, tensors: Sequence[Tensor], *order: bool) -> Tensor:
    """Return the activation of the two halves of the first tensor, contiguous; nothing is recorded."""
    return dispatch.forward(*_split(definition, _apart(tensors, order))).contiguous()


def _fake_packed(definition: str, tensors: Sequence[Tensor], *order: bool) -> Tensor:
    return tensors[0].new_empty((*tensors[0].shape[:-1], tensors[0].shape[-1] // 2))


def _composed_packed(definition: str, tensors: Sequence[Tensor], *order: bool) -> Tensor:
    return activation(definition, _apart(tensors, order))


def _save_packed(ctx: Any, needs: Any, args: Any, result: Any) -> None:
    ctx.definition, tensors, *ctx.order = args
    ctx.save_for_backward(*tensors)


def _backward_packed(ctx: Any, needs: Any, gradient: Tensor) -> Any:
    saved = list(ctx.saved_tensors)
    return None, packed_gradients(ctx.definition, gradient, saved, ctx.order), None, None


def packed_gradients(definition: str, gradient: Tensor, tensors: list[Tensor], order: Sequence[bool]) -> list[Tensor]:
    """Return the gradients by the tensors: of one gradient, or of a batch of them."""
    backward = _composed_packed_backward if batched_gradient(gradient) else packed_backward
    return backward(definition, gradient, tensors, *order)


# packed_backward: (definition, gradient, [packed, *parameters], interleaved, up_first) -> the gradients by the tensors

def compute_packed_backward(definition: str, gradient: Tensor, tensors: Sequence[Tensor], *order: bool,
                            ) -> list[Tensor]:
    """Return the gradients by the tensors; nothing is recorded."""
    whole = torch.empty_like(tensors[0], memory_format=torch.contiguous_format)
    made, inputs, parameters = _split(definition, _apart(tensors, order))
    _, learned, _ = dispatch.backward(made, gradient, inputs, parameters, into=halves(whole, *order))
    return [whole, *learned]


def _fake_packed_backward(definition: str, gradient: Tensor, tensors: Sequence[Tensor], *order: bool) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in tensors]


def _composed_packed_backward(definition: str, gradient: Tensor, tensors: Sequence[Tensor], *order: bool,
                              ) -> list[Tensor]:
    gate, up, *learned = gradients(definition, gradient, _apart(tensors, order))
    return [_joined(gate, up, *order), *learned]


def _save_packed_backward(ctx: Any, needs: Any, args: Any, result: Any) -> None:
    *args, ctx.interleaved, ctx.up_first = args
    _save_backward(ctx, needs, args, result)


def _backward_packed_backward(ctx: Any, needs: Any, *directions: Tensor | None) -> Any:
    gradient, *tensors = ctx.saved_tensors
    order, (whole, *learned) = (ctx.interleaved, ctx.up_first), directions
    by_input = (None, None) if whole is None else halves(whole, *order)
    first, (gate, up, *rest) = second(ctx.definition, [*by_input, *learned], gradient, _apart(tensors, order))
    if gate is None and up is None:
        return None, first, [None, *rest], None, None
    gate, up = (torch.zeros_like(gradient) if d is None else d for d in (gate, up))
    return None, first, [_joined(gate, up, *order), *rest], None, None


def _rank(tensors: Sequence[Tensor], dims: Sequence[int | None]) -> int:
    return max(x.ndim - (dim is not None) for x, dim in zip(tensors, dims, strict=True))


def _batched(size: int, tensors: Sequence[Tensor], dims: Sequence[int | None], ranks: int) -> list[Tensor]:
    """Give every tensor the batch as its first dimension, and ``ranks`` more."""
    made = []
    for x, dim in zip(tensors, dims, strict=True):
        x = x.unsqueeze(0) if dim is None else x.movedim(dim, 0)
        x = x.reshape(x.shape[0], *(1,) * (ranks + 1 - x.ndim), *x.shape[1:])
        made.append(x.expand(size, *x.shape[1:]))
    return made


def _shared(size: int, count: int, tensors: Sequence[Tensor], dims: Sequence[int | None]) -> list[Tensor]:
    """Give the first ``count`` tensors the batch, and the parameters too where one of them has it."""
    ranks = _rank(tensors[:count], dims[:count])
    learned = tensors[count:]
    if any(d is not None for d in dims[count:]):
        learned = _batched(size, learned, dims[count:], ranks)
    return [*_batched(size, tensors[:count], dims[:count], ranks), *learned]


def _vmap_activation(info: Any, in_dims: Any, definition: str, tensors: Any) -> Any:
    count = len(deserialize(definition).variables)
    return activation(definition, _shared(info.batch_size, count, tensors, in_dims[1])), 0


def _vmap_derivative(info: Any, in_dims: Any, definition: str, orders: Any, tensors: Any) -> Any:
    tensors = _batched(info.batch_size, tensors, in_dims[2], _rank(tensors, in_dims[2]))
    return derivative(definition, orders, tensors), 0


def _vmap_packed(info: Any, in_dims: Any, definition: str, tensors: Any, *order: bool) -> Any:
    return packed(definition, _shared(info.batch_size, 1, tensors, in_dims[1]), *order), 0


def _vmap_backward(op: Any) -> Any:
    """Return the rule of a backward operation: everything gets the batch, and each gradient its tensor's shape."""

    def rule(info: Any, in_dims: Any, definition: str, gradient: Any, tensors: Any, *order: bool) -> Any:
        _, dim, dims, *_ = in_dims
        shapes = [x.movedim(d, 0).shape[1:] if d is not None else x.shape for x, d in zip(tensors, dims, strict=True)]
        ranks = max(_rank([gradient], [dim]), _rank(tensors, dims))
        gradient, *rest = _batched(info.batch_size, (gradient, *tensors), (dim, *dims), ranks)
        outs = op(definition, gradient, rest, *order)
        return [d.reshape(info.batch_size, *shape) for d, shape in zip(outs, shapes, strict=True)], [0] * len(outs)

    return rule


derivative = register(
    "derivative(str definition, int[] orders, Tensor[] tensors) -> Tensor", compute=_compute_derivative,
    fake=_fake_derivative, composed=_composed_derivative, save=_save_derivative, backward=_backward_derivative,
    vmap=_vmap_derivative, jvp=_tangent)
activation = register(
    "activation(str definition, Tensor[] tensors) -> Tensor", compute=_compute_activation, fake=_fake_activation,
    composed=_composed_activation, save=_save_activation, backward=_backward_activation, vmap=_vmap_activation,
    jvp=_tangent)
activation_backward = register(
    "activation_backward(str definition, Tensor gradient, Tensor[] tensors) -> Tensor[]",
    compute=_compute_activation_backward, fake=_fake_activation_backward, composed=_composed_activation_backward,
    save=_save_backward, backward=_backward_activation_backward,
    vmap=_vmap_backward(lambda *args: activation_backward(*args)))
packed = register(
    "packed(str definition, Tensor[] tensors, bool interleaved, bool up_first) -> Tensor", compute=compute_packed,
    fake=_fake_packed, composed=_composed_packed, save=_save_packed, backward=_backward_packed, vmap=_vmap_packed)
packed_backward = register(
    "packed_backward(str definition, Tensor gradient, Tensor[] tensors, bool interleaved, bool up_first) -> Tensor[]",
    compute=compute_packed_backward, fake=_fake_packed_backward, composed=_composed_packed_backward,
    save=_save_packed_backward, backward=_backward_packed_backward,
    vmap=_vmap_backward(lambda *args: packed_backward(*args)))
