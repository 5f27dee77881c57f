"""The short way for plain tensors in eager mode: past torch's dispatcher, which costs more than a small kernel.

Where nothing listens there (no mode or transform is active, nothing is traced, no tensor is more than a tensor), the
kernel is called directly, and its gradient is recorded by one autograd.Function. Everything else goes through the
registered operations, and so does the gradient of a gradient.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nonlin.functions import Definition
from nonlin.functions.registry import spell
from nonlin.kernels import compiled, dispatch, ops

SMALL = 512
_listening = torch._C._len_torch_dispatch_stack
_transforming = torch._C._functorch.peek_interpreter_stack
_functions = torch._C._is_torch_function_mode_enabled
_operation, _slopes = ops.activation, ops.activation_backward


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, definition: Definition, count: int, *tensors: Tensor) -> Tensor:
        ctx.definition, ctx.count = definition, count
        ctx.save_for_backward(*tensors)
        return dispatch.forward(definition, tensors[:count], tensors[count:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        inputs, parameters = list(ctx.saved_tensors[:ctx.count]), list(ctx.saved_tensors[ctx.count:])
        if torch.is_grad_enabled():  # a second derivative is wanted: the operation has one
            return None, None, *_slopes(
                spell(ctx.definition), gradients[0], inputs, parameters)
        outs, learned, _ = dispatch.backward(ctx.definition, gradients[0], inputs, parameters)
        return None, None, *outs, *learned


def apply(definition: Definition, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return the activation, differentiable, by the shortest way that these tensors allow."""
    if torch.compiler.is_compiling() or not _plain((*inputs, *parameters)):
        return _operation(spell(definition), list(inputs), list(parameters))
    return _Direct.apply(definition, len(inputs), *inputs, *parameters)  # type: ignore[return-value]


def _plain(tensors: Sequence[Tensor]) -> bool:
    for x in tensors:
        if (type(x) is not Tensor and type(x) is not nn.Parameter) or not x.is_cpu:
            return False
    return not (_listening() or _functions() or _transforming() is not None)


def small(definition: Definition) -> Callable[..., Tensor | None]:
    """Return a function that computes a few numbers without recording a gradient, and returns None for other calls."""
    count, learned = len(definition.variables), bool(definition.parameters)

    def call(*inputs: Tensor) -> Tensor | None:
        if learned or len(inputs) != count or torch.compiler.is_compiling() or not _plain(inputs):
            return None
        first = inputs[0]
        for x in inputs:
            if x.requires_grad or x.shape != first.shape or x.dtype is not first.dtype or not x.is_contiguous():
                return None
        function = _bound(definition, first.dtype)
        if function is None or first.numel() > SMALL:
            return None
        out = torch.empty_like(first)
        function(first.numel(), first.data_ptr(), inputs[-1].data_ptr(), None, out.data_ptr())
        return out

    return call


@functools.cache
def _bound(definition: Definition, dtype: torch.dtype) -> Callable[..., None] | None:
    kernel, _ = compiled.find(definition)
    if kernel is None or dtype not in compiled.CODES:
        return None
    return functools.partial(kernel.library.nl_flat, kernel.entry, compiled.CODES[dtype])
