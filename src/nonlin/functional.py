"""Every activation as a function of tensors: ``functional.gelu(x)``, ``functional.swiglu(gate, up)``.

A gated one also comes packed: ``functional.swiglu_packed(x)``, where x (..., 2 hidden) holds gate and up concatenated
or interleaved. Any float dtype and strides; derivatives are the ones derived from the definition. Learnable
parameters are keyword tensors or numbers (``functional.prelu(x, slope=0.1)``); left out, they are at their start.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from nonlin.errors import UserError, rule
from nonlin.functions import Definition, get
from nonlin.functions.registry import serialize
from nonlin.kernels import arguments, operands
from nonlin.kernels.activation import fast_path, ops
from nonlin.kernels.registration import constant_when_traced

_PACKED = "_packed"
_POINT = "\N{MIDDLE DOT}"  # in a name that pickle takes apart at its points


def _polynorm(x: Tensor) -> Tensor:
    def normed(power: Tensor) -> Tensor:
        wide = power.to(torch.promote_types(power.dtype, torch.float32))
        return power * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6).to(power.dtype)

    return (normed(x) + normed(x**2) + normed(x**3)) / 3


def _solu(x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x * torch.softmax(x, dim=-1), x.shape[-1:])


_TENSOR: dict[str, Callable[[Tensor], Tensor]] = {"polynorm": _polynorm, "solu": _solu}


@functools.lru_cache(maxsize=1024)
def _activation(definition: Definition) -> Callable[..., Tensor]:
    if definition.kind == "tensor":
        return _whole_tensor(definition)
    return _named(fast_path.shortened(definition, _general(definition)), definition, "")


def _whole_tensor(definition: Definition) -> Callable[..., Tensor]:
    """Return the function of an activation that is not pointwise: plain torch."""
    function = _TENSOR[definition.name]

    def call(x: Any = None, *rest: Any, **parameters: Any) -> Tensor:
        if arguments.traced((x,)):
            return torch.overrides.handle_torch_function(activation(definition), (x,), x)
        _checked(definition, (x, *rest), parameters)
        if x.ndim == 0 or (x.is_nested and x._ragged_idx == x.ndim - 1):
            raise UserError(rule(definition.name, "x", "have a last dimension of one size", "a tensor of none",
                                 "Pass (..., hidden)."))
        if x.is_nested or (order := operands.dense_order((x,))) is None:
            return function(x)
        return function(x).permute(order).contiguous().permute(operands.inverse(order))

    return _named(call, definition, "")


@constant_when_traced
def _text(definition: Definition) -> str:
    return serialize(definition)  # what a compiler cannot trace: it may hold a lock


def _general(definition: Definition) -> Callable[..., Tensor]:
    """Return the function that takes everything."""
    text, fixed = _text(definition), len(definition.parameters) == 0

    def call(*inputs: Tensor, **parameters: Any) -> Tensor:
        if not torch.compiler.is_compiling() and fixed and inputs and not parameters \
                and (made := fast_path.again(definition, inputs)) is not None:
            return made
        if arguments.traced(inputs):
            return torch.overrides.handle_torch_function(activation(definition), inputs, *inputs, **parameters)
        if named := [v for v in definition.variables[len(inputs):] if v in parameters]:
            rest = {name: value for name, value in parameters.items() if name not in named}
            return call(*inputs, *(parameters[v] for v in named), **rest)
        checked = _checked(definition, inputs, parameters)
        if checked[0].is_nested:
            return arguments.on_values(definition.name, lambda *values: call(*values, **parameters), checked)
        learned = _learned(definition, checked, parameters, _shape(definition, checked))
        if torch.compiler.is_compiling():
            return ops.activation(text, [*checked, *learned])
        return fast_path.apply(definition, checked, learned)

    return call


def _named(function: Any, definition: Definition, suffix: str) -> Callable[..., Tensor]:
    """Let a function be found, and pickled, as one of this module."""
    function.__name__ = function.__qualname__ = (definition.name + suffix).replace(".", _POINT)
    function.__module__ = __name__
    about = ", gate and up in one tensor" if suffix else ""
    function.__doc__ = f"{definition.formula}{about}. {definition.source}"
    return function


def activation(which: str | Definition) -> Callable[..., Tensor]:
    """Return the function of an activation: of (x), or of (gate, up), and its parameters by keyword.

    A tensor may be dense or jagged (nested); the result lies in memory as it does (channels last stay last). Under
    autocast, inputs are brought to the widest dtype, as torch's own products are. Raises UserError for a wrong number
    of inputs, another kind of tensor, an unknown parameter, or dtypes that differ.

    >>> import torch
    >>> activation("relu")(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    definition = get(which)
    if torch.compiler.is_compiling() and definition.kind != "tensor":
        return _general(definition)
    return _activation(definition)


def packed(which: str | Definition) -> Callable[..., Tensor]:
    """Return the function of a gated activation that reads gate and up from one tensor (..., 2 hidden).

    ``layout`` is "concatenated" (two halves) or "interleaved" (gate and up alternate); ``first`` says which of the two
    comes first, "gate" or "up". Its result is (..., hidden), and its gradient is made in one tensor.

    Raises UserError where the activation is not gated, the last dimension is odd, or a word is not one of these.

    >>> import torch
    >>> packed("bilinear")(torch.tensor([2.0, 3.0, 5.0, 7.0]), layout="interleaved")
    tensor([ 6., 35.])
    """
    definition = get(which)
    if definition.kind != "gated":
        raise UserError(rule(f"{definition.name}{_PACKED}", "activation", "be gated", definition.name,
                             f"Call {definition.name}(x)."))
    return _packed_general(definition) if torch.compiler.is_compiling() else _packed(definition)


@functools.lru_cache(maxsize=1024)
def _packed(definition: Definition) -> Callable[..., Tensor]:
    return _named(fast_path.shortened_packed(definition, _packed_general(definition)), definition, _PACKED)


def _packed_general(definition: Definition) -> Callable[..., Tensor]:
    text, name = _text(definition), f"{definition.name}{_PACKED}"

    def call(x: Any = None, layout: Literal["concatenated", "interleaved"] = "concatenated",
             first: Literal["gate", "up"] = "gate", **parameters: Any) -> Tensor:
        arguments.must_be_one_of(name, "layout", layout, arguments.LAYOUTS)
        arguments.must_be_one_of(name, "first", first, arguments.FIRST)
        if arguments.traced((x,)):
            return torch.overrides.handle_torch_function(packed(definition), (x,), x, layout, first, **parameters)
        (x,) = _checked(definition, (x,), parameters, count=1)
        if x.ndim == 0 or x.shape[-1] % 2:
            raise UserError(rule(name, "x", "have an even last dimension", tuple(x.shape),
                                 "Pass gate and up in one tensor."))
        if x.is_nested:
            def whole(values: Tensor) -> Tensor:
                return call(values, layout, first, **parameters)

            return arguments.on_values(name, whole, (x,))
        learned = _learned(definition, (x,), parameters, (*x.shape[:-1], x.shape[-1] // 2))
        return fast_path.apply_packed(text, [x, *learned], layout == "interleaved", first == "up")

    return call


def _learned(definition: Definition, inputs: Sequence[Tensor], parameters: dict[str, Any], shape: Any) -> list[Tensor]:
    return [arguments.learned(definition.name, q.name, parameters.get(q.name, q.initial), inputs[0], shape)
            for q in definition.parameters]


def _shape(definition: Definition, inputs: Sequence[Tensor]) -> torch.Size:
    try:
        return operands.common_shape(inputs)
    except RuntimeError:
        raise UserError(rule(definition.name, "inputs", "have shapes that broadcast to one",
                             [tuple(x.shape) for x in inputs], "Reshape them.")) from None


def _checked(definition: Definition, inputs: Sequence[Any], parameters: dict[str, Any],
             count: int | None = None) -> Sequence[Tensor]:
    wanted = definition.variables
    if len(inputs) != (count or len(wanted)):
        raise UserError(rule(definition.name, "inputs", f"be {', '.join(wanted)}", len(inputs), "Pass each once."))
    for variable, x in zip(wanted if count is None else ("x",), inputs, strict=True):
        arguments.check(definition.name, variable, x)
    unknown = set(parameters) - {q.name for q in definition.parameters}
    if unknown:
        known = ", ".join(q.name for q in definition.parameters) or "none"
        raise UserError(rule(definition.name, "parameters", f"be among: {known}", sorted(unknown), "Leave it out."))
    first = inputs[0]
    for variable, x in zip(wanted[1:], inputs[1:], strict=False):
        arguments.alike(definition.name, variable, x, first)
    if any(x.dtype != first.dtype for x in inputs) and torch.is_autocast_enabled(first.device.type):
        dtype = first.dtype
        for x in inputs:
            dtype = torch.promote_types(dtype, x.dtype)
        inputs = [x.to(dtype) for x in inputs]
        first = inputs[0]
    if first.dtype not in operands.DTYPES or any(x.dtype != first.dtype for x in inputs):
        raise UserError(rule(definition.name, "inputs", "share one float dtype of 16, 32 or 64 bits",
                             [x.dtype for x in inputs],
                             "Convert them first."))
    return inputs


def __getattr__(name: str) -> Callable[..., Tensor]:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        name = name.replace(_POINT, ".")
        base = name.removesuffix(_PACKED)
        made = activation(name) if base == name else packed(base)
    except UserError as error:
        raise AttributeError(str(error)) from error
    if not get(base).user_defined and not torch.compiler.is_compiling():  # the next call finds it without asking
        globals()[name] = made
    return made
