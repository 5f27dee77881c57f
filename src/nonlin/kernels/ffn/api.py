"""The feed-forward block as one function of tensors: the public form of the operations in ops.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nonlin.errors import UserError, rule
from nonlin.functions import Definition, get
from nonlin.functions.properties import derivative_from_output
from nonlin.functions.registry import serialize
from nonlin.kernels import arguments, operands
from nonlin.kernels.activation.fast_path import fit
from nonlin.kernels.ffn import composed, fast_path, few, ops
from nonlin.kernels.ffn.layout import Form, Tensors
from nonlin.kernels.registration import constant_when_traced, vmapped

MEMORY = ("fast", "lean", "minimal")
LAYOUTS = ("separate", *arguments.LAYOUTS)


def feed_forward(x: Tensor, gate: Tensor | None, up: Tensor, down: Tensor, gate_bias: Tensor | None = None,
                 up_bias: Tensor | None = None, down_bias: Tensor | None = None, *,
                 activation: str | Definition = "swiglu", parameters: Mapping[str, Tensor] | None = None,
                 memory: str = "lean", layout: str = "separate", first: str = "gate") -> Tensor:
    """Return down(act(gate x, up x)), or down(act(up x)) if the activation is plain, as one operation.

    ``x`` is (..., D) and the result (..., O). Weights are (outputs, inputs) in any strides, and are read in
    place: ``gate`` and ``up`` (H, D), ``down`` (O, H); pass the ``.t()`` of a weight that is stored (inputs, outputs).
    Biases are (H,), (H,) and (O,). For a plain activation ``gate`` is None.

    ``layout`` is the layout of a gated block's first weights: "separate"; or, with ``gate`` and ``gate_bias`` None,
    packed in ``up`` (2 H, D) and ``up_bias`` (2 H,): "concatenated" (all of one, then all of the other) or
    "interleaved" (row by row). ``first`` names which of the two comes first: "gate" or "up".

    ``memory`` selects the tensors saved for backward, besides the weights:

    * "lean": the input, and gate and up before the activation, 2 H elements per token (plain: H). Backward recomputes
      the activation, in the pass that computes its gradients.
    * "fast": those and the activation's output, 3 H (plain: 2 H); backward then recomputes nothing.
    * "minimal": the input alone; backward recomputes the first matrix products.

    Up to 8 tokens on a CPU "lean" saves as "fast" does: then torch's linear layers record by themselves, which takes
    half of the time.

    If a plain activation's output determines its derivative (relu, leaky_relu, ...), "lean" and "fast" both save the
    output instead of its input, and backward recomputes nothing; see
    :func:`nonlin.functions.properties.derivative_from_output`.

    ``parameters`` are the activation's learnable ones by name, each of one element; those left out are at their
    start. Tensors share one float dtype (parameters have their own); under autocast they are converted as a linear
    layer's are, each once. Works under torch.compile, checkpointing, vmap and torch.func's transforms; differentiable
    to any order, in reverse and in forward mode. ±inf and nan: as the products and the activation give them.

    Raises UserError for shapes, dtypes or devices that do not fit. So do an activation that
    is not pointwise, and a name that is not known.

    >>> import torch
    >>> x, gate, up, down = torch.ones(1, 2), torch.eye(2), torch.eye(2), torch.ones(1, 2)
    >>> feed_forward(x, gate, up, down, activation="reglu")
    tensor([[2.]])
    >>> feed_forward(x, None, torch.cat([gate, 3 * up]), down, activation="reglu", layout="concatenated")
    tensor([[6.]])
    """
    definition = get(activation)
    for name, tensor in (("x", x), ("up", up), ("down", down)):
        arguments.check("feed_forward", name, tensor)
    if x.is_nested:
        return arguments.on_values("feed_forward", lambda values: feed_forward(
            values, gate, up, down, gate_bias, up_bias, down_bias, activation=activation, parameters=parameters,
            memory=memory, layout=layout, first=first), (x,))
    tensors = [x, gate, up, down, gate_bias, up_bias, down_bias]
    _check(definition, tensors, memory, layout, first)
    tensors = autocast(tensors)
    _check_alike(tensors)
    learned = _learned(definition, parameters, tensors[0])
    form = Form(definition, layout if definition.gated else "plain", first == "up")
    return run(Tensors(*tensors, learned), form, memory)


def run(tensors: Tensors, form: Form, memory: str) -> Tensor:
    """Run the block on tensors that fit.

    Plain tensors in eager mode bypass the dispatcher (fast_path.py); every other call uses the operation.
    """
    recorded = _differentiates(tensors)
    direct = fast_path.serves(tensors)
    if direct and not recorded:
        return fast_path.value(tensors, form)
    if not direct and not torch.compiler.is_compiling() and vmapped():
        return composed.forward(tensors, form, "nothing")[0]
    # A trace keeps what was so when it was made, and is checked without gradients: it saves the input alone.
    recorded = recorded and torch._C._get_tracing_state() is None
    if direct and recorded and memory != "minimal" and tensors.parameters is None \
            and form.layout in ("plain", "separate") and tensors.x is not None and tensors.x.is_cpu \
            and fast_path.few(tensors.x):
        return fast_path.layers(form.definition, *tensors[:7])
    keep = _keep(form.definition, memory, tensors[0].dtype) if recorded else "nothing"
    if direct:
        return fast_path.recorded(tensors, form, keep)
    return ops.forward_op(*tensors, _text(form.definition), form.layout, form.up_first, keep)[0]


def short(tensors: Sequence[Any], definition: Definition, memory: str, own: bool = False) -> Tensor | None:
    """Return the output of a block without learnable parameters in its activation, whose weights lie apart.

    ``tensors`` are the first seven of :class:`Tensors`. None where anything is not plain, or many tokens may record a
    gradient: such a call needs a closer look. ``own``: our own products may serve where they are faster (few.py).
    """
    recorded = torch.is_grad_enabled()
    if torch.compiler.is_dynamo_compiling() or definition.expr is None or definition.parameters \
            or (recorded and memory == "minimal") or (tensors[1] is not None) != definition.gated \
            or torch.is_autocast_enabled("cpu") or not fit(tensors) or tensors[0].dtype not in operands.DTYPES:
        return None
    if not recorded:
        out = few.value(definition, *tensors) if own else None
        return fast_path.apart(definition, *tensors) if out is None else out
    return fast_path.layers(definition, *tensors) if fast_path.few(tensors[0]) else None


def _differentiates(tensors: Tensors) -> bool:
    # Under torch.func a tensor does not tell whether an outer transform differentiates it.
    return torch._C._are_functorch_transforms_active() or (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))


@constant_when_traced
def _text(definition: Definition) -> str:
    return serialize(definition)


@constant_when_traced
def _keep(definition: Definition, memory: str, dtype: torch.dtype) -> str:
    """Return which of the activation's input and output the operation saves."""
    if memory == "minimal":
        return "nothing"
    told = derivative_from_output(definition)
    # A derivative below 1 pushes small float16 numbers under the least one, and their sign is lost with them.
    if told == "exact" or (told == "scaled" and dtype != torch.float16):
        return "output"
    return "all" if memory == "fast" else "inputs"


def _learned(definition: Definition, parameters: Mapping[str, Tensor] | None, x: Tensor) -> Tensor | None:
    """Return the activation's parameters as one tensor, in the definition's order."""
    given = dict(parameters or {})
    names = [q.name for q in definition.parameters]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise UserError(rule("feed_forward", "parameters", f"be among: {', '.join(names) or 'none'}", unknown,
                             "Leave it out."))
    if not names:
        return None
    values = [arguments.learned("feed_forward", q.name, given.get(q.name, q.initial), x).reshape(1)
              for q in definition.parameters]
    return values[0] if len(values) == 1 else torch.cat(values)


def autocast(tensors: list[Any]) -> list[Any]:
    """Convert as autocast converts a linear layer's tensors: all floats but float64, where it is on."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
            for t in tensors]


def _check(definition: Definition, tensors: list[Any], memory: str, layout: str, first: str) -> None:
    arguments.must_be_one_of("feed_forward", "memory", memory, MEMORY)
    arguments.must_be_one_of("feed_forward", "layout", layout, LAYOUTS)
    arguments.must_be_one_of("feed_forward", "first", first, arguments.FIRST)
    if definition.expr is None:
        raise UserError(rule("feed_forward", "activation", "be pointwise or gated", definition.name,
                             "Compose it from linear layers and nonlin.functional, as nonlin.nn.FeedForward does."))
    gate, gate_bias = tensors[1], tensors[4]
    if not definition.gated and layout != "separate":
        raise UserError(rule("feed_forward", "layout", f"be separate where {definition.name} has no gate", layout,
                             "Leave it out."))
    wants_gate = definition.gated and layout == "separate"
    if wants_gate != (gate is not None) or (gate_bias is not None and not wants_gate):
        must = "be given" if wants_gate else "be None, as its bias must, where it has no weight of its own"
        raise UserError(rule("feed_forward", "gate", must, "None" if gate is None else "a tensor",
                             "Pass gate and up apart, or name the layout of a packed up."))
    _check_shapes(tensors, 2 if definition.gated and not wants_gate else 1)


def _check_shapes(tensors: list[Any], packed: int) -> None:
    x, gate, up, down, gate_bias, up_bias, down_bias = tensors
    if x.ndim < 1 or down.ndim != 2:
        raise UserError(rule("feed_forward", "x and down", "be (..., D) and (O, H)",
                             (tuple(x.shape), tuple(down.shape)), "Pass the input and the last weight."))
    (outputs, hidden), inputs = down.shape, x.shape[-1]
    wanted = {"gate": (gate, (hidden, inputs)), "up": (up, (packed * hidden, inputs)),
              "gate_bias": (gate_bias, (hidden,)), "up_bias": (up_bias, (packed * hidden,)),
              "down_bias": (down_bias, (outputs,))}
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise UserError(rule("feed_forward", name, f"have shape {shape}, after x and down", tuple(tensor.shape),
                                 "Weights are (outputs, inputs): pass .t() of one stored the other way."))


def must_fit(tensors: list[Any]) -> None:
    """Raise UserError where a block's tensors (x, gate, up, down and their biases, not packed) do not fit together."""
    arguments.check("feed_forward", "x", tensors[0])
    _check_shapes(tensors, 1)
    _check_alike(autocast(tensors))


def _check_alike(tensors: list[Any]) -> None:
    x, given = tensors[0], [t for t in tensors if t is not None]
    if x.dtype not in operands.DTYPES or any(t.dtype != x.dtype or t.device != x.device for t in given):
        raise UserError(rule("feed_forward", "tensors", "share one device and one float dtype of 16, 32 or 64 bits",
                             sorted({f"{t.dtype} on {t.device}" for t in given}), "Convert them first."))
