"""The fast path for plain tensors in eager mode: bypass torch's dispatcher, which costs more than a small kernel.

If nothing can observe the difference (no mode or transform, no tracing, no tensor subclass), the kernel is called
directly, and one autograd.Function records its gradient. Every other call uses the registered operations: the gradient
of a gradient too, a batch of gradients, and forward-mode differentiation.
"""

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

from nonlin.functions import Definition
from nonlin.functions.registry import serialize
from nonlin.kernels import dispatch
from nonlin.kernels.activation import ops
from nonlin.kernels.arguments import FIRST, LAYOUTS
from nonlin.kernels.cpu import backend as cpu
from nonlin.kernels.registration import batched_gradient
from nonlin.kernels.triton import backend as triton_backend

_listening = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.peek_interpreter_stack
_functions = torch._C._is_torch_function_mode_enabled
_traced = torch._C._get_tracing_state  # torch.jit.trace records operations, and would miss a kernel called past them
_wrapped = torch._is_functional_tensor
_outlived = torch._C._functorch.is_functorch_wrapped_tensor  # in no transform: it has no memory of its own
_compiling, _recording = torch.compiler.is_dynamo_compiling, torch.is_grad_enabled


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


class _Short(torch.autograd.Function):
    """The same for plain numbers of one shape. Both passes run in C (cpu/call.h), which brings the forward one."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        short, saved = ctx.short, ctx.saved_tensors  # read once
        if not _compiling() and (made := short.gradients(*gradients, *saved)) is not None:
            return made
        return None, *ops.gradients(serialize(short.definition), *gradients, list(saved))


class _ShortPacked(torch.autograd.Function):
    """The same for gate and up in one tensor, in C (cpu/packed.h)."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        short, order, (x,) = ctx.short, ctx.order, ctx.saved_tensors  # read once
        if not _compiling() and (made := short.packed_gradients(*gradients, order, x)) is not None:
            return made
        ways = bool(order & 2), bool(order & 1)
        return None, None, *ops.packed_gradients(serialize(short.definition), *gradients, [x], ways)


class _Packed(torch.autograd.Function):
    """The same for gate and up in one tensor; its gradient is one tensor too."""

    @staticmethod
    def forward(ctx: Any, definition: str, order: tuple[bool, bool], *tensors: Tensor) -> Tensor:
        ctx.definition, ctx.order = definition, order
        ctx.save_for_backward(*tensors)
        return ops.compute_packed(definition, tensors, *order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        saved, (gradient,) = list(ctx.saved_tensors), gradients
        if _recording() or not plain_gradient(gradient, saved):
            return None, None, *ops.packed_gradients(ctx.definition, gradient, saved, ctx.order)
        return None, None, *ops.compute_packed_backward(ctx.definition, gradient, saved, *ctx.order)


# Past Function.apply, which looks for transforms of torch.func: who calls this has.
_record_direct: Any = super(torch.autograd.Function, _Direct).apply
_record = super(torch.autograd.Function, _Short).apply
_record_packed = super(torch.autograd.Function, _ShortPacked).apply


def apply(definition: Definition, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return the activation, differentiable, by the shortest way that these tensors allow."""
    if torch.compiler.is_compiling() or not plain((*inputs, *parameters)):
        return ops.activation(serialize(definition), [*inputs, *parameters])
    return _Direct.apply(definition, len(inputs), *inputs, *parameters)  # type: ignore[return-value]


def again(definition: Definition, inputs: Sequence[Tensor]) -> Tensor | None:
    """Return the activation of plain tensors on a GPU, if such tensors had it before; else None, and ask the others.

    A launch that is ready takes less time than to look whether a call is right: this one was.
    """
    first = inputs[0]
    if (type(first) is not Tensor and type(first) is not nn.Parameter) or not dispatch.on_gpu(first) \
            or not plain(inputs) or any(map(_outlived, inputs)):
        return None
    if not _recording() or not any(x.requires_grad for x in inputs):
        return triton_backend.forward_again(definition, inputs, ())
    return _record_direct(definition, len(inputs), *inputs) if triton_backend.served(definition, inputs) else None


def apply_packed(definition: str, tensors: Sequence[Tensor], interleaved: bool, up_first: bool) -> Tensor:
    """Return a gated activation of one tensor's two halves, by the shortest way that these tensors allow."""
    if torch.compiler.is_compiling() or not plain(tensors):
        return ops.packed(definition, list(tensors), interleaved, up_first)
    return _Packed.apply(definition, (interleaved, up_first), *tensors)  # type: ignore[return-value]


def plain(tensors: Sequence[Tensor]) -> bool:
    """Return whether these are plain tensors of the CPU or a GPU, and nothing watches what is called with them."""
    for x in tensors:
        if (type(x) is not Tensor and type(x) is not nn.Parameter) or not (x.is_cpu or x.is_cuda) or x.is_neg() \
                or x._is_zerotensor() or _wrapped(x):  # torch's own zeros without memory; a tensor around another
            return False
    return not _watched()


def fit(tensors: Sequence[Tensor | None]) -> bool:
    """Return whether a block's x, gate, up, down and their biases fit, and nothing watches; asked in C.

    They are plain contiguous tensors of the CPU, of one dtype.
    """
    return (catalog := _catalog()) is not None and catalog.fit(*tensors)


def projections(stock: Mapping[type, Any], *layers: Any) -> tuple[Any, ...] | None:
    """Return the weights, then the biases, of linear layers; None where calling one may do more than its product.

    ``stock`` are the classes whose computation is known, with their forwards. Asked in C: a layer's attributes cost
    more in Python than a small product.
    """
    return None if (catalog := _catalog()) is None else catalog.projections(stock, *layers)


def plain_gradient(gradient: Tensor, saved: Sequence[Tensor]) -> bool:
    """Return whether a gradient and what was saved are plain, and the gradient is one and no batch of them."""
    return not _compiling() and not batched_gradient(gradient) and plain((gradient, *saved))


def _watched() -> bool:
    return bool(_listening() or _functions() or _transforms() is not None or forward_ad._current_level >= 0
                or _traced() is not None)


_SYMBOLS = (
    *(f"aoti_torch_{name}" for name in (
        "get_device_type", "get_layout", "get_dtype", "get_dim", "get_numel", "get_sizes", "get_strides",
        "get_data_ptr", "empty_strided", "delete_tensor_object")),
    "_ZN2at4_ops6is_neg4callERKNS_6TensorE", "_ZN2at4_ops14_is_zerotensor4callERKNS_6TensorE",
    "_Z16THPVariable_WrapRKN2at10TensorBaseE")
"""Functions of torch that cpu/call.h calls."""
_NUMBERS = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}  # in torch's C interface


@functools.cache
def _catalog() -> Any:
    """Return the module whose calls run in C; None where there is none, or this torch is not as it knows torch."""
    if (catalog := cpu.without_ctypes()) is None:
        return None
    try:
        library = ctypes.CDLL(torch._C.__file__)  # its symbols are those of the libraries that it links, too
        addresses = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _SYMBOLS}
    except (AttributeError, OSError):
        return None
    known = catalog.watch({
        "tensor": Tensor, "parameter": nn.Parameter, "recording": torch.is_grad_enabled,
        "batched": torch._C._functorch.is_legacy_batchedtensor, "modes": _listening, "functions": _functions,
        "transforms": _transforms, "traced": _traced, "forward_ad": vars(forward_ad),
        "threads": torch.get_num_threads, "parallel": cpu.parallel(), **addresses})
    with _disable_current_modes(), torch._C.DisableTorchFunction():  # the answer is remembered
        probe = torch.empty(2, 3, dtype=torch.float64, device="cpu")
        if not known or catalog.look(probe) != (6, 7, probe.data_ptr()):
            return None
    for function, forward in ((_Short, catalog.saved), (_ShortPacked, catalog.saved_packed)):
        made: Any = function
        made.forward = staticmethod(forward)
        made._backward_cls.apply = function.backward  # torch's would look whether it has to call backward or vjp
    return catalog


def _serving(short: Any, definition: Definition) -> Callable[[Any], bool]:
    """Return the function that lets ``short`` serve the dtype of a tensor; it answers whether that is new."""
    asked: set[torch.dtype] = set()

    def serves(x: Any) -> bool:
        # The set comes last: a compiler that reads it compiles anew when it grows.
        if _compiling() or type(x) not in (Tensor, nn.Parameter) or not x.is_cpu or x.dtype in asked:
            return False
        asked.add(x.dtype)
        if (entry := cpu.entry(definition, x.dtype)) is None:
            return False
        short.serve(_NUMBERS[x.dtype], *entry)
        return True

    return serves


def _short(catalog: Any, definition: Definition, record: Any) -> Any:
    learned = definition.parameters
    return catalog.Short(len(definition.variables), tuple(q.name for q in learned),
                         tuple(float(q.initial) for q in learned), record, definition)


def shortened(definition: Definition, general: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``general``, but plain numbers of one shape are computed at once, and their gradient recorded, all in C.

    Learnable parameters are single numbers.
    """
    if (catalog := _catalog()) is None:
        return general
    short = _short(catalog, definition, _record)
    serves = _serving(short, definition)

    def learning(*inputs: Any, **parameters: Any) -> Tensor:
        """Serve one more dtype, where there is one; else the general way."""
        if serves(inputs[0] if inputs else None) and (made := short(*inputs, **parameters)) is not None:
            return made
        return general(*inputs, **parameters)

    def one(x: Any = None, *rest: Any, **parameters: Any) -> Tensor:
        if rest or parameters or _compiling() or (made := short(x)) is None:
            return learning(*(() if x is None else (x,)), *rest, **parameters)
        return made

    def two(gate: Any = None, up: Any = None, *rest: Any, **parameters: Any) -> Tensor:
        if rest or parameters or _compiling() or (made := short(gate, up)) is None:
            return learning(*(x for x in (gate, up) if x is not None), *rest, **parameters)
        return made

    def more(*inputs: Any, **parameters: Any) -> Tensor:
        if _compiling() or (made := short(*inputs, **parameters)) is None:
            return learning(*inputs, **parameters)
        return made

    return more if definition.parameters else one if len(definition.variables) == 1 else two


def shortened_packed(definition: Definition, general: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``general``, of (x, layout, first), but plain numbers are computed as by :func:`shortened`."""
    if (catalog := _catalog()) is None or definition.parameters:
        return general
    short = _short(catalog, definition, _record_packed)
    serves = _serving(short, definition)

    def call(x: Any = None, layout: Any = "concatenated", first: Any = "gate", **parameters: Any) -> Tensor:
        known = type(layout) is type(first) is str and layout in LAYOUTS and first in FIRST
        if parameters or _compiling() or not known:
            return general(x, layout, first, **parameters)
        order = 2 * (layout == "interleaved") + (first == "up")
        if (made := short.packed(x, order)) is None and serves(x):
            made = short.packed(x, order)
        return general(x, layout, first) if made is None else made

    return call
