"""Find the feed-forward blocks of any torch model.

They are found by structure, not by a list of families: a projection into a hidden width (one, two, or one of twice the
width) and one out of it, whatever their names. Names decide one thing only: that attention, recurrences and other
mixers of positions, whose projections may have the same shapes, are no feed-forward blocks.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from nonlin.errors import UserError, rule
from nonlin.patching.blocks import Block, Part, Projection, projection_of, sizes_of

# Names of parts that hold no feed-forward block, and of those that may hold one deep inside.
_NEVER = re.compile(r"\bqkv|(^|\.)quer|rotary|pooler|lm_head|router|project_(in|out)", re.I)
_SELDOM = re.compile(r"attn|attention|embed", re.I)
_GATE = re.compile(r"gate|wi_0|linear_g\b|\bw1\b|\bw_0\b|\bv\b", re.I)
# Names of classes: those of mixers of positions, and those of feed-forward blocks, which win.
_MIXES = re.compile(r"attention|attn|mixer|mamba|ssm|[ms]lstm|recurrent|retention|deltanet|conv|pooling|norm$|residual",
                    re.I)
_FEEDS = re.compile(r"mlp|ffn|feed_?forward|experts|densegated|denseact", re.I)
_FED = re.compile(r"(^|_)(ff|fc|mlp)")  # names of a block's projections in a layer that holds others too
_SECOND = re.compile(r"proj|adapt|align|connect|merger", re.I)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Convolved:
    """A feed-forward block whose products are convolutions of one position: found, and read by nothing here."""

    name: str
    module: nn.Module


def find_blocks(model: nn.Module) -> list[Block]:
    """Return the model's feed-forward blocks in the order of its modules; an empty list where it has none.

    A packed block's gate is taken to be the first half, and the two of a separate one are distinguished by name. That
    lasts until :func:`nonlin.patching.identification.identify` has computed which they are.

    >>> block = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4))
    >>> [(b.name, b.layout, b.dim, b.hidden, b.up.name, b.down.name) for b in find_blocks(block)]
    [('', 'plain', 4, 16, '0', '2')]
    """
    return [block for block in _of_any_width(model) if block.hidden and block.dim]


def _of_any_width(model: nn.Module) -> list[Block]:
    found: dict[int, Block] = {}
    for block in _walk("", model):
        found.setdefault(id(block.down.module), block)  # what several layers share is one block
    return list(found.values())


def find_convolved(model: nn.Module) -> list[Convolved]:
    """Return the feed-forward blocks whose products are convolutions of one position (SqueezeBERT, MobileViT).

    >>> find_convolved(nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4)))
    []
    """
    return [Convolved(name, module) for name, module in model.named_modules()
            if not _elsewhere(name) and _is_convolved(module)]


def some_blocks(model: nn.Module, call: str, argument: str = "model", shown: str | None = None) -> list[Block]:
    """Return the model's blocks; raise UserError, in the name of ``call``, where it has none that can be read."""
    found = find_blocks(model)
    if found:
        return found
    shown = type(model).__name__ if shown is None else shown
    if find_convolved(model):
        raise UserError(rule(call, argument, "have feed-forward blocks of matrix products", f"{shown}, whose blocks "
                             "are convolutions of one position", "Pass a model with linear layers."))
    if narrow := _of_any_width(model):
        raise UserError(rule(call, argument, "have feed-forward blocks of a hidden width of 1 or more",
                             f"{narrow[0].name}, of width 0", "Correct its configuration."))
    raise UserError(rule(call, argument, "have a feed-forward block (a projection into a hidden width and one out of "
                         "it)", shown, "Pass a language model, or any module with such a block."))


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _elsewhere(name: str) -> bool:
    return bool(_NEVER.search(name) or _SELDOM.search(name))


def _never(name: str, module: nn.Module) -> bool:
    return bool(_NEVER.search(name)) or type(module).__name__.lower().endswith("norm")


def _feeds(module: nn.Module) -> bool:
    return bool(_FEEDS.search(type(module).__name__))


def _walk(prefix: str, module: nn.Module) -> Iterator[Block]:
    experts = _experts(prefix, module) or _parallel(prefix, module)
    if experts is not None:
        yield experts
        return
    children = [(name, child) for name, child in module.named_children() if not _elsewhere(name)]
    direct = [p for name, child in children if (p := projection_of(_join(prefix, name), child))]
    inside: dict[str, list[Block]] = {}
    for name, child in module.named_children():
        if projection_of(name, child) is None and not _never(name, child):
            walk = _seldom if _SELDOM.search(name) else _walk
            inside[name] = list(walk(_join(prefix, name), child))
    below = [block for found in inside.values() for block in found]
    own: list[Block] = []
    if isinstance(module, nn.Sequential):
        own = list(_chain(prefix, module, direct))
    # A module around whole blocks holds projections for other ends (CLIP's two into the common space).
    elif not _mixes(module) and not below and (block := _match(prefix, module, direct)) is not None:
        own = [block] if _plausible(module, block, direct) else []
    if not own and not _mixes(module):
        spread = [p for name, child in children if (p := _only_projection(_join(prefix, name), child, inside))]
        spread = [*spread, *direct] if len(direct) == 1 and not below else spread
        own = list(_in_order(prefix, module, [*_pair(prefix, module, inside), *spread]))
    yield from own
    yield from below


def _seldom(prefix: str, module: nn.Module) -> Iterator[Block]:
    """Yield the blocks inside attention and embeddings: those whose class says that they are one."""
    if _feeds(module) and not _mixes(module):
        yield from _walk(prefix, module)
        return
    for name, child in module.named_children():
        if not _never(name, child):
            yield from _seldom(_join(prefix, name), child)


def _mixes(module: nn.Module) -> bool:
    """Whether a module mixes positions: by its class's name, where that does not say feed-forward or whole layer."""
    kind = type(module).__name__
    return bool(_MIXES.search(kind)) and not _feeds(module) and not re.search(r"(Layer|Model)$|Encoder|Decoder", kind)


def _plausible(module: nn.Module, block: Block, direct: list[Projection]) -> bool:
    """Whether the projections with the right shapes are a feed-forward block's, from what else the module holds."""
    if _feeds(module):
        return True
    used = {id(p.module) for p in block.projections.values()}
    others = [p for p in direct if id(p.module) not in used and not _GATE.search(_last(p))]
    named, fed = (all(re.search(words, _last(p)) for p in block.projections.values())
                  for words in (r"gate|up_|down", _FED))
    if others and not named and (not fed or any(re.search(_FED, _last(p)) for p in others)):
        return False  # Mamba, xLSTM: further products of the same values
    if block.gated and any(isinstance(child, _CONVOLUTIONS) for child in module.children()):
        return False  # a gated convolution
    if isinstance(module, nn.ModuleList) and block.dim == block.hidden:
        return False  # several of one kind (Gemma 3n)
    if block.gated or block.dim < block.hidden:
        return True
    # Two squares, or one product in two narrow parts (Gemma 3n): a row where their names are numbered, or something
    # stands beside them.
    if _numbered(block) or _SECOND.search(type(module).__name__) or _holds_activation(module):
        return True
    return named and block.dim > block.hidden


def _numbered(block: Block) -> bool:
    a, b = _last(block.up), _last(block.down)
    return a != b and re.sub(r"\d", "", a) == re.sub(r"\d", "", b)


def _holds_activation(module: nn.Module) -> bool:
    kinds = [child for child in module.children() if not isinstance(child, nn.Dropout)]
    return any(not list(child.parameters()) and not list(child.children()) for child in kinds)


def _only_projection(prefix: str, module: nn.Module, inside: dict[str, list[Block]]) -> Projection | None:
    """Return the one projection of a child that is none itself, without those of its blocks; its own go first."""
    if projection_of(prefix, module) is not None:
        return None
    taken = {id(p.module) for b in inside.get(prefix.rpartition(".")[2], ()) for p in b.projections.values()}
    found = [p for name, child in module.named_modules() if id(child) not in taken
             and (p := projection_of(_join(prefix, name), child)) and not _elsewhere(name)]
    own = [p for p in found if p.name.count(".") == prefix.count(".") + 1]
    return own[0] if len(own) == 1 else found[0] if len(found) == 1 else None


def _in_order(prefix: str, module: nn.Module, flat: list[Projection]) -> Iterator[Block]:
    """Yield blocks of projections that follow each other in neighbouring parts, the block being what is around them.

    BERT has one in each of two neighbours, CPM-Ant gate and up in one and down beside it.
    """
    chunked, at = hasattr(module, "feed_forward_chunk") or _feeds(module), 0
    while at < len(flat) - 1:
        sizes = [sizes_of(p) for p in flat[at:at + 3]]
        dim, hidden = sizes[0]
        square = dim == hidden and not chunked
        if not square and len(sizes) == 3 and sizes[1] == (dim, hidden) and sizes[2] == (hidden, dim):
            first, second = flat[at:at + 2]
            gate, up = (first, second) if _gate_first(first, second) else (second, first)
            yield Block(prefix, module, "separate", gate, up, flat[at + 2], dim, hidden)
            at += 3
        elif not square and sizes[1] == (hidden, dim):
            yield Block(prefix, module, "plain", None, flat[at], flat[at + 1], dim, hidden)
            at += 2
        elif hidden % 2 == 0 and sizes[1] == (hidden // 2, dim):
            gate, up = (replace(flat[at], part=part) for part in ("first", "second"))
            yield Block(prefix, module, "concatenated", gate, up, flat[at + 1], dim, hidden // 2)
            at += 2
        else:
            at += 1


def _pair(prefix: str, module: nn.Module, inside: dict[str, list[Block]]) -> list[Projection]:
    """Return gate and up where a part of their own holds both, and is no block itself."""
    for name, child in module.named_children():
        if inside.get(name):
            continue
        both = [p for inner, c in child.named_children() if (p := projection_of(f"{_join(prefix, name)}.{inner}", c))]
        if len(both) == 2 and len(list(child.modules())) <= 4 and sizes_of(both[0]) == sizes_of(both[1]) and (
                _feeds(child) or _feeds(module)):
            return both
    return []


def _gate_first(first: Projection, second: Projection) -> bool:
    return bool(_GATE.search(_last(first)) or not _GATE.search(_last(second)))


def _chain(prefix: str, module: nn.Module, direct: list[Projection]) -> Iterator[Block]:
    """Yield every two linear layers that follow each other with something between them, packed ones too."""
    names, children = zip(*module.named_children(), strict=True) if direct else ((), ())
    for up, down in itertools.pairwise(direct):
        between = children[names.index(_last(up)) + 1:names.index(_last(down))]
        (dim, width), hidden = sizes_of(up), sizes_of(down)[0]
        if width == hidden and between:
            yield Block(prefix, module, "plain", None, up, down, dim, hidden)
        elif width == 2 * hidden and between and not any(q.ndim > 1 for child in between for q in child.parameters()):
            gate, up = (replace(up, part=part) for part in ("first", "second"))  # something between halves it
            yield Block(prefix, module, "concatenated", gate, up, down, dim, hidden)


def _match(prefix: str, module: nn.Module, candidates: list[Projection]) -> Block | None:
    """Pair the projections by their shapes: D to H once or twice, or to 2 H; and H to D.

    The last pair counts, unless a block of three holds it: of LLaMA's w1, w2 and w3, w2 and w3 alone look like one.
    """
    found = [block for down in reversed(candidates) if (block := _paired(prefix, module, candidates, down)) is not None]
    last = {p.name for p in found[0].projections.values()} if found else set[str]()
    return next((block for block in found if block.layout == "separate"
                 and last <= {p.name for p in block.projections.values()}), found[0] if found else None)


def _paired(prefix: str, module: nn.Module, candidates: list[Projection], down: Projection) -> Block | None:
    """Return the block that ends with ``down``, or None."""
    hidden, dim = sizes_of(down)
    into = [p for p in candidates if p is not down and sizes_of(p)[0] == dim]
    single = [p for p in into if sizes_of(p)[1] == hidden]
    packed = [p for p in into if sizes_of(p)[1] == 2 * hidden]
    if len(single) == 2:
        gate, up = single if _gate_first(*single) else single[::-1]
        return Block(prefix, module, "separate", gate, up, down, dim, hidden)
    if len(single) == 1:
        return Block(prefix, module, "plain", None, single[0], down, dim, hidden)
    if len(packed) == 1 and not single:
        gate, up = (replace(packed[0], part=part) for part in ("first", "second"))
        return Block(prefix, module, "concatenated", gate, up, down, dim, hidden)
    return None


def _last(p: Projection) -> str:
    return p.name.rpartition(".")[2]


def _experts(prefix: str, module: nn.Module) -> Block | None:
    """Find experts whose weights are three-dimensional parameters, as ``transformers`` 5 keeps them."""
    own = {name: p for name, p in module.named_parameters(recurse=False) if p.ndim == 3}
    down = own.get("down_proj")
    into = "gate_up_proj" if "gate_up_proj" in own else "up_proj"
    if down is None or into not in own:
        return None
    gated, transposed = into == "gate_up_proj", bool(getattr(module, "is_transposed", False))

    def projection(parameter: str, part: Part = "all") -> Projection:
        bias = f"{parameter}_bias" if hasattr(module, f"{parameter}_bias") else None
        return Projection(prefix, module, parameter, bias, transposed, part)

    count, hidden, dim = down.shape if transposed else (down.shape[0], down.shape[2], down.shape[1])
    if not gated:
        return Block(prefix, module, "plain", None, projection(into), projection("down_proj"), dim, hidden, count)
    packed = bool(getattr(module, "is_concatenated", True))
    parts: tuple[Part, Part] = ("first", "second") if packed else ("even", "odd")
    gate, up = (projection(into, part) for part in parts)
    return Block(prefix, module, "concatenated" if packed else "interleaved", gate, up, projection("down_proj"), dim,
                 hidden, count)


def _parallel(prefix: str, module: nn.Module) -> Block | None:
    """Find experts whose products are modules of their own with one weight (E, out, in) each (JetMoE)."""
    if _mixes(module):
        return None
    found = [Projection(_join(prefix, name), child, bias_parameter=None) for name, child in module.named_children()
             if not _elsewhere(name) and not list(child.children()) and _is_stack(child)]
    if len(found) != 2 or found[0].weight.shape[0] != found[1].weight.shape[0]:
        return None
    (count, out, dim), (_, back, hidden) = found[0].weight.shape, found[1].weight.shape
    if back != dim or out not in (hidden, 2 * hidden):
        return None
    if out == hidden:
        return Block(prefix, module, "plain", None, found[0], found[1], dim, hidden, count)
    gate, up = (replace(found[0], part=part) for part in ("first", "second"))
    return Block(prefix, module, "concatenated", gate, up, found[1], dim, hidden, count)


def _is_stack(module: nn.Module) -> bool:
    own = dict(module.named_parameters(recurse=False))
    return set(own) == {"weight"} and own["weight"].ndim == 3 and not isinstance(module, _CONVOLUTIONS)


def _is_convolved(module: nn.Module) -> bool:
    """Whether a layer's parts are two convolutions of one position, into a wider width and back."""
    found = []
    for name, child in module.named_children():
        if not _elsewhere(name):
            found += [m for m in (child, *child.children()) if isinstance(m, _CONVOLUTIONS)][:1]
    for up, down in itertools.pairwise(found):
        if {*up.kernel_size, *down.kernel_size} == {1} and up.in_channels == down.out_channels and (
                up.out_channels == down.in_channels != up.in_channels):
            return isinstance(up, nn.Conv1d) or _feeds(module)
    return False
