"""Which backend computes an activation, and the two calls that everything above is built on.

Tensors on a GPU are for the Triton kernels (triton/), those on the CPU for our C++ (cpu/); what
neither can compute is plain torch (torch/).

:func:`forward` and :func:`backward` compute on the tensors they are given and record nothing for autograd: they
are the bodies of registered operations (activation/ops.py). :func:`explain` says who computes a call, and why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nonlin.functions import Definition, get
from nonlin.kernels import operands
from nonlin.kernels.cpu import backend as cpu
from nonlin.kernels.torch import backend as torch_backend
from nonlin.kernels.triton import backend as triton_backend


@dataclass(frozen=True)
class Explanation:
    """Which backend serves a call ("compiled", "triton" or "torch"), and why."""

    activation: str
    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.activation}: {self.backend}, because {self.reason}"


def _choose(definition: Definition, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[Any, Any, str]:
    """Return (the backend's module, its kernel, where that comes from), or (None, None, why torch computes)."""
    backend = triton_backend if on_gpu(inputs[0]) else cpu
    if refused := backend.refusal(inputs, parameters):
        return None, None, refused
    kernel, reason = backend.find(definition)
    return (None, None, reason) if kernel is None else (backend, kernel, reason)


def on_gpu(x: Tensor) -> bool:
    """Return whether the Triton kernels serve the device of a tensor."""
    return x.device.type in triton_backend.DEVICES


def _order(tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[int, ...] | None:
    return operands.dense_order(tensors) if all(q.numel() == 1 for q in parameters) else None


def forward(definition: Definition, inputs: Sequence[Tensor], parameters: Sequence[Tensor] = (),
            over: bool = False) -> Tensor:
    """Return the activation of inputs (any shapes that broadcast, any strides, one float dtype).

    The result lies in memory as the inputs do, where they lie alike and without gaps; else it is contiguous.
    ``over`` says that the first input is needed no more, and may be written over.

    ``parameters`` are the learnable ones, in the definition's order, each of shape (1,) or any that broadcasts, in
    the inputs' dtype or wider. Computed in float32 (float64 for float64) and rounded once.
    """
    if on_gpu(inputs[0]):
        if (made := triton_backend.forward_again(definition, inputs, parameters, over)) is not None:
            return made
    elif (dense := cpu.dense_of(definition, inputs)) is not None:
        return cpu.forward_dense(dense, inputs, over)
    if (order := _order(inputs, parameters)) is not None:
        out = forward(definition, [x.permute(order) for x in inputs], parameters, over)
        return out.permute(operands.inverse(order))
    backend, kernel, _ = _choose(definition, inputs, parameters)
    with torch.no_grad():
        if backend is not None:
            return backend.forward(kernel, inputs, parameters, over)
        return torch_backend.forward(definition, inputs, parameters).contiguous()


def backward(definition: Definition, gradient: Tensor, inputs: Sequence[Tensor], parameters: Sequence[Tensor] = (),
             want_value: bool = False, into: Sequence[Tensor] | None = None, over: bool = False,
             ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Return (gradients by the inputs, gradients by the parameters, the value or None) in one pass over memory.

    ``gradient`` is that of the output: its shape, any strides (broadcast too). Each result has its tensor's shape
    and dtype. With ``want_value`` the activation itself is recomputed in the same pass. ``into`` names tensors
    of the inputs' common shape, with at most two strides, that take the inputs' gradients. On a GPU they may be the
    inputs. ``over`` says that the gradient is needed no more: on a GPU the value may be written over it.
    """
    if on_gpu(inputs[0]):
        again = triton_backend.backward_again(definition, gradient, inputs, parameters, want_value, into, over)
        if again is not None:
            return again
    elif into is None and (dense := cpu.dense_of(definition, (*inputs, gradient))) is not None:
        outs = cpu.backward_dense(dense, gradient, inputs, want_value)
        return outs[:len(inputs)], [], outs[-1] if want_value else None
    if into is None and (order := _order((*inputs, gradient), parameters)) is not None:
        outs, learned, value = backward(definition, gradient.permute(order), [x.permute(order) for x in inputs],
                                        parameters, want_value)
        back = operands.inverse(order)
        return [d.permute(back) for d in outs], learned, None if value is None else value.permute(back)
    backend, kernel, _ = _choose(definition, inputs, parameters)
    with torch.no_grad():
        if backend is not None:
            more = (into, over) if backend is triton_backend else (into,)
            return backend.backward(kernel, gradient, inputs, parameters, want_value, *more)
        outs, learned, value = torch_backend.backward(definition, gradient, inputs, parameters, want_value)
        if into is not None:
            outs = [place.copy_(d) for place, d in zip(into, outs, strict=True)]
        return ([d.contiguous() for d in outs] if into is None else outs, [d.contiguous() for d in learned],
                None if value is None else value.contiguous())


def explain(which: str | Definition, *tensors: Tensor) -> Explanation:
    """Return which backend serves an activation of these tensors (none: of float32 on the CPU), and why.

    ``tensors`` are the inputs, then learnable parameters. A kernel that is not yet compiled is compiled.

    >>> print(explain("solu"))
    solu: torch, because it is not pointwise
    """
    definition = get(which)
    if definition.expr is None:
        return Explanation(definition.name, "torch", "it is not pointwise")
    count = len(definition.variables)
    inputs = tensors[:count] or [torch.empty(0)] * count
    backend, _, reason = _choose(definition, inputs, tensors[count:])
    name = {cpu: "compiled", triton_backend: "triton"}.get(backend, "torch")
    return Explanation(definition.name, name, reason)
