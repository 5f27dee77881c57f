"""How an operation is registered with torch, once and with all that torch asks of one.

Besides its computation an operation brings its shapes, its gradient, its rule under vmap, and its composition of
simpler operations. The composition serves whoever knows nothing of ours: forward-mode differentiation, the vmap of
batched gradients, and exporters (it is entered in torch's table of decompositions).
"""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

_LIBRARY = torch.library.Library("nonlin", "DEF")
_Needs = Sequence[Any]


def constant_when_traced(function: Any) -> Any:
    """Let torch.compile call ``function`` as it traces and take its result as a constant.

    It says what ``torch.compiler.assume_constant_result`` says, which first loads torch._dynamo: a second and more, for
    each process that computes an activation and compiles nothing.
    """
    function._dynamo_marked_constant = True
    return function


def register(schema: str, *, compute: Callable[..., Any], fake: Callable[..., Any], composed: Callable[..., Any],
             save: Callable[..., None], backward: Callable[..., Any], vmap: Callable[..., Any],
             jvp: Callable[..., Any] | None = None) -> Any:
    """Register ``torch.ops.nonlin.<name>`` of that schema, whose arguments are positional, and return it.

    * ``compute(*args)`` works on plain tensors, and ``fake(*args)`` returns empty ones of the results' shapes.
    * ``composed(*args)`` computes the same by differentiable operations.
    * ``save(ctx, needs, args, result)`` saves for backward; ``needs`` tells, shaped as the arguments are, which of
      them want a gradient. ``backward(ctx, needs, *gradients)`` returns their gradients, shaped so too.
    * ``vmap(info, in_dims, *args)`` is the rule of :func:`torch.library.register_vmap`.
    * ``jvp(ctx, saved, *tangents)`` returns the result's tangent from the arguments'; without it ``composed`` does.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    op = getattr(torch.ops.nonlin, name).default
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"nonlin::{name}", _keeping(op, fake), lib=_LIBRARY)
    torch.library.register_vmap(f"nonlin::{name}", vmap, lib=_LIBRARY)
    _LIBRARY.impl(name, _autograd(op, composed, save, backward, jvp), "Autograd", with_keyset=True)
    register_decomposition(op)(composed)
    register_decomposition(op, type="meta")(fake)  # else shapes would be those of the decomposition, found slowly
    return op


def _keeping(op: Any, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``fake`` that, where Inductor would refuse the operation, tells it before that to call the operation.

    Inductor calls operations that it does not know. If the environment variable CI is set (as most services of
    continuous integration do), it refuses one with a decomposition that it has not been told of. Inductor takes
    seconds to import, so it is told when it is there: it asks for the shapes of a graph before it lowers it.
    """
    def kept(*args: Any) -> Any:
        lowering = sys.modules.get("torch._inductor.lowering") if os.getenv("CI") else None
        if hasattr(lowering, "make_fallback") and op not in lowering.lowerings:
            # Earlier releases of torch have the second alone.
            strides = getattr(lowering, "constrain_to_fake_tensors", None) or lowering.constrain_to_fx_strides
            lowering.make_fallback(op, layout_constraint=strides, warn=False)
        return fake(*args)

    return kept


def _autograd(op: Any, composed: Callable[..., Any], save: Callable[..., None], backward: Callable[..., Any],
              jvp: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return the kernel of the Autograd key, as torch's own operations have one.

    It works at one level of torch.func's transforms and hands on to the next. So an operation called by its
    name goes under ``grad``, ``jvp`` and ``functionalize`` as torch's own do.
    """

    def below(keyset: Any, args: Sequence[Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, lengths: Sequence[int | None], *flat: Any) -> Any:
            args = _nested(flat, lengths)
            with _next_level():
                result = below(keyset, args)
            ctx.lengths = lengths
            save(ctx, _nested(ctx.needs_input_grad[2:], lengths), args, result)
            return tuple(result) if isinstance(result, list) else result

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            made = backward(ctx, _nested(ctx.needs_input_grad[2:], ctx.lengths), *gradients)
            return None, None, *_flat(made, ctx.lengths)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            assert jvp is not None
            saved = ctx.saved_tensors
            if _transformed():  # at this level they are constants, while the outer ones go on differentiating them
                saved = [torch._VF._unpack_dual(x, level=0)[0] for x in saved]  # type: ignore[attr-defined]
            with _next_level():
                return jvp(ctx, saved, *_nested(tangents[2:], ctx.lengths))

    Recorded.__name__ = Recorded.__qualname__ = "".join(word.title() for word in op._opname.split("_"))
    record = super(torch.autograd.Function, Recorded).apply  # Function's own apply is for all levels at once
    listed = "Tensor[]" in str(op._schema).rpartition("->")[2]

    def kernel(keyset: Any, *args: Any) -> Any:
        tangents = forward_mode()
        if tangents and jvp is None:
            return composed(*args)
        if not tangents and not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            return below(keyset, args)
        lengths = tuple(len(a) if _tensors(a) else None for a in args)
        with enable_single_level_autograd_function() if _transformed() else contextlib.nullcontext():
            result: Any = record(keyset, lengths, *_flat(args, lengths))
        return list(result) if listed else result

    return kernel


_transformed = torch._C._are_functorch_transforms_active


@contextlib.contextmanager
def _next_level() -> Any:
    """Let the next level of torch.func's transforms record what it has to: a Function turns that off for all."""
    if not _transformed():
        yield
        return
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


def _tensors(argument: Any) -> bool:
    return isinstance(argument, (list, tuple)) and bool(argument) and isinstance(argument[0], Tensor)


def _flat(args: Sequence[Any], lengths: Sequence[int | None]) -> list[Any]:
    """Return the arguments with the lists of tensors among them laid out; None for a list is as many times None."""
    flat: list[Any] = []
    for a, length in zip(args, lengths, strict=True):
        if length is None:
            flat.append(a)
        else:
            flat += [None] * length if a is None else a
    return flat


def _nested(flat: Sequence[Any], lengths: Sequence[int | None]) -> list[Any]:
    """Return the arguments that :func:`_flat` laid out."""
    args, at = [], 0
    for length in lengths:
        args.append(flat[at] if length is None else list(flat[at:at + length]))
        at += 1 if length is None else length
    return args


def batched_gradient(gradient: Tensor) -> bool:
    """Return whether torch's older vmap holds the gradient, as under ``is_grads_batched``: it knows no rule of ours."""
    # A compiler cannot trace the question, and compiles no batch.
    return not torch.compiler.is_dynamo_compiling() and torch._C._functorch.is_legacy_batchedtensor(gradient)


_Transform = torch._C._functorch.TransformType


def _transform(kind: Any) -> bool:
    stack = torch._C._functorch.get_interpreter_stack() if _transformed() else None
    return any(level.key() == kind for level in stack or ())


def vmapped() -> bool:
    """Return whether torch.func's vmap is at work, at any level."""
    return _transform(_Transform.Vmap)


def forward_mode() -> bool:
    """Return whether forward-mode differentiation is at work, at any level; torch.func's may not set the number."""
    return forward_ad._current_level >= 0 or _transform(_Transform.Jvp)
