"""Every activation as a function of tensors: ``functional.gelu(x)``, ``functional.swiglu(gate, up)``.

Any float dtype and strides; derivatives are the ones derived from the definition. Learnable parameters are
keyword tensors (``functional.prelu(x, slope=torch.tensor([0.1]))``); left out, they are at their start.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nonlin.errors import UserError, rule
from nonlin.functions import Definition, get
from nonlin.kernels import torch_backend


def _polynorm(x: Tensor) -> Tensor:
    def normed(power: Tensor) -> Tensor:
        wide = power.to(torch.promote_types(power.dtype, torch.float32))
        return power * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6).to(power.dtype)

    return (normed(x) + normed(x**2) + normed(x**3)) / 3


def _solu(x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x * torch.softmax(x, dim=-1), x.shape[-1:])


_TENSOR: dict[str, Callable[[Tensor], Tensor]] = {"polynorm": _polynorm, "solu": _solu}


def activation(which: str | Definition) -> Callable[..., Tensor]:
    """Return the function of an activation: of (x), or of (gate, up), and its parameters by keyword.

    Raises UserError for a wrong number of inputs, a parameter it has not, or dtypes that differ.

    >>> import torch
    >>> activation("relu")(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    definition = get(which)
    if definition.kind == "tensor":
        return _TENSOR[definition.name]

    def call(*inputs: Tensor, **parameters: Tensor) -> Tensor:
        _check(definition, inputs, parameters)
        # Parameters keep their own precision: rounded to sixteen bits they would be other numbers.
        wide = torch.promote_types(inputs[0].dtype, torch.float32)
        values = [parameters[q.name] if q.name in parameters else
                  torch.tensor([q.initial], device=inputs[0].device, dtype=wide) for q in definition.parameters]
        return torch_backend.apply(definition, *inputs, *values)

    call.__name__ = definition.name
    call.__doc__ = f"{definition.formula}. {definition.source}"
    return call


def _check(definition: Definition, inputs: tuple[Any, ...], parameters: dict[str, Any]) -> None:
    wanted = definition.variables
    if len(inputs) != len(wanted):
        raise UserError(rule(definition.name, "inputs", f"be {', '.join(wanted)}", len(inputs), "Pass each once."))
    unknown = set(parameters) - {q.name for q in definition.parameters}
    if unknown:
        known = ", ".join(q.name for q in definition.parameters) or "none"
        raise UserError(rule(definition.name, "parameters", f"be among: {known}", sorted(unknown), "Leave it out."))
    if not inputs[0].is_floating_point() or any(x.dtype != inputs[0].dtype for x in inputs):
        raise UserError(rule(definition.name, "inputs", "share one float dtype", [x.dtype for x in inputs],
                             "Convert them first."))


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        return activation(name)
    except UserError as error:
        raise AttributeError(str(error)) from error
