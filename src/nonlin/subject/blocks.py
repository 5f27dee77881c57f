"""Put an arm's activation into a model's blocks: other matrices in their places, and nonlin's computation around them.

The block's own module stays, with its projections under their names and its dropouts. Its class is exchanged for one
that computes by a recipe (:mod:`nonlin.patching.patch`). A block whose layer computes it in its own forward is entered
instead. The first projection becomes a module that returns the activated values, and the layer's activation the
identity. Shapes: D model width, H hidden width, E experts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nonlin import functional, streams
from nonlin.functions import Definition
from nonlin.nn import Activation
from nonlin.patching.blocks import Layout, split
from nonlin.patching.patch import Recipe, install, part
from nonlin.subject import stacking
from nonlin.subject.stacking import ACTIVATION

GATE = "nonlin_gate"
"""The name of the gate that a block gets where its family has none."""
_STACKED = ("experts", *stacking.STYLES)


class FeedForwardEntry(nn.Module):
    """The first projection of a block that its layer computes: it returns the activated values (..., H) of x (..., D).

    ``up`` is the family's own projection; ``gate`` stands beside it where the arm is gated.
    """

    def __init__(self, up: nn.Module, gate: nn.Module | None, activation: Activation):
        super().__init__()
        self.up, self.gate, self.activation = up, gate, activation

    def forward(self, x: Tensor) -> Tensor:
        """Return activation(up x), or activation(gate x, up x)."""
        return self.activation(self.up(x)) if self.gate is None else self.activation(self.gate(x), self.up(x))


class One(nn.Module):
    """The second factor of a gated block whose entry returns the whole product."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the number one, in the type and on the device of x."""
        return x.new_ones(())


class ExpertsActivation(nn.Module):
    """What experts apply between their products: the activation of a packed product, or of a plain one."""

    def __init__(self, definition: Definition, layout: Layout):
        super().__init__()
        self.definition, self.layout = definition, layout
        self.activation = Activation(definition)

    def forward(self, product: Tensor) -> Tensor:
        """Return the activation (..., H) of (..., 2 H), or of (..., H) where it is plain."""
        if self.layout == "plain":
            return self.activation(product)
        learned = {q.name: getattr(self.activation, q.name) for q in self.definition.parameters}
        return functional.packed(self.definition)(product, layout=self.layout, first="gate", **learned)


@dataclass(frozen=True)
class Replaced:
    """One block of an arm's model: where its products are, and what stands between them.

    ``layout`` and ``gate_first`` say where gate and up lie in what ``up`` returns; ``stacked`` that the experts'
    weights are parameters of ``module``. ``owned`` holds the names of all tensors that are the block's.
    """

    name: str
    module: nn.Module
    definition: Definition
    layout: Layout
    gate_first: bool
    gate: nn.Module | None
    up: nn.Module
    down: nn.Module
    holder: nn.Module | None
    stacked: bool
    transposed: bool
    owned: tuple[str, ...]

    def activation(self, *inputs: Tensor) -> Tensor:
        """Return the activation of (gate, up), or of x."""
        learned = {q.name: getattr(self.holder, q.name).detach() for q in self.definition.parameters}
        return functional.activation(self.definition)(*inputs, **learned)

    def inputs(self, products: list[Tensor]) -> tuple[Tensor, ...]:
        """Return (gate, up), or (x,), of what the modules that project in have returned."""
        if len(products) == 2 or self.layout in ("plain", "separate"):
            return tuple(products)
        first, second = ("first", "second") if self.layout == "concatenated" else ("even", "odd")
        gate, up = (first, second) if self.gate_first else (second, first)
        return split(products[0], gate), split(products[0], up)  # type: ignore[arg-type]


def replace(model: nn.Module, name: str, group: Mapping[str, Any], definition: Definition, hidden: int) -> Replaced:
    """Give the block ``name`` an arm's matrices, of undrawn values, and its activation; return what is there now."""
    module = model.get_submodule(name)
    before = {path for path, _ in module.named_parameters()}
    stacked = group["style"] in _STACKED
    put_in = _experts if stacked else _entered if group["style"] == "entered" else _recipe
    made: dict[str, Any] = put_in(name, module, group, definition, hidden)
    prefix = f"{name}." if name else ""
    held = tuple(f"{path}." for path in (group["gate"], group["up"], group["down"]) if path)
    inside = [path for path, _ in module.named_parameters()
              if path not in before or stacked or path.startswith(held)]
    return Replaced(**made, owned=tuple(prefix + path for path in inside))


def _packed(group: Mapping[str, Any]) -> bool:
    return group["layout"] in ("concatenated", "interleaved")


def _recipe(name: str, module: nn.Module, group: Mapping[str, Any], definition: Definition, hidden: int
            ) -> dict[str, Any]:
    """Replace a block whose module was proved to be the recipe's computation."""
    up, down = part(module, group["up"]), part(module, group["down"])
    gate_path, layout, outputs = group["gate"], group["layout"], hidden
    if group["gated"] and not definition.gated:
        if gate_path:
            _remove(module, gate_path)
        gate_path, layout = None, "plain"
    elif definition.gated and not group["gated"]:
        gate_path, layout = _beside(module, group["up"], _like(up, hidden)), "separate"
    elif definition.gated and _packed(group):
        outputs = 2 * hidden
    if gate_path and group["gated"]:
        resize(part(module, gate_path), outputs=hidden)
    resize(up, outputs=outputs)
    resize(down, inputs=hidden)
    if group["activation"]:
        put(module, group["activation"], nn.Identity())  # its learned values are the family's, not the arm's
    holder = None
    if definition.parameters or definition.expr is None:
        holder = Activation(definition).to(up.weight.device)
        module.add_module(ACTIVATION, holder)
    kinds = tuple({type(p) for p in (up, down)}) if group["fused"] else ()
    install(module, Recipe(
        definition, group["style"], layout, gate_first=group["gate_first"] if _packed(group) else True, gate=gate_path,
        up=group["up"], down=group["down"], activation=ACTIVATION if definition.parameters else None,
        hidden_dropout=group["hidden_dropout"], out_dropout=group["out_dropout"], argument=group["argument"],
        fused=kinds, swapped=True))
    gate = part(module, gate_path) if gate_path else None
    return {"name": name, "module": module, "definition": definition, "layout": layout,
            "gate_first": group["gate_first"], "gate": gate, "up": up, "down": down, "holder": holder,
            "stacked": False, "transposed": False}


def _entered(name: str, module: nn.Module, group: Mapping[str, Any], definition: Definition, hidden: int
             ) -> dict[str, Any]:
    """Replace a block within its layer's own forward."""
    up, down = part(module, group["up"]), part(module, group["down"])
    gate = None
    if definition.gated:
        gate = part(module, group["gate"]) if group["gate"] else _like(up, hidden)
        resize(gate, outputs=hidden)
    resize(up, outputs=hidden)
    resize(down, inputs=hidden)
    holder = Activation(definition).to(up.weight.device)
    put(module, group["gate"] or group["up"], FeedForwardEntry(up, gate, holder))
    if group["gate"]:
        put(module, group["up"], One())
    put(module, group["activation"], nn.Identity())
    return {"name": name, "module": module, "definition": definition,
            "layout": "separate" if gate is not None else "plain", "gate_first": True, "gate": gate, "up": up,
            "down": down, "holder": holder, "stacked": False, "transposed": False}


def _experts(name: str, module: Any, group: Mapping[str, Any], definition: Definition, hidden: int) -> dict[str, Any]:
    """Replace what stacked experts hold: their parameters, and the function between the products.

    The class's implementations of the products read ``has_gate``, and call ``_apply_gate`` or ``act_fn``.
    """
    dim, turned = group["dim"], group["transposed"]
    layout = "plain" if not definition.gated else group["layout"] if group["gated"] else "concatenated"
    before, into = ("gate_up_proj" if g else "up_proj" for g in (group["gated"], definition.gated))
    outputs = hidden * (2 if definition.gated else 1)
    old: Any = dict(module.named_parameters(recurse=False))
    some, counts = old["down_proj"], {into: old[before].shape[0], "down_proj": group["experts"]}
    for key in [key for key in old if key.startswith(before)]:
        delattr(module, key)
    for key, (rows, columns) in {into: (outputs, dim), "down_proj": (dim, hidden)}.items():
        shape = (counts[key], columns, rows) if turned else (counts[key], rows, columns)
        setattr(module, key, nn.Parameter(some.new_empty(shape)))
    if f"{before}_bias" in old:
        setattr(module, f"{into}_bias", nn.Parameter(some.new_zeros(group["experts"], outputs)))
    function = ExpertsActivation(definition, layout).to(some.device)
    module.has_gate = definition.gated
    if hasattr(module, "intermediate_dim"):
        module.intermediate_dim = hidden
    if group["style"] in stacking.STYLES:
        module.add_module(ACTIVATION, function)
        stacking.exchange(module, group["style"], turned)
    elif definition.gated:
        module.add_module(ACTIVATION, function)
        object.__setattr__(module, "_apply_gate", function)  # the class has a method of this name
    else:
        module.act_fn = function
    return {"name": name, "module": module, "definition": definition, "layout": layout, "gate_first": True,
            "gate": None, "up": module, "down": module, "holder": function.activation, "stacked": True,
            "transposed": turned}


def put(module: nn.Module, path: str, new: Any) -> None:
    """Set the part of a module at a path, whether a module or a function stands there."""
    parent, _, name = path.rpartition(".")
    owner = part(module, parent) if parent else module
    owner.__dict__.pop(name, None)  # a function that the module keeps as a plain attribute
    if not isinstance(new, nn.Module):
        owner._modules.pop(name, None)
    setattr(owner, name, new)


def _remove(module: nn.Module, path: str) -> None:
    parent, _, name = path.rpartition(".")
    delattr(part(module, parent) if parent else module, name)


def _beside(module: nn.Module, path: str, new: nn.Module) -> str:
    """Put a gate before the projection at a path, as families order them; return its path."""
    parent, _, name = path.rpartition(".")
    owner = part(module, parent) if parent else module
    after = list(owner._modules)[list(owner._modules).index(name):]
    owner.add_module(GATE, new)
    for later in after:
        owner._modules[later] = owner._modules.pop(later)
    return f"{parent}.{GATE}" if parent else GATE


def _turned(module: Any) -> bool:
    """Whether a projection stores its weight as (in, out), as ``transformers``' Conv1D does."""
    return not isinstance(module, nn.Linear) and hasattr(module, "nf")


def _like(module: Any, outputs: int) -> nn.Linear:
    """Return a linear layer beside another one, of the same inputs."""
    inputs = module.weight.shape[0] if _turned(module) else module.weight.shape[1]
    return nn.Linear(inputs, outputs, bias=getattr(module, "bias", None) is not None, device=module.weight.device,
                     dtype=module.weight.dtype)


def resize(module: Any, outputs: int | None = None, inputs: int | None = None) -> None:
    """Give a projection parameters of another size, of undrawn values; its class and its name stay."""
    turned = _turned(module)
    now = module.weight.shape[::-1] if turned else module.weight.shape
    shape = (outputs or now[0], inputs or now[1])
    module.weight = nn.Parameter(module.weight.new_empty(shape[::-1] if turned else shape))
    if getattr(module, "bias", None) is not None:
        module.bias = nn.Parameter(module.bias.new_zeros(shape[0]))
    if turned:
        module.nf, module.nx = shape
    else:
        module.out_features, module.in_features = shape


@torch.no_grad()
def draw(block: Replaced, group: Mapping[str, Any], seed: int, stream: str) -> None:
    """Draw a block's weights from a random stream of its own, normal with the family's standard deviations.

    The stream is named by the block and the part: arms of one stream and shape begin with the same weights.
    """
    for role, weight, bias in _parts(block):
        std, spread = group["std"][role], group["std"].get(f"{role}_bias", 0.0)
        random = streams.generator("feed-forward initialization", seed, stream, block.name, role)
        drawn = random.standard_normal(tuple(weight.shape), "float32") if std else None
        weight.copy_(torch.zeros(()) if drawn is None else torch.from_numpy(drawn) * std)
        if bias is not None:
            mean = group["std"].get(f"{role}_bias_mean", 0.0)
            noise = random.standard_normal(tuple(bias.shape), "float32") if spread else None
            bias.copy_(torch.full((), mean) if noise is None else torch.from_numpy(noise) * spread + mean)


def _parts(block: Replaced) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield (role, weight as (out, in) or (E, out, in), bias) of each matrix, as views of what is stored."""
    if block.stacked:
        own: Any = dict(block.module.named_parameters(recurse=False))
        into = "gate_up_proj" if "gate_up_proj" in own else "up_proj"
        views = [(own[key].transpose(-1, -2) if block.transposed else own[key], own.get(f"{key}_bias"))
                 for key in (into, "down_proj")]
    else:
        views = [(stored(m), getattr(m, "bias", None)) for m in (block.up, block.down)]
    (up, up_bias), (down, down_bias) = views
    if block.gate is not None:
        yield "gate", stored(block.gate), getattr(block.gate, "bias", None)
        yield "up", up, up_bias
    elif block.layout in ("concatenated", "interleaved"):
        first, second = ("first", "second") if block.layout == "concatenated" else ("even", "odd")
        for role, which in zip(("gate", "up") if block.gate_first else ("up", "gate"), (first, second), strict=True):
            yield role, split(up, which, -2), None if up_bias is None else split(up_bias, which, -1)  # type: ignore[arg-type]
    else:
        yield "up", up, up_bias
    yield "down", down, down_bias


def stored(module: Any) -> Tensor:
    """Return a projection's weight as (out, in)."""
    return module.weight.t() if _turned(module) else module.weight
