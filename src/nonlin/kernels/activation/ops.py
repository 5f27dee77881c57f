"""The registered operations ``torch.ops.nonlin.activation`` and ``.packed``, with what torch asks of an operation:
shapes without data, gradients of first and second order, vmap.

An operation names its activation by a text that another process can resolve (``nonlin.functions.registry.spell``),
so that an exported program runs there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nonlin.functions.registry import resolve
from nonlin.kernels import dispatch
from nonlin.kernels.torch import backend as torch_backend

_LIBRARY = torch.library.Library("nonlin", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_LIBRARY.define("activation(str definition, Tensor[] inputs, Tensor[] parameters) -> Tensor", tags=_TAGS)
_LIBRARY.define("activation_backward(str definition, Tensor gradient, Tensor[] inputs, Tensor[] parameters)"
                " -> Tensor[]", tags=_TAGS)
_LIBRARY.define("packed(str definition, Tensor packed, Tensor[] parameters, bool interleaved, bool up_first)"
                " -> Tensor", tags=_TAGS)
_LIBRARY.define("packed_backward(str definition, Tensor gradient, Tensor packed, Tensor[] parameters,"
                " bool interleaved, bool up_first) -> Tensor[]", tags=_TAGS)
_BACKENDS = "CompositeExplicitAutograd"


def halves(packed: Tensor, interleaved: bool, up_first: bool) -> tuple[Tensor, Tensor]:
    """Return views (gate, up) of a tensor (..., 2 hidden) that holds both."""
    width = packed.shape[-1] // 2
    pair = (packed[..., 0::2], packed[..., 1::2]) if interleaved else (packed[..., :width], packed[..., width:])
    return (pair[1], pair[0]) if up_first else pair


def _activation(definition: str, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return dispatch.forward(resolve(definition), inputs, parameters)


def _activation_backward(definition: str, gradient: Tensor, inputs: Sequence[Tensor],
                         parameters: Sequence[Tensor]) -> list[Tensor]:
    outs, learned, _ = dispatch.backward(resolve(definition), gradient, inputs, parameters)
    return [*outs, *learned]


def _packed(definition: str, packed: Tensor, parameters: Sequence[Tensor], interleaved: bool,
            up_first: bool) -> Tensor:
    return dispatch.forward(resolve(definition), halves(packed, interleaved, up_first), parameters)


def _packed_backward(definition: str, gradient: Tensor, packed: Tensor, parameters: Sequence[Tensor],
                     interleaved: bool, up_first: bool) -> list[Tensor]:
    whole = torch.empty_like(packed, memory_format=torch.contiguous_format)
    _, learned, _ = dispatch.backward(
        resolve(definition), gradient, halves(packed, interleaved, up_first), parameters,
        into=halves(whole, interleaved, up_first))
    return [whole, *learned]


for _name, _function in (("activation", _activation), ("activation_backward", _activation_backward),
                         ("packed", _packed), ("packed_backward", _packed_backward)):
    _LIBRARY.impl(_name, _function, _BACKENDS)


def _like(x: Tensor, shape: Sequence[Any] | None = None) -> Tensor:
    return x.new_empty(x.shape if shape is None else shape)


@torch.library.register_fake("nonlin::activation", lib=_LIBRARY)
def _(definition: str, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return _like(inputs[0], torch.broadcast_shapes(*(x.shape for x in inputs)))


@torch.library.register_fake("nonlin::activation_backward", lib=_LIBRARY)
def _(definition: str, gradient: Tensor, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    return [_like(x) for x in (*inputs, *parameters)]


@torch.library.register_fake("nonlin::packed", lib=_LIBRARY)
def _(definition: str, packed: Tensor, parameters: Sequence[Tensor], interleaved: bool, up_first: bool) -> Tensor:
    return _like(packed, (*packed.shape[:-1], packed.shape[-1] // 2))


@torch.library.register_fake("nonlin::packed_backward", lib=_LIBRARY)
def _(definition: str, gradient: Tensor, packed: Tensor, parameters: Sequence[Tensor], interleaved: bool,
      up_first: bool) -> list[Tensor]:
    return [_like(x) for x in (packed, *parameters)]


def _setup_activation(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.definition, tensors, parameters = inputs
    ctx.count = len(tensors)
    ctx.save_for_backward(*tensors, *parameters)


def _backward_activation(ctx: Any, gradient: Tensor) -> Any:
    saved = list(ctx.saved_tensors)  # read once: checkpointing recomputes at every reading
    inputs, parameters = saved[:ctx.count], saved[ctx.count:]
    outs = torch.ops.nonlin.activation_backward(ctx.definition, gradient, inputs, parameters)
    return None, outs[:ctx.count], outs[ctx.count:]


def _setup_slopes(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.definition, gradient, tensors, parameters = inputs
    ctx.count = len(tensors)
    ctx.save_for_backward(gradient, *tensors, *parameters)


def _backward_slopes(ctx: Any, directions: list[Tensor | None]) -> Any:
    gradient, *rest = ctx.saved_tensors
    inputs, parameters = rest[:ctx.count], rest[ctx.count:]
    first, outs = torch_backend.second(resolve(ctx.definition), directions, gradient, inputs, parameters)
    return None, first, outs[:ctx.count], outs[ctx.count:]


def _setup_packed(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.definition, packed, parameters, *ctx.order = inputs
    ctx.save_for_backward(packed, *parameters)


def _backward_packed(ctx: Any, gradient: Tensor) -> Any:
    packed, *parameters = ctx.saved_tensors
    whole, *learned = torch.ops.nonlin.packed_backward(ctx.definition, gradient, packed, parameters, *ctx.order)
    return None, whole, learned, None, None


def _setup_packed_slopes(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.definition, gradient, packed, parameters, *ctx.order = inputs
    ctx.save_for_backward(gradient, packed, *parameters)


def _backward_packed_slopes(ctx: Any, directions: list[Tensor | None]) -> Any:
    gradient, packed, *parameters = ctx.saved_tensors
    whole, *learned = directions
    by_input = (None, None) if whole is None else halves(whole, *ctx.order)
    first, (gate, up, *rest) = torch_backend.second(
        resolve(ctx.definition), [*by_input, *learned], gradient, halves(packed, *ctx.order), parameters)
    interleaved, up_first = ctx.order
    pair = (up, gate) if up_first else (gate, up)
    joined = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return None, first, joined, rest, None, None


for _name, _backward, _setup in (
        ("activation", _backward_activation, _setup_activation),
        ("activation_backward", _backward_slopes, _setup_slopes),
        ("packed", _backward_packed, _setup_packed),
        ("packed_backward", _backward_packed_slopes, _setup_packed_slopes)):
    torch.library.register_autograd(f"nonlin::{_name}", _backward, setup_context=_setup, lib=_LIBRARY)


def _batched(size: int, tensors: Sequence[Tensor], dims: Sequence[int | None], ranks: int) -> list[Tensor]:
    """Give every tensor the batch as its first dimension, and ``ranks`` more."""
    made = []
    for x, dim in zip(tensors, dims, strict=True):
        x = x.unsqueeze(0) if dim is None else x.movedim(dim, 0)
        x = x.reshape(x.shape[0], *(1,) * (ranks + 1 - x.ndim), *x.shape[1:])
        made.append(x.expand(size, *x.shape[1:]))
    return made


def _rank(tensors: Sequence[Tensor], dims: Sequence[int | None]) -> int:
    return max(x.ndim - (dim is not None) for x, dim in zip(tensors, dims, strict=True))


@torch.library.register_vmap("nonlin::activation", lib=_LIBRARY)
def _(info: Any, in_dims: Any, definition: str, inputs: Any, parameters: Any) -> Any:
    _, dims, learned = in_dims
    ranks = _rank(inputs, dims)
    parameters = _batched(info.batch_size, parameters, learned, ranks) if any(d is not None for d in learned) \
        else parameters
    inputs = _batched(info.batch_size, inputs, dims, ranks)
    return torch.ops.nonlin.activation(definition, inputs, parameters), 0


@torch.library.register_vmap("nonlin::activation_backward", lib=_LIBRARY)
def _(info: Any, in_dims: Any, definition: str, gradient: Any, inputs: Any, parameters: Any) -> Any:
    _, dim, dims, learned = in_dims
    ranks = max(_rank([gradient], [dim]), _rank(inputs, dims))
    shapes = [x.movedim(d, 0).shape[1:] if d is not None else x.shape
              for x, d in zip((*inputs, *parameters), (*dims, *learned), strict=True)]
    tensors = _batched(info.batch_size, (gradient, *inputs, *parameters), (dim, *dims, *learned), ranks)
    count = len(inputs)
    outs = torch.ops.nonlin.activation_backward(definition, tensors[0], tensors[1:1 + count], tensors[1 + count:])
    return [d.reshape(info.batch_size, *shape) for d, shape in zip(outs, shapes, strict=True)], [0] * len(outs)


@torch.library.register_vmap("nonlin::packed", lib=_LIBRARY)
def _(info: Any, in_dims: Any, definition: str, packed: Any, parameters: Any, interleaved: bool, up_first: bool) -> Any:
    _, dim, learned, *_ = in_dims
    ranks = _rank([packed], [dim])
    if any(d is not None for d in learned):
        parameters = _batched(info.batch_size, parameters, learned, ranks)
    (packed,) = _batched(info.batch_size, [packed], [dim], ranks)
    return torch.ops.nonlin.packed(definition, packed, parameters, interleaved, up_first), 0


@torch.library.register_vmap("nonlin::packed_backward", lib=_LIBRARY)
def _(info: Any, in_dims: Any, definition: str, gradient: Any, packed: Any, parameters: Any, interleaved: bool,
      up_first: bool) -> Any:
    _, by_gradient, dim, learned, *_ = in_dims
    shapes = [q.movedim(d, 0).shape[1:] if d is not None else q.shape
              for q, d in zip(parameters, learned, strict=True)]
    gradient, packed, *rest = _batched(info.batch_size, (gradient, packed, *parameters),
                                       (by_gradient, dim, *learned), _rank([packed], [dim]))
    whole, *outs = torch.ops.nonlin.packed_backward(definition, gradient, packed, rest, interleaved, up_first)
    outs = [d.reshape(info.batch_size, *shape) for d, shape in zip(outs, shapes, strict=True)]
    return [whole, *outs], [0] * (1 + len(outs))


activation = torch.ops.nonlin.activation.default
"""(definition, inputs, parameters) -> the activation."""
activation_backward = torch.ops.nonlin.activation_backward.default
"""(definition, gradient, inputs, parameters) -> gradients by the inputs, then by the parameters."""
packed = torch.ops.nonlin.packed.default
"""(definition, packed, parameters, interleaved, up_first) -> the gated activation of one tensor's two halves."""
packed_backward = torch.ops.nonlin.packed_backward.default
"""(definition, gradient, packed, parameters, interleaved, up_first) -> gradients by the tensor, by the parameters."""
