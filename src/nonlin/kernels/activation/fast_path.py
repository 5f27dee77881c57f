"""The fast path for plain tensors in eager mode: bypass torch's dispatcher, which costs more than a small kernel.

If nothing can observe the difference (no mode or transform, no tracing, no tensor subclass), the kernel is called
directly, and one autograd.Function records its gradient. Every other call uses the registered operations: the gradient
of a gradient too, a batch of gradients, and forward-mode differentiation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from nonlin.functions import Definition
from nonlin.functions.registry import serialize
from nonlin.kernels import dispatch
from nonlin.kernels.activation import ops
from nonlin.kernels.cpu import backend as cpu
from nonlin.kernels.registration import batched_gradient

_listening = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.peek_interpreter_stack
_functions = torch._C._is_torch_function_mode_enabled
_traced = torch._C._get_tracing_state  # torch.jit.trace records operations, and would miss a kernel called past them
_strided = torch.strided
_compiling, _empty_like, _recording = torch.compiler.is_compiling, torch.empty_like, torch.is_grad_enabled


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, definition: Definition, count: int, *tensors: Tensor) -> Tensor:
        ctx.definition, ctx.count = definition, count
        ctx.save_for_backward(*tensors)
        return dispatch.forward(definition, tensors[:count], tensors[count:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        saved, (gradient,) = list(ctx.saved_tensors), gradients  # read once: checkpointing recomputes at every reading
        if _recording() or not plain_gradient(gradient, saved):
            return None, None, *ops.gradients(serialize(ctx.definition), gradient, saved)
        outs, learned, _ = dispatch.backward(ctx.definition, gradient, saved[:ctx.count], saved[ctx.count:])
        return None, None, *outs, *learned


class _Dense(torch.autograd.Function):
    """The same for contiguous numbers: nothing is looked up in a call that could be before."""

    @staticmethod
    def forward(ctx: Any, definition: Definition, kernel: cpu.Dense, *inputs: Tensor) -> Tensor:
        ctx.how = definition, kernel
        ctx.save_for_backward(*inputs)
        return cpu.forward_dense(kernel, inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        definition, kernel = ctx.how
        inputs, (gradient,) = ctx.saved_tensors, gradients
        # A gradient from a hook, or of a tensor subclass, takes the general path.
        if _recording() or not plain_gradient(gradient, inputs) \
                or cpu.dense_of(definition, (gradient, *inputs)) is None:
            return None, None, *ops.gradients(serialize(definition), gradient, list(inputs))
        return None, None, *cpu.backward_dense(kernel, gradient, inputs)


# Past Function.apply, which looks for transforms of torch.func: who calls this has.
_record = super(torch.autograd.Function, _Dense).apply


def apply(definition: Definition, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return the activation, differentiable, by the shortest way that these tensors allow."""
    if torch.compiler.is_compiling() or not plain((*inputs, *parameters)):
        return ops.activation(serialize(definition), [*inputs, *parameters])
    return _Direct.apply(definition, len(inputs), *inputs, *parameters)  # type: ignore[return-value]


def plain(tensors: Sequence[Tensor]) -> bool:
    """Return whether these are plain tensors of the CPU or a GPU, and nothing watches what is called with them."""
    for x in tensors:
        if (type(x) is not Tensor and type(x) is not nn.Parameter) or not (x.is_cpu or x.is_cuda) or x.is_neg() \
                or x._is_zerotensor():  # torch's own zeros without memory
            return False
    return not _watched()


def plain_gradient(gradient: Tensor, saved: Sequence[Tensor]) -> bool:
    """Return whether a gradient and what was saved are plain, and the gradient is one and no batch of them."""
    return not batched_gradient(gradient) and plain((gradient, *saved))


def _watched() -> bool:
    return bool(_listening() or _functions() or _transforms() is not None or forward_ad._current_level >= 0
                or _traced() is not None)


def shortened(definition: Definition, general: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``general``, but for plain contiguous numbers the kernel is called at once, and its gradient recorded so.

    Written out for one and for two inputs, each property asked once: such a call costs about twice torch's own.
    """
    kernels: dict[torch.dtype, cpu.Dense | None] = {}

    def known(dtype: torch.dtype) -> cpu.Dense | None:
        if dtype not in kernels:
            kernels[dtype] = cpu.dense(definition, dtype)
        return kernels[dtype]

    def one(x: Any = None, *rest: Any, **parameters: Any) -> Tensor:
        if rest or parameters or _compiling() or type(x) is not Tensor or not x.is_cpu or x.layout is not _strided \
                or x.is_nested or not x.is_contiguous() or x.is_neg() or x._is_zerotensor() or _listening() \
                or _functions() \
                or _transforms() is not None or forward_ad._current_level >= 0 or _traced() is not None \
                or (kernel := kernels.get(x.dtype) or known(x.dtype)) is None:
            return general(*(() if x is None else (x,)), *rest, **parameters)
        if x.requires_grad and _recording():
            return _record(definition, kernel, x)  # type: ignore[return-value]
        out = _empty_like(x)
        call = kernel.value if (count := x.numel()) <= cpu.PIECE else kernel.shared_value
        call(count, at := x.data_ptr(), at, out.data_ptr())
        return out

    def two(gate: Any = None, up: Any = None, *rest: Any, **parameters: Any) -> Tensor:
        if rest or parameters or _compiling() or type(gate) is not Tensor or type(up) is not Tensor \
                or not gate.is_cpu or not up.is_cpu or gate.layout is not _strided or up.layout is not _strided \
                or gate.is_nested or up.is_nested or not gate.is_contiguous() or not up.is_contiguous() \
                or gate.is_neg() or up.is_neg() or gate._is_zerotensor() or up._is_zerotensor() \
                or gate.shape != up.shape or gate.dtype is not up.dtype or _watched() \
                or (kernel := kernels.get(gate.dtype) or known(gate.dtype)) is None:
            return general(*(x for x in (gate, up) if x is not None), *rest, **parameters)
        if (gate.requires_grad or up.requires_grad) and _recording():
            return _record(definition, kernel, gate, up)  # type: ignore[return-value]
        out = _empty_like(gate)
        call = kernel.value if (count := gate.numel()) <= cpu.PIECE else kernel.shared_value
        call(count, gate.data_ptr(), up.data_ptr(), out.data_ptr())
        return out

    return one if len(definition.variables) == 1 else two


def shortened_learned(definition: Definition, general: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same for few numbers and learnable parameters that are all given, a number each, and not learning now."""
    names = tuple(q.name for q in definition.parameters)

    def call(*inputs: Any, **parameters: Any) -> Tensor:
        x = inputs[0] if len(inputs) == 1 else None
        if _compiling() or type(x) is not Tensor or not x.is_cpu or x.layout is not _strided or x.is_nested \
                or not x.is_contiguous() or x.is_neg() or x._is_zerotensor() \
                or not 0 < (count := x.numel()) <= cpu.PIECE or len(parameters) != len(names) or _watched():
            return general(*inputs, **parameters)
        recording, values = _recording(), []
        for name in names:
            q = parameters.get(name)
            if (type(q) is not Tensor and type(q) is not nn.Parameter) or q.numel() != 1 \
                    or not q.is_cpu or (recording and q.requires_grad):
                return general(*inputs, **parameters)
            values.append(q.item())
        if (recording and x.requires_grad) or (kernel := cpu.learned(definition, x.dtype)) is None:
            return general(*inputs, **parameters)
        out = _empty_like(x)
        kernel(count, at := x.data_ptr(), at, out.data_ptr(), *values)
        return out

    return call
