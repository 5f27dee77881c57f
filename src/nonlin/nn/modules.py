"""Modules: an activation with its learnable parameters, and the feed-forward block around it."""

# torch has no public name for the hooks of a module and of all modules, nor types for them.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnnecessaryComparison=false, reportUnnecessaryIsInstance=false

import math
import numbers
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as _hooks
from torch.overrides import _get_current_function_mode_stack

from nonlin import functional
from nonlin.errors import UserError, rule
from nonlin.functions import Definition, get
from nonlin.kernels import arguments, dispatch, operands
from nonlin.kernels.activation.fast_path import projections
from nonlin.kernels.ffn import api as ffn
from nonlin.nn.widths import matched_hidden

PLAIN = (nn.Parameter, Tensor, FakeTensor, FunctionalTensor)
"""What computes as a plain tensor does: the last two stand for one while a program is traced."""
_LINEAR, _CALL = torch.nn.functional.linear, nn.Module.__call__


class Activation(nn.Module):
    """An activation by name: ``Activation("gelu")(x)``, ``Activation("swiglu")(gate, up)``.

    Learnable parameters have shape (1,) and carry ``_no_weight_decay = True``.

    >>> import torch
    >>> Activation("prelu")(torch.tensor([-4.0]))
    tensor([-1.], grad_fn=<...>)
    """

    def __init__(self, name: str | Definition, device: Any = None, dtype: torch.dtype | None = None):
        super().__init__()
        self.definition = get(name)
        _must_compute("Activation", dtype)
        self._function = functional.activation(self.definition)
        for q in self.definition.parameters:
            if hasattr(self, q.name):
                raise UserError(rule("Activation", "parameters", "have names that no module's attribute has", q.name,
                                     "Name the learnable parameter otherwise."))
            self.register_parameter(q.name, nn.Parameter(torch.empty(1, device=device, dtype=dtype)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Put the learnable parameters at their start."""
        for q in self.definition.parameters:
            getattr(self, q.name).fill_(q.initial)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_function"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._function = functional.activation(self.definition)
        self._mark()

    # torch puts other parameters in the place of these: in a copy, from a state that is assigned, off the meta device.
    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter, which is marked to have no weight decay."""
        super().register_parameter(name, param)
        self._mark()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        made = super()._apply(fn, recurse)
        self._mark()
        return made

    def _mark(self) -> None:
        for parameter in self._parameters.values():
            if parameter is not None:
                parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the activation of x, or of gate and up."""
        return self._function(*inputs, **{q.name: getattr(self, q.name) for q in self.definition.parameters})

    def extra_repr(self) -> str:
        return f"{self.definition.name}: {self.definition.formula}"


def _must_compute(call: str, dtype: Any) -> None:
    if dtype is not None and dtype not in operands.DTYPES:
        raise UserError(rule(call, "dtype", "be torch.float32, bfloat16, float16 or float64", dtype, "Choose one."))


def _is_width(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and type(value) is not bool and 0 < int(value) < 1 << 31


class FeedForward(nn.Module):
    """The feed-forward block: down(act(up x)), or down(act(gate x, up x)) where the activation is gated.

    ``hidden=None`` takes the width whose parameters equal a plain block's of 4 dim; see
    :func:`nonlin.nn.matched_hidden`. Input and output are (..., dim).

    It runs as one operation, :func:`nonlin.kernels.feed_forward`; ``memory`` ("lean", "fast" or "minimal") selects the
    tensors saved for backward. ``gate``, ``up`` and ``down`` are ordinary linear layers. The block calls its modules
    one by one instead if one was replaced (by a LoRA or a quantized layer) or hooked. It also does so if a weight is
    not a plain tensor, or if the activation is not pointwise; :meth:`explain` gives the reason.

    >>> import torch
    >>> block = FeedForward(128)
    >>> block.hidden, block(torch.zeros(2, 5, 128)).shape
    (344, torch.Size([2, 5, 128]))
    """

    def __init__(self, dim: int, hidden: int | None = None, activation: str | Definition = "swiglu",
                 bias: bool = False, device: Any = None, dtype: torch.dtype | None = None, memory: str = "lean"):
        super().__init__()
        for name, width in (("dim", dim), ("hidden", 1 if hidden is None else hidden)):
            if not _is_width(width):
                raise UserError(rule("FeedForward", name, "be a positive whole number of at most 31 bits", width,
                                     "Pass the model's width."))
        _must_compute("FeedForward", dtype)
        if memory not in ffn.MEMORY:
            raise UserError(rule("FeedForward", "memory", f"be one of {', '.join(ffn.MEMORY)}", memory,
                                 "Choose one of them."))
        self.memory = memory
        self.activation = Activation(activation, device, dtype)
        kind = self.activation.definition.kind
        self.dim, self.hidden = dim, hidden or matched_hidden(dim, kind)
        options: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.gate = nn.Linear(dim, self.hidden, **options) if kind == "gated" else None
        self.up = nn.Linear(dim, self.hidden, **options)
        self.down = nn.Linear(self.hidden, dim, **options)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights from a normal with std 1/sqrt(inputs); set biases to 0; reset the activation."""
        for layer in (self.gate, self.up, self.down):
            if layer is not None:
                layer.weight.normal_(0.0, 1 / math.sqrt(layer.in_features), generator=generator)
                if layer.bias is not None:
                    layer.bias.zero_()
        self.activation.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (..., dim) of x (..., dim)."""
        modules: Any = self._modules  # asked at each call: attribute by attribute would cost more than a small product
        activation, gate, up, down = modules["activation"], modules.get("gate"), modules["up"], modules["down"]
        if not torch.compiler.is_dynamo_compiling() and changed_everywhere() is None \
                and (tensors := projections(_STOCK[0][1], gate, up, down)) is not None \
                and _changed(activation, _STOCK[-1][1]) is None \
                and (out := ffn.short((x, *tensors), activation.definition, self.memory)) is not None:
            return out
        altered = self._altered(x) is not None
        if altered or activation.definition.expr is None:
            if type(x) not in PLAIN and not arguments.traced((x,)):
                arguments.check("FeedForward", "x", x)
            return self._by_modules(x, whole=not altered)
        return ffn.feed_forward(
            x, None if gate is None else gate.weight, up.weight, down.weight, None if gate is None else gate.bias,
            up.bias, down.bias, activation=activation.definition, memory=self.memory,
            parameters={q.name: getattr(activation, q.name) for q in activation.definition.parameters} or None)

    def _by_modules(self, x: Tensor, whole: bool) -> Tensor:
        """Call the modules one after the other; ``whole``: they are those that were made here, on a plain tensor."""
        gate, up, down, activation = self.gate, self.up, self.down, self.activation
        if whole and type(x) in PLAIN:
            ffn.must_fit([x, None if gate is None else gate.weight, up.weight, down.weight,
                          None if gate is None else gate.bias, up.bias, down.bias])
            if x.ndim == 1:  # as a matrix: see kernels/ffn/composed.py
                return self._by_modules(x.unsqueeze(0), whole=False).squeeze(0)
        inputs = (up(x),) if gate is None else (gate(x), up(x))
        return down(activation(*inputs))

    def explain(self) -> dispatch.Explanation:
        """Return whether the block runs as one operation or calls its modules, and why.

        >>> print(FeedForward(8, 16, "solu").explain())
        solu: its modules, one after the other, because solu is not pointwise
        """
        activation: Any = self.activation  # someone may have put another in its place
        name = activation.definition.name if isinstance(activation, Activation) else type(activation).__name__
        reason = self._needs_modules()
        if reason is not None:
            return dispatch.Explanation(name, "its modules, one after the other", reason)
        like = torch.empty(1, dtype=self.up.weight.dtype, device=self.up.weight.device)
        inner = dispatch.explain(name, *([like] * len(self.activation.definition.variables)))
        return dispatch.Explanation(name, f"one operation, the activation by {inner.backend}", inner.reason)

    def _needs_modules(self) -> str | None:
        """Return why the modules must be called one by one; None where one operation computes the same."""
        if (reason := self._altered()) is not None:
            return reason
        definition = self.activation.definition
        return f"{definition.name} is not pointwise" if definition.expr is None else None

    def _altered(self, x: Tensor | None = None) -> str | None:
        """Return what makes calling the modules differ from computing with their tensors, or None."""
        modules = self._modules  # asked at each call: attribute by attribute would cost more than a small product
        if (reason := changed_everywhere()) is not None:
            return reason
        if x is not None and type(x) not in PLAIN:
            return f"the input is a {type(x).__name__}"
        for name, stock in _STOCK:
            module = modules.get(name)  # gate may be None
            if module is not None and (reason := altered(module, stock)):
                return f"{name} {reason}"
        return None

    def extra_repr(self) -> str:
        return f"memory={self.memory}"


def changed_everywhere() -> str | None:
    """Return what makes calling any module differ from computing with its tensors, or None."""
    if _hooks._global_forward_hooks or _hooks._global_forward_pre_hooks or _hooks._global_backward_hooks \
            or _hooks._global_backward_pre_hooks:
        return "hooks on all modules are registered"
    if torch.nn.functional.linear is not _LINEAR:
        return "torch.nn.functional.linear was replaced"
    call = nn.Linear.__call__
    if call is not _CALL and not _of_torch(getattr(call, "__globals__", {}).get("__name__")):  # as its own traces do
        return "what calls modules was replaced"
    return overridden()


def _of_torch(module: str | None) -> bool:
    return (module or "").partition(".")[0] == "torch"


def overridden() -> str | None:
    """Return what may give torch's functions another meaning around any call now, or None."""
    if torch._C._is_torch_function_mode_enabled():
        for mode in _get_current_function_mode_stack():
            if not _of_torch(type(mode).__module__):  # its own trace a program, or place new tensors
                return f"{type(mode).__name__} may override torch's functions"
    return None


def hooked(module: nn.Module) -> bool:
    """Return whether calling the module runs more than its class's forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                or module._backward_pre_hooks or "forward" in vars(module))


Stock = Mapping[type, Any]
"""Classes whose computation is known, each with its forward."""


def stock(*classes: type) -> Stock:
    """Return the classes with their forwards; None for a forward that another file than the class's own defines."""
    found: dict[type, Any] = {}
    for cls in classes:
        forward: Any = cls.forward  # type: ignore[attr-defined]
        home = next(base for base in cls.__mro__ if "forward" in vars(base))
        file, code = getattr(sys.modules.get(home.__module__), "__file__", None), getattr(forward, "__code__", None)
        own = file is None or (code is not None and code.co_filename == file)
        found[cls] = forward if own else None
    return found


_STOCK: tuple[tuple[str, Stock], ...] = (
    *((name, stock(nn.Linear)) for name in ("gate", "up", "down")), ("activation", stock(Activation)))


def altered(module: nn.Module, stock: Stock) -> str | None:
    """Return what makes calling the module differ from computing with its tensors, or None.

    ``stock`` are the classes whose computation is known, with their forwards.
    """
    if (reason := _changed(module, stock)) is not None:
        return reason
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        if type(parameter) not in PLAIN:
            return f"keeps its {name} as a {type(parameter).__name__}"
        if parameter.layout is not torch.strided:
            return f"keeps its {name} sparse"
    return None


def _changed(module: nn.Module, stock: Stock) -> str | None:
    """Return what makes calling the module differ, its parameters aside, or None."""
    cls = type(module)
    if cls not in stock:
        return f"is a {cls.__name__}"
    if cls.forward is not stock[cls] or "forward" in vars(module):
        return "has a forward of its own"
    if hooked(module):
        return "has hooks"
    return None
