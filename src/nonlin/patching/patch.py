"""A feed-forward block that computes by nonlin: the block's own module, its class exchanged and nothing else.

The weights stay where they are, so that a checkpoint's names, an optimizer and an adapter keep what they hold. The
class is a subclass of the block's own, of the same name: ``isinstance``, hooks, copies and pickles go on working.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nonlin import functional
from nonlin.functions import Definition, get, names
from nonlin.kernels.activation.fast_path import projections
from nonlin.kernels.ffn import api as ffn
from nonlin.kernels.ffn.layout import Form, Tensors
from nonlin.kernels.ffn.sparse import Units
from nonlin.nn.modules import PLAIN, altered, changed_everywhere, hooked, overridden, stock
from nonlin.patching.keeping import attributes

Style = Literal["block", "layer", "experts"]
"""What is replaced: a module's forward, a layer's ``feed_forward_chunk`` (BERT), the experts' ``_apply_gate``."""

_KEY, _PARTS, _SPARSE = "_nonlin_recipe", "_nonlin_parts", "_nonlin_sparse"
_OWN = "_nonlin_own"  # the function of the block's own class that was proved equal
_FUNCTIONS = {"block": "forward", "layer": "feed_forward_chunk", "experts": "_apply_gate"}
_PLAIN = (str, int, float, type(None))


@dataclass(frozen=True)
class Recipe:
    """How a block is computed; the parts are named by their paths within the block's module.

    ``layout`` is "plain", "separate", "concatenated" or "interleaved"; in the last two ``up`` names the packed
    projection. ``activation`` names the module that holds the learnable parameters. A dropout is a module, or a number
    that a part keeps (:mod:`nonlin.patching.dropouts`). ``fused`` lists the projections'
    classes that were proved to be a plain matrix product. ``swapped`` says that the block's own forward computes
    another function than the recipe. ``reads`` lists the attributes that it reads, by path; None: they are not known.
    """

    definition: Definition
    style: Style
    layout: str
    gate_first: bool = True
    gate: str | None = None
    up: str = ""
    down: str = ""
    activation: str | None = None
    hidden_dropout: str | None = None
    out_dropout: str | None = None
    argument: str = "x"
    fused: tuple[type, ...] = ()
    memory: str = "lean"
    swapped: bool = False
    reads: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        # Made once: a compiler that traces a call need not see how.
        packed = self.layout in ("concatenated", "interleaved")
        object.__setattr__(self, "call", (functional.packed if packed else functional.activation)(self.definition))
        object.__setattr__(self, "stock", stock(*self.fused))
        # Whether it is three linear layers and nothing else, each a child of the block.
        object.__setattr__(self, "plain", not packed and not self.hidden_dropout and not self.out_dropout
                           and not self.definition.parameters and self.definition.expr is not None
                           and not any("." in (path or "") for path in (self.gate, self.up, self.down)))

    def __deepcopy__(self, memo: Any) -> "Recipe":
        return self  # nothing in it changes, and kernels are kept by the definition itself

    def __reduce__(self) -> Any:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        known = self.definition.name in names() and get(self.definition.name) is self.definition
        return _recipe, (values | {"definition": self.definition.name if known else self.definition},)


def _recipe(values: dict[str, Any]) -> Recipe:
    values["definition"] = get(values["definition"])
    return Recipe(**values)


class Replaced:
    """The common base of the classes of replaced blocks."""

    _nonlin_base: type
    _nonlin_style: Style

    def _get_name(self) -> str:
        return f"{self._nonlin_base.__name__}[nonlin: {recipe_of(self).definition.name}]"  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The function itself may have no name to be pickled by; another process finds its own.
        return _made, (self._nonlin_base, self._nonlin_style), self.__dict__ | {_OWN: not _patched(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = state.get(_OWN, True) and _to_watch(self, state[_KEY])  # older pickles have none
        super().__setstate__(state | {_OWN: own})  # type: ignore[misc]


class _Block(Replaced):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        recipe = self.__dict__[_KEY]
        # The block's own forward may use other arguments; a swapped one has no use for them.
        if _changed(self) or (len(args) + len(kwargs) != 1 and not recipe.swapped):  # type: ignore[arg-type]
            return self._nonlin_base.forward(self, *args, **kwargs)  # type: ignore[attr-defined]
        return compute(self, recipe, args[0] if args else kwargs[recipe.argument])  # type: ignore[arg-type]


class _Layer(Replaced):
    output: Any

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        if _changed(self):  # type: ignore[arg-type]
            return self._nonlin_base.feed_forward_chunk(self, attention_output)  # type: ignore[attr-defined]
        out = compute(self, self.__dict__[_KEY], attention_output)  # type: ignore[arg-type]
        return self.output.LayerNorm(out + attention_output)


class _Experts(Replaced):
    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        if _changed(self):  # type: ignore[arg-type]
            return self._nonlin_base._apply_gate(self, gate_up)  # type: ignore[attr-defined]
        return activate(self, self.__dict__[_KEY], gate_up)  # type: ignore[arg-type]


_MIXINS: dict[str, type] = {"block": _Block, "layer": _Layer, "experts": _Experts}


@functools.cache
def _class(base: type, style: Style) -> type:
    own = {"__module__": base.__module__, "__qualname__": base.__qualname__, "_nonlin_base": base,
           "_nonlin_style": style}
    return type(base.__name__, (_MIXINS[style], base), own)


def _made(base: type, style: Style) -> Any:
    cls: Any = _class(base, style)
    return cls.__new__(cls)


def recipe_of(module: nn.Module) -> Recipe | None:
    """Return the recipe of a replaced block, or None for any other module."""
    return module.__dict__.get(_KEY)


def install(module: nn.Module, recipe: Recipe) -> None:
    """Let the block's module compute by the recipe; a block that is replaced already gets the new one."""
    if recipe_of(module) is None:
        module.__class__ = _class(type(module), recipe.style)
    make_sparse(module, None)  # its threshold was another activation's
    module.__dict__[_KEY], module.__dict__[_PARTS] = recipe, () if recipe.swapped else tuple(_parts(module, recipe))
    module.__dict__[_OWN] = _to_watch(module, recipe)


def uninstall(module: nn.Module) -> bool:
    """Give the module its own class back; return False where another class (FSDP2's) was put over ours."""
    base = type(module).__dict__.get("_nonlin_base")
    if base is None:
        return False
    module.__class__ = base
    make_sparse(module, None)
    for key in (_KEY, _PARTS, _OWN):
        module.__dict__.pop(key, None)
    return True


def make_sparse(module: nn.Module, units: Units | None) -> None:
    """Let a replaced block skip hidden units at few tokens, or, with None, no more."""
    if units is None:
        module.__dict__.pop(_SPARSE, None)
    else:
        module.__dict__[_SPARSE] = units


def _parts(module: nn.Module, recipe: Recipe) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield what the replacement computes in place of: the activation, and the modules that hold a projection.

    Each as (path of its holder, name, the part, the forward of its class), kept by the part itself: a copy or a pickle
    of the block takes its parts along. Functions that a holder keeps are parts without a forward. So are numbers and
    words that the block's own forward reads: for others, as a layer's number, torch.compile would compile it again.
    """
    called = {recipe.gate, recipe.up, recipe.down, recipe.hidden_dropout, recipe.out_dropout} - {None}
    holders = {path.rpartition(".")[0] for path in called if path}
    if recipe.style != "layer":  # a layer holds its attention too, which is called as ever
        holders.add("")
    for path in sorted(path for path in holders if path):
        holder, _, name = path.rpartition(".")
        yield holder, name, part(module, path), type(part(module, path)).forward
    waiting = sorted(holders)
    for holder in waiting:
        owner, prefix = part(module, holder), f"{holder}." if holder else ""
        for name, child in owner._modules.items():
            path = f"{prefix}{name}"
            if child is not None and path not in called and path not in holders:
                yield holder, name, child, type(child).forward
                waiting.append(path)
        for name, value in attributes(owner).items():
            path = f"{prefix}{name}"
            counts = callable(value) or (isinstance(value, _PLAIN) and (recipe.reads is None or path in recipe.reads))
            if counts and path not in called:
                yield holder, name, value, None


def _own(module: Any, recipe: Recipe) -> Any:
    """Return the function of the block's own class that the replacement stands for."""
    return getattr(module._nonlin_base, _FUNCTIONS[recipe.style])


def _to_watch(module: Any, recipe: Recipe) -> Any:
    """Return that function; None where the class gives another at each look, as functools.partialmethod does."""
    own = _own(module, recipe)
    return own if _own(module, recipe) is own else None


def _patched(module: Any) -> bool:
    """Return whether the class has another function now than the one that was proved equal."""
    own = module.__dict__[_OWN]
    return own is not None and _own(module, module.__dict__[_KEY]) is not own


def _changed(module: nn.Module) -> bool:
    """Return whether a part was replaced, patched or hooked since: then the block's own forward is right, and runs.

    So it is where a mode may override torch's functions, the activation's too.
    """
    kept = module.__dict__
    if kept[_KEY].swapped:
        return False
    if overridden() is not None or _patched(module):
        return True
    for holder, name, value, forward in kept.get(_PARTS, ()):
        owner = part(module, holder) if holder else module
        if forward is None:
            now = vars(owner).get(name)
            if now is not value and (callable(value) or type(now) is not type(value) or now != value):
                return True
        elif owner._modules.get(name) is not value or type(value).forward is not forward or hooked(value):
            return True
    return False


def part(module: nn.Module, path: str) -> Any:
    """Return the part of a module at a path like "output.dense"; the module itself for ""."""
    found: Any = module._modules.get(path)  # most are children, and a module's own getattr is slow
    if found is not None:
        return found
    found = module
    for name in path.split(".") if path else ():
        found = getattr(found, name)
    return found


def learned(module: nn.Module, recipe: Recipe) -> Mapping[str, Tensor]:
    """Return the activation's learnable parameters, where the block keeps them."""
    if recipe.activation is None:
        return {}
    holder = part(module, recipe.activation)
    return {q.name: getattr(holder, q.name) for q in recipe.definition.parameters}


def activate(module: nn.Module, recipe: Recipe, *products: Tensor) -> Tensor:
    """Return the activation of the products: (gate, up), a packed product, or (up,)."""
    call: Any = recipe.call  # type: ignore[attr-defined]
    if recipe.layout in ("concatenated", "interleaved"):
        return call(*products, layout=recipe.layout, first="gate" if recipe.gate_first else "up",
                    **learned(module, recipe))
    return call(*products, **learned(module, recipe))


def compute(module: nn.Module, recipe: Recipe, x: Tensor) -> Tensor:
    """Return the block's output (..., D) of x (..., D), what follows the down projection's dropout left out.

    It is one operation where every projection is a plain matrix product. It goes through the projections' modules, with
    the activation fused, where an adapter, a hook, a shard or a dropout in the middle needs it.
    """
    if recipe.plain and (out := _short(module, recipe, x)) is not None:  # type: ignore[attr-defined]
        return out
    gate, up, down = _projections(module, recipe)
    drops = recipe.hidden_dropout is not None and _drops(module, recipe.hidden_dropout)
    tensors = None
    if not drops and recipe.definition.expr is not None and changed_everywhere() is None \
            and type(x) in PLAIN:
        tensors = _tensors(x, (gate, up, down), recipe)
    if tensors is not None:
        out = _in_one(module, recipe, tensors)
    else:
        hidden = activate(module, recipe, *(p(x) for p in (gate, up) if p is not None))
        if drops:
            hidden = _dropped(module, recipe.hidden_dropout, hidden)
        stored = getattr(down, "weight", None)
        if isinstance(stored, Tensor) and stored.dtype.is_floating_point and _autocasts(hidden) is False:
            hidden = hidden.to(stored.dtype)  # T5 keeps the last projection in float32
        out = down(hidden)
    return out if recipe.out_dropout is None else _dropped(module, recipe.out_dropout, out)


def _drops(module: nn.Module, path: str) -> bool:
    """Whether the dropout at a path does anything now."""
    found = part(module, path)
    if isinstance(found, nn.Dropout):
        return found.training and found.p > 0
    return part(module, path.rpartition(".")[0]).training and found > 0


def _dropped(module: nn.Module, path: str | None, x: Tensor) -> Tensor:
    """Return x after the dropout at a path: a module, or the probability that a part keeps for torch's function."""
    found = part(module, path or "")
    if isinstance(found, nn.Module):
        return found(x)
    return nn.functional.dropout(x, found, part(module, (path or "").rpartition(".")[0]).training)


def _short(module: nn.Module, recipe: Recipe, x: Tensor) -> Tensor | None:
    """Return the output of a block of plain linear layers, as nonlin.nn.FeedForward computes its own, or None."""
    if torch.compiler.is_dynamo_compiling() or _SPARSE in module.__dict__ or changed_everywhere() is not None:
        return None
    modules: Any = module._modules
    found = projections(recipe.stock, modules.get(recipe.gate), modules.get(recipe.up),  # type: ignore[attr-defined]
                        modules.get(recipe.down))
    return None if found is None else ffn.short((x, *found), recipe.definition, recipe.memory, own=True)


def _projections(module: nn.Module, recipe: Recipe) -> tuple[Any, Any, Any]:
    gate = None if recipe.gate is None else part(module, recipe.gate)
    return gate, part(module, recipe.up), part(module, recipe.down)


def tensors_of(module: nn.Module, recipe: Recipe, x: Tensor) -> tuple[Tensors, Form] | None:
    """Return a block's tensors with an input, and how they lie; None where its projections are called as modules."""
    found = _tensors(x, _projections(module, recipe), recipe)
    return None if found is None else _formed(module, recipe, found)


def _formed(module: nn.Module, recipe: Recipe, tensors: list[Any]) -> tuple[Tensors, Form]:
    values = [q.reshape(1) for q in learned(module, recipe).values()]
    return (Tensors(*tensors, torch.cat(values) if values else None),  # pyright: ignore[reportCallIssue]
            Form(recipe.definition, recipe.layout, not recipe.gate_first))


def _tensors(x: Tensor, projections: tuple[Any, ...], recipe: Recipe) -> list[Any] | None:
    """Return x, the weights as (out, in), and the biases; None where a projection must be called as a module."""
    weights, biases = [], []
    for p in projections:
        if p is None:
            weights.append(None)
            biases.append(None)
            continue
        if altered(p, recipe.stock) is not None:  # type: ignore[attr-defined]
            return None
        own = p._parameters
        weight = own["weight"] if own.get("weight") is not None else p.weight
        if weight.dtype is not x.dtype and not _autocasts(x):
            return None
        weights.append(weight.t() if "nf" in p.__dict__ else weight)  # Conv1D stores it the other way round
        biases.append(own["bias"] if "bias" in own else getattr(p, "bias", None))
    return [x, *weights, *biases]


def _in_one(module: nn.Module, recipe: Recipe, tensors: list[Any]) -> Tensor:
    """Compute the block from its tensors. They were proved to fit: checking again costs as much as a small product."""
    units: Units | None = module.__dict__.get(_SPARSE)
    if units is not None and not torch.compiler.is_compiling():  # compiled, a block is dense
        out = units(*_formed(module, recipe, tensors))
        if out is not None:
            return out
    if not recipe.definition.parameters:
        form = Form(recipe.definition, recipe.layout, not recipe.gate_first)
        return ffn.run(Tensors(*ffn.autocast(tensors)), form, recipe.memory)
    return ffn.feed_forward(
        *tensors, activation=recipe.definition, parameters=learned(module, recipe), memory=recipe.memory,
        layout="separate" if recipe.layout == "plain" else recipe.layout, first="gate" if recipe.gate_first else "up")


def _autocasts(x: Tensor) -> bool:
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
