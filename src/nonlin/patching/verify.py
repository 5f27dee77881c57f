"""Proof by computing that a block and its replacement are the same function, value and gradients.

A block is run beside its replacement on random inputs of many sizes. The first proof is in float64 on a copy, where
equality is sharp; it compares gradients and training mode too. The second is of the block as it stands, in its dtype.
"""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nonlin.errors import told
from nonlin.functions import Definition
from nonlin.nn.modules import altered
from nonlin.patching.blocks import Block, some_tensor, split
from nonlin.patching.dropouts import set_to_zero, with_dropouts
from nonlin.patching.identification import Match, evaluating
from nonlin.patching.keeping import inside, looked_at, read, tensors, written
from nonlin.patching.patch import Recipe, install, part, uninstall

_SIZES = (0.1, 0.5, 2.0, 8.0, 32.0, 128.0)  # of the inputs' rows: clamps and tails are reached
_EXTREME = tuple(10.0**k for k in range(3, 38))  # and of more rows, as far as the block's dtype goes: extreme clamps
_LENGTHS = (1, 257, 1025, 4097)  # numbers of tokens at which a block may change its ways
_LONG = 2e10  # multiplications that a long input may cost
_SHARP = 1e-6  # of a row's norm, in float64: a block may compute parts in float32, whose epsilon is 1.2e-7
_ROUNDINGS = 8.0  # of a row's norm, in the block's own epsilon: both sides round a handful of times


class Refused(Exception):
    """Why a block cannot be proved equal to its replacement."""


@dataclass(frozen=True)
class Replacement:
    """The replacement of a block, and a key that is equal for blocks of one kind."""

    block: Block
    recipe: Recipe
    kind: Any


def replacement(block: Block, match: Match, memory: str) -> Replacement:
    """Return how a block that was identified is replaced; raise Refused, with the reason, where it cannot be."""
    try:
        return _replacement(block, match, memory)
    except Refused:
        raise
    except Exception as error:  # any code may stand in a block
        raise Refused(f"it cannot be run alone ({told(error)})") from error


def _replacement(block: Block, match: Match, memory: str) -> Replacement:
    definition, module = match.definition, block.module
    if block.experts and not block.stacked:
        raise Refused("its experts are products of their own modules, sorted by expert between them")
    if block.experts:
        return _of_experts(block, definition, match.gate_first, memory)
    if block.gated:
        block = block.with_layout(match.layout, match.gate_first)
    style = "layer" if hasattr(module, "feed_forward_chunk") else "block"
    if style == "layer" and not hasattr(module.output, "LayerNorm"):
        raise Refused("its layer has its norm before the block, not after it")
    paths = {role: _within(block, p.name) for role, p in block.projections.items()}
    packed = block.layout in ("concatenated", "interleaved")
    recipe = Recipe(
        definition, style, block.layout, gate_first=not packed or match.gate_first,
        gate=None if packed else paths.get("gate"), up=paths["up"], down=paths["down"],
        activation=_holder(block, definition), argument=_argument(module, style),
        fused=tuple({type(p.module) for p in block.projections.values() if _is_product(p.module)}), memory=memory)
    recipe = _with_dropouts(block, recipe)
    kind = (type(module), recipe, tuple(
        (name, type(m), m.training, getattr(m, "p", None)) for name, m in module.named_modules()))
    return Replacement(block, recipe, kind)


def _with_dropouts(block: Block, recipe: Recipe) -> Recipe:
    def run() -> None:
        with torch.no_grad(), evaluating(block.module):
            _attempt(block, recipe, inputs(block, recipe, rows=1))

    found = with_dropouts(recipe, block.module, [_within(block, p.name) for p in block.projections.values()], run)
    if isinstance(found, str):
        raise Refused(found)
    return found


def _within(block: Block, name: str) -> str:
    return name[len(block.name) + 1:] if block.name else name


def _function(module: nn.Module, style: str) -> Callable[..., Tensor]:
    return module.feed_forward_chunk if style == "layer" else module.forward  # type: ignore[return-value]


def _argument(module: nn.Module, style: str) -> str:
    """Return the name of the block's one argument; other arguments would be lost."""
    if "forward" in module.__dict__ or hasattr(module, "_hf_hook"):
        raise Refused("its forward is wrapped by something else (accelerate's hooks for several devices do that)")
    function = _function(module, style)
    names = [q.name for q in inspect.signature(function).parameters.values() if q.kind != q.VAR_KEYWORD]
    if len(names) != 1:
        raise Refused(f"it takes more than its input ({', '.join(names)}): it is more than a feed-forward block")
    return names[0]


def _is_product(module: nn.Module) -> bool:
    """Whether a projection may be a plain matrix product: it has a weight, a bias, and no parts."""
    own = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    return not list(module.children()) and own <= {"weight", "bias"}


def _holder(block: Block, definition: Definition) -> str | None:
    """Return the path of the module that holds the activation's learnable parameters."""
    if not definition.parameters:
        return None
    wanted = {q.name for q in definition.parameters}
    for path, module in block.module.named_modules():
        if wanted <= {name for name, _ in module.named_parameters(recurse=False)}:
            return path
    raise Refused(f"it computes {definition.name}, and where it keeps {', '.join(sorted(wanted))} was not found")


def refuse_weights(block: Block) -> None:
    """Raise Refused for weights that are not plain tensors on one device."""
    tensors = [t for p in block.projections.values() for t in list(p.module.parameters()) or [p.weight]]
    for tensor in tensors:
        if tensor.is_complex():
            raise Refused(f"its weights are {tensor.dtype}, not real numbers")
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            raise Refused(f"its weights are {tensor.dtype}: quantized weights stay as they are")
        if type(tensor) not in (nn.Parameter, Tensor):
            kind = type(tensor.data).__name__ if type(tensor) is nn.Parameter else type(tensor).__name__
            raise Refused(f"its weights are {kind}, not plain tensors (for FSDP2, accelerate before fully_shard)")
    if len({t.device for t in tensors}) > 1:
        raise Refused("its weights lie on several devices")
    if any(t.device.type == "meta" for t in tensors):
        raise Refused("its weights are not loaded (meta device)")
    if not all(bool(t.detach().isfinite().all()) for t in tensors):
        raise Refused("its weights hold infinite numbers or nan, with which nothing can be compared")


def _of_experts(block: Block, definition: Definition, gate_first: bool, memory: str) -> Replacement:
    module: Any = block.module
    if not block.gated or definition.parameters:
        raise Refused("its experts are not of the form act(gate) * up without parameters")
    used: list[int] = []
    original = module._apply_gate
    module._apply_gate = lambda packed: (used.append(1), original(packed))[1]
    weight = block.down.weight
    x = torch.zeros(2, block.dim, dtype=weight.dtype, device=weight.device)
    chosen = torch.zeros(2, 1, dtype=torch.long, device=weight.device)
    try:
        with torch.no_grad():
            module(x, chosen, torch.ones(2, 1, dtype=weight.dtype, device=weight.device))
    except Exception as error:
        raise Refused(f"its experts cannot be called alone ({told(error)})") from error
    finally:
        del module.__dict__["_apply_gate"]
    if not used:
        raise Refused("its experts write the activation inside their loop: call "
                      "model.set_experts_implementation('grouped_mm') first")
    layout = "interleaved" if block.layout == "interleaved" else "concatenated"
    recipe = Recipe(definition, "experts", layout, gate_first=gate_first, memory=memory)
    return Replacement(block, recipe, (type(module), definition.name, recipe.layout, gate_first))


def prove(made: Replacement, sharp: bool, whole: bool = False) -> tuple[str, ...] | None:
    """Raise Refused unless block and replacement are equal; ``sharp`` adds the proof in float64, on a copy.

    ``whole`` adds that the block does nothing beside: it writes nothing that it keeps, and reads no tensor but
    weights. With both, return the paths of the attributes that it reads.

    In float64 on a copy, values are compared on rows of sizes 0.1 to 128 and of every power of ten up to 1e37. They
    count where the block's own answer is finite. Inputs are of 1 to 4,097 tokens, as far as 2e10 multiplications
    allow, and a batch. Gradients by the input and every parameter, and training mode, are compared too. In the block's
    own dtype, values are compared on rows of all those sizes that the dtype holds. Beyond that nothing is proved. An
    exception of the block is a refusal; the module is left as it was.
    """
    try:
        reads = _prove_sharply(made, whole) if sharp else None
        eps, where = torch.finfo(_dtype(made.block)).eps, f"in {str(_dtype(made.block)).removeprefix('torch.')}"
        _compare(made.block, made.recipe, inputs(made.block, made.recipe), _ROUNDINGS * eps, where)
        _compare(made.block, made.recipe, extreme(made.block, made.recipe), _ROUNDINGS * eps, f"{where} at extreme "
                 "values")
        return reads
    except Refused:
        raise
    except Exception as error:  # any code may stand in a block, and not all of it can be run otherwise than it was
        raise Refused(f"the proof cannot run it ({told(error)})") from error


def _prove_sharply(made: Replacement, whole: bool) -> tuple[str, ...] | None:
    twin = copy.deepcopy(made.block.module).double()
    other, recipe, kept = replace(made.block, module=twin), made.recipe, tensors(twin)
    _compare(other, recipe, inputs(other, recipe), _SHARP, "in float64")
    _compare(other, recipe, extreme(other, recipe), _SHARP, "in float64 at extreme values")
    for x in _shaped(other, recipe):
        _compare(other, recipe, x, _SHARP, f"on an input of the shape {tuple(x.shape)}")
    if recipe.style != "experts":
        _compare_gradients(other, recipe)
        _compare_training(other, recipe)
    return _beside(other, recipe, kept) if whole else None


def _beside(block: Block, recipe: Recipe, kept: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return what a block's own forward reads beside; raise Refused for what its replacement would not do.

    ``kept``: the tensors that it had before it was run.
    It may write what the block keeps (a penalty on the hidden values, a counter), or read a tensor that may change (a
    mask of units): values and gradients, which are equal now, do not tell.
    """
    x, twin = inputs(block, recipe, rows=1), block.module
    products = tuple(path for path in (recipe.gate, recipe.up, recipe.down) if path)
    replaced = (*products, recipe.activation) if recipe.activation else products
    # A projection that is more than its weights is called, and writes as ever: an observer, one with a hook.
    called = tuple(path for path in products if altered(part(twin, path), recipe.stock))  # type: ignore[attr-defined]

    def out() -> Tensor:
        return _run(block, recipe, x)

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for mode in (True, False):
            if (path := written(twin.train(mode), called, out)) is not None:
                raise Refused(f"each call writes {path}, which a replacement would not")
        if (path := read(twin, (path for path in kept if not inside(path, replaced)), out)) is not None:
            raise Refused(f"its output depends on the tensor {path}, which may change")
        return looked_at(twin, lambda: [(twin.train(mode), out()) for mode in (True, False)])


def _dtype(block: Block) -> torch.dtype:
    return some_tensor(block.module).dtype


def inputs(block: Block, recipe: Recipe, rows: int = 4, sizes: tuple[float, ...] = _SIZES) -> Tensor:
    """Return random rows of several sizes in the block's dtype: (1, N, D), or what experts activate (N, 2 H)."""
    some = some_tensor(block.module)
    width = 2 * block.hidden if recipe.style == "experts" else block.dim
    wide: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    x = torch.randn(len(sizes), rows, width, generator=torch.Generator().manual_seed(0), **wide)
    x = (x * torch.tensor(sizes, **wide)[:, None, None]).flatten(0, 1)
    x = x.to(some.device, _dtype(block))
    return x if recipe.style == "experts" else x[None]


def extreme(block: Block, recipe: Recipe) -> Tensor:
    """Return random rows of every power of ten that the block's dtype holds, from 1,000 on; see :func:`inputs`."""
    largest = torch.finfo(_dtype(block)).max
    return inputs(block, recipe, 1, tuple(size for size in _EXTREME if size < largest / 8))


def _shaped(block: Block, recipe: Recipe) -> Iterator[Tensor]:
    """Yield inputs of other lengths and shapes than the others: a block may compute otherwise on them."""
    x = inputs(block, recipe)
    if recipe.style == "experts":
        yield x[None]
        return
    yield x[:, :6].reshape(2, 3, -1)
    for length in _LENGTHS:
        if length * block.dim * block.hidden * len(block.projections) <= _LONG:
            yield x.repeat(1, -(-length // x.shape[1]), 1)[:, :length]


@contextlib.contextmanager
def replaced(module: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Replace the block for a moment."""
    install(module, recipe)
    try:
        yield
    finally:
        uninstall(module)


def same_values(made: Replacement, other: nn.Module) -> bool:
    """Return whether another module, of the block's own class, gives the values that the block's module now gives."""
    x = inputs(made.block, made.recipe)
    try:
        with torch.no_grad(), evaluating(made.block.module), evaluating(other):
            ours, theirs = (_run(replace(made.block, module=m), made.recipe, x) for m in (made.block.module, other))
        _equal(theirs, ours, 8 * _ROUNDINGS * torch.finfo(_dtype(made.block)).eps, "")
    except Exception:  # a module that cannot be run gives no values
        return False
    return True


def _run(block: Block, recipe: Recipe, x: Tensor) -> Tensor:
    if recipe.style == "experts":
        return block.module._apply_gate(x)  # type: ignore[operator]
    return _function(block.module, recipe.style)(x)


def _compare(block: Block, recipe: Recipe, x: Tensor, tolerance: float, where: str) -> None:
    if not x.numel():
        return
    with torch.no_grad(), evaluating(block.module):
        expected = _attempt(block, recipe, x)
        with replaced(block.module, recipe):
            got = _run(block, recipe, x)
    _equal(got, expected, tolerance, f"the outputs differ {where}")


def _attempt(block: Block, recipe: Recipe, x: Tensor) -> Tensor:
    try:
        out = _run(block, recipe, x)
    except Exception as error:  # any code may stand in a block; what it raised is the reason given
        raise Refused(f"it cannot be run alone ({told(error)})") from error
    if not isinstance(out, Tensor):
        raise Refused(f"it returns {type(out).__name__}, not a tensor")
    return out


def _equal(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise Refused(f"{what}: {tuple(got.shape)} {got.dtype} for {tuple(expected.shape)} {expected.dtype}")
    says = expected.isfinite().all(-1, keepdim=True)  # a row that overflows says nothing
    if torch.finfo(expected.dtype).bits < 32:
        says &= got.isfinite().all(-1, keepdim=True)  # where a product lies at the range's end, rounding decides
    zero = torch.zeros((), dtype=torch.float64, device=got.device)
    got, expected = got.double().where(says, zero), expected.double().where(says, zero)
    unit = expected.abs().amax(-1, keepdim=True)
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))
    got, expected = got / unit, expected / unit
    size = expected.norm(dim=-1)
    off = (got - expected).norm(dim=-1) / torch.where(size > 0, size, torch.ones_like(size))
    worst = float(torch.nan_to_num(off, nan=float("inf")).max())
    if not worst <= tolerance:
        raise Refused(f"{what}, by {worst:.2g} of a row's norm: something stands in the block beside projections and "
                      "activation")


def _compare_gradients(block: Block, recipe: Recipe) -> None:
    """Compare the gradients by the input and by every parameter, in evaluation mode."""
    x = inputs(block, recipe)
    parameters = [q for q in block.module.parameters() if q.is_floating_point()]
    for q in parameters:
        q.requires_grad_(True)

    def gradients() -> list[Tensor]:
        leaf = x.clone().requires_grad_(True)
        out = _run(block, recipe, leaf)
        towards = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype, device="cpu")
        found = torch.autograd.grad((out * towards.to(out.device)).sum(), [leaf, *parameters], allow_unused=True,
                                    materialize_grads=True)
        return [g.flatten() for g in found]

    with torch.enable_grad(), evaluating(block.module):
        expected = gradients()
        with replaced(block.module, recipe):
            got = gradients()
    for a, b in zip(got, expected, strict=True):
        _equal(a, b, _SHARP, "the gradients differ")


def _compare_training(block: Block, recipe: Recipe) -> None:
    """Compare block and replacement in training mode, with the dropouts that are known set to 0."""
    block.module.train()
    set_to_zero(block.module, recipe)
    x = inputs(block, recipe)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        expected = _run(block, recipe, x)
        with replaced(block.module, recipe):
            got = _run(block, recipe, x)
    try:
        _equal(got, expected, _SHARP, "")
    except Refused as error:
        raise Refused("it computes something else in training mode than in evaluation, which is no known dropout"
                      ) from error


def activation_path(made: Replacement) -> str | None:
    """Return the path of the one module that the block calls on what its gate (or its only product) gives; or None."""
    module, recipe, gate = made.block.module, made.recipe, made.block.gate
    known = {recipe.up, recipe.down, recipe.gate, recipe.hidden_dropout, recipe.out_dropout}
    x = inputs(made.block, recipe, rows=1)
    products = [split(x, gate.part)] if recipe.style == "experts" and gate is not None else []
    seen: list[str] = []

    def product(_: Any, args: Any, out: Tensor) -> None:
        products.append(out if gate is None else gate.output(out))

    def called(path: str) -> Callable[..., None]:
        def hook(_: Any, args: Any) -> None:
            if products and args and args[0].shape == products[-1].shape and torch.equal(args[0], products[-1]):
                seen.append(path)
        return hook

    handles = [] if products else [part(module, recipe.gate or recipe.up).register_forward_hook(product)]
    handles += [m.register_forward_pre_hook(called(path)) for path, m in module.named_modules()
                if path and path not in known]
    try:
        with torch.no_grad(), evaluating(module):
            _run(made.block, recipe, x)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0] if len(seen) == 1 else None
