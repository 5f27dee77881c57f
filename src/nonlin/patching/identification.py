"""Find the activation that a feed-forward block computes, by computing it.

The block is run with values of our choice in place of the outputs of its gate and up projections. The input of its
down projection is compared, in float32, with every definition of the catalog in every layout. So the code of the
block may look as it likes, functional calls included.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn

from nonlin import functional
from nonlin.errors import told
from nonlin.functions import Definition, get, names
from nonlin.functions.catalog import CATALOG
from nonlin.functions.definition import gated
from nonlin.kernels.torch import backend as torch_backend
from nonlin.patching.blocks import Block, Layout, Projection, first_tensor, split
from nonlin.patching.configuration import claimed
from nonlin.patching.keeping import left_as_it_was

_POINTS = 6144
_ROUNDING = 32.0  # times float32's epsilon and the product's scale: what a few roundings can make
_CORE = 2.0  # a definition that agrees on less than ±this is no match at all

Status = Literal["found", "ambiguous", "partial", "unknown"]


@dataclass(frozen=True)
class Match:
    """A definition that gives the block's numbers, where gate and up lie, and its parameters' values."""

    definition: Definition
    layout: Layout
    gate_first: bool
    parameters: dict[str, float]

    @property
    def label(self) -> str:
        """The name, with fitted parameters."""
        values = ", ".join(f"{name}={value:.4g}" for name, value in self.parameters.items())
        return f"{self.definition.name}({values})" if values else self.definition.name


@dataclass(frozen=True)
class Identified:
    """The activations that computing finds in a block.

    ``status`` is "found" where one activation fits. It is "ambiguous" where several do; ``matches`` has them, the
    simplest first. It is "partial" where the one in ``matches`` fits while \\|gate\\| and \\|up\\| stay below
    ``within`` and not beyond, as when a clamp is missing. It is "unknown" where none fits; then ``reason`` says why.
    ``block`` has gate and up where they were found to be.
    """

    block: Block
    status: Status
    matches: tuple[Match, ...] = ()
    within: float | None = None
    reason: str = ""

    @property
    def definition(self) -> Definition | None:
        """The activation, where one was found."""
        return self.matches[0].definition if self.status == "found" else None

    @property
    def label(self) -> str:
        """The answer in a few words."""
        if self.status == "unknown":
            return "unknown"
        name = " or ".join(m.label for m in self.matches)
        return f"{name} for |x| < {self.within:.3g} only" if self.status == "partial" else name


@functools.cache
def _values(count: int, seed: int) -> Tensor:
    """Return probing values in float32: dense near zero, out to ±14, and some far out where clamps are."""
    rng = np.random.default_rng(seed)
    near, middle, far = rng.normal(0, 1.5, count), rng.uniform(-14, 14, count), rng.uniform(-45, 45, count)
    which = rng.choice(3, count, p=(0.5, 0.35, 0.15))
    return torch.from_numpy(np.choose(which, (near, middle, far)).astype(np.float32))


class _Captured(Exception):
    """The product has been seen: the rest of the block need not run."""


def capture(block: Block, run: Callable[[], Any]) -> tuple[tuple[Tensor, ...], Tensor] | None:
    """Run ``run()`` with our values in place of the projections' outputs; return (injected, product).

    ``injected`` has one tensor for each module that projects in (1 where plain or packed, 2 where separate).
    None where the run never came through the block, or came through with other shapes.
    """
    modules = _input_modules(block)
    given: list[Tensor | None] = [None] * len(modules)
    seen: list[Tensor] = []
    handles = []

    def inject(i: int) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            width = out.shape[-1]
            rows = out.numel() // width
            values = given[i] = _values(rows * width, i).to(out.device).view(rows, width)
            return values.view(out.shape).clone()  # an activation may write into it

        return hook

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        came = first_tensor(args, kwargs)
        if came is not None:
            seen.append(came.detach().reshape(-1, came.shape[-1]))
        raise _Captured

    for i, p in enumerate(modules):
        handles.append(p.module.register_forward_hook(inject(i)))
    handles.append(block.down.module.register_forward_pre_hook(catch, with_kwargs=True))
    try:
        with torch.no_grad(), contextlib.suppress(_Captured):
            run()
    finally:
        for handle in handles:
            handle.remove()
    injected = tuple(v for v in given if v is not None)
    if not seen or len(injected) != len(modules) or any(v.shape[0] != seen[0].shape[0] for v in injected):
        return None
    return tuple(v.cpu() for v in injected), seen[0].cpu()


def _input_modules(block: Block) -> list[Projection]:
    if block.gate is None or block.gate.module is block.up.module:
        return [block.up]
    return [block.gate, block.up]


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put the module's parts into evaluation mode and back, each as it was; draw nothing from its random stream."""
    modes = [(m, m.training) for m in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _probe(block: Block, run: Callable[[], Any] | None) -> tuple[tuple[Tensor, ...], Tensor] | str:
    """Get the block to compute on our values: alone if it can be called alone, else by ``run``."""
    if block.stacked:
        return _probe_experts(block)
    weight = block.up.weight
    rows = max(2, -(-_POINTS // block.hidden))
    x = torch.zeros(1, rows, block.dim, dtype=weight.dtype, device=weight.device)
    reason = ""
    alone: Any = getattr(block.module, "feed_forward_chunk", block.module)  # BERT's layer attends first, in chunks
    for attempt in (lambda: alone(x), run):
        if attempt is None:
            continue
        with evaluating(block.module), left_as_it_was(block.module):
            try:
                seen = capture(block, attempt)
            except Exception as error:  # any code may stand in a block; what it raised is the reason given
                reason = f"it cannot be called alone ({told(error)})"
                continue
        if seen is not None:
            return seen
        reason = reason or "running it did not pass through its projections"
    return reason


def _probe_experts(block: Block) -> tuple[tuple[Tensor, ...], Tensor] | str:
    module: Any = block.module
    rows = max(2, -(-_POINTS // block.hidden))
    width = block.hidden * (2 if block.gated else 1)
    values = _values(rows * width, 0).to(block.up.weight.device).view(rows, width)
    function = getattr(module, "_apply_gate", None) if block.gated else getattr(module, "act_fn", None)
    if function is None:
        return "its experts apply the activation inside their forward, which cannot be called on chosen values"
    try:
        with torch.no_grad(), evaluating(module), left_as_it_was(module):
            product = function(values.clone())  # it may write into them
    except Exception as error:  # any code may stand there; what it raised is the reason given
        return f"its activation cannot be called alone ({told(error)})"
    if not isinstance(product, Tensor):
        return f"its activation returns {type(product).__name__}, not a tensor"
    return (values.cpu(),), product.cpu()


def _arrangements(block: Block, injected: tuple[Tensor, ...]) -> Iterator[tuple[Layout, bool, tuple[Tensor, ...]]]:
    """Yield every way in which the injected values may be gate and up, the one that the structure suggests first."""
    if not block.gated:
        yield "plain", True, injected
    elif len(injected) == 2:
        yield "separate", True, injected
        yield "separate", False, injected[::-1]
    else:
        halves: list[tuple[Layout, bool]] = [("concatenated", True), ("concatenated", False)]
        rows: list[tuple[Layout, bool]] = [("interleaved", True), ("interleaved", False)]
        for layout, gate_first in (rows + halves if block.layout == "interleaved" else halves + rows):
            first, second = ("first", "second") if layout == "concatenated" else ("even", "odd")
            parts = split(injected[0], first), split(injected[0], second)  # type: ignore[arg-type]
            yield layout, gate_first, parts if gate_first else parts[::-1]


@functools.cache
def _composites() -> tuple[Definition, ...]:
    """act(gate) * up for the pointwise activations whose gated form has no name of its own."""
    taken = {d.expr for d in CATALOG if d.kind == "gated"}
    made = (gated(f"{d.name}_glu", d) for d in CATALOG if d.kind == "pointwise" and d.name not in ("identity",))
    return tuple(d for d in made if d.expr not in taken)


def candidates(is_gated: bool, extra: Sequence[Definition] = ()) -> list[Definition]:
    """Return every definition that a block of this kind may compute, those of fewer parameters first."""
    known = [d for d in map(get, names()) if d.gated == is_gated]
    pool = [*extra, *known, *(_composites() if is_gated else ())]
    unique: dict[str, Definition] = {}
    for d in pool:
        unique.setdefault(d.name if d.expr is None else d.key, d)
    return sorted(unique.values(), key=lambda d: len(d.parameters))


def _compute(definition: Definition, inputs: tuple[Tensor, ...], parameters: dict[str, float]) -> Tensor:
    """Compute the definition in float64."""
    wide = tuple(x.double() for x in inputs)
    if definition.expr is None:
        return functional.activation(definition)(*wide)
    return torch_backend.forward(definition, wide, [wide[0].new_tensor([parameters[q.name]])
                                                    for q in definition.parameters])


def _errors(expected: Tensor, product: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the error in units of the expected rounding error: up to 1 is equality."""
    scale = expected.abs()
    size = torch.ones_like(expected)
    for x in inputs:
        size = size * x.double().abs().clamp(min=1.0)
    allowed = _ROUNDING * torch.finfo(torch.float32).eps * (scale + size)
    if torch.finfo(product.dtype).bits < 32:
        # The block itself rounded its input or its output to half precision.
        allowed = allowed + torch.finfo(product.dtype).eps * (2 * scale + size / 2)
    error = (product.double() - expected).abs() / allowed
    return torch.nan_to_num(error, nan=torch.inf)


def _fit(definition: Definition, inputs: tuple[Tensor, ...], product: Tensor) -> dict[str, float]:
    """Return the parameters' values that bring the definition closest."""
    if not definition.parameters:
        return {}
    near = torch.stack([x.abs() for x in inputs]).amax(0).flatten() < 8
    few = tuple(x.flatten()[near][:400] for x in inputs)
    target = product.flatten()[near][:400].double()

    def residual(values: np.ndarray) -> np.ndarray:
        named = dict(zip((q.name for q in definition.parameters), values.tolist(), strict=True))
        return torch.nan_to_num(_compute(definition, few, named) - target, nan=1e6).numpy()

    start = np.array([q.initial for q in definition.parameters])
    found = optimize.least_squares(residual, start, xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=60)
    return {q.name: float(v) for q, v in zip(definition.parameters, found.x, strict=True)}


def identify(block: Block, run: Callable[[], Any] | None = None, extra: Sequence[Definition] = ()) -> Identified:
    """Return which activation the block computes, and where its gate and up lie.

    The block is called by itself on (1, rows, D); where it cannot be, ``run()``, which must run the model on any
    input, serves. ``extra`` are definitions to try beside the catalog's (a configuration's own constants). The model
    is left as it was: no weight is changed, nothing is drawn from a random stream.

    >>> from nonlin.patching.finding import find_blocks
    >>> model = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 4))
    >>> identify(find_blocks(model)[0]).label
    'silu'
    """
    seen = _probe(block, run)
    return Identified(block, "unknown", reason=seen) if isinstance(seen, str) else compare(block, *seen, extra)


def identify_all(model: nn.Module, blocks: Sequence[Block], run: Callable[[], Any] | None = None
                 ) -> list[Identified]:
    """Return :func:`identify` of every block, with the constants of its own configuration tried too."""
    known: list[tuple[tuple[Tensor, ...], Tensor, Identified]] = []
    found = []
    for block in blocks:
        claim = claimed(model, block)
        seen = _probe(block, run)
        if isinstance(seen, str):
            found.append(Identified(block, "unknown", reason=seen))
            continue
        # Layers repeat: the same bits on the same values are the same function.
        same = next((answer for injected, product, answer in known if answer.block.layout == block.layout
                     and torch.equal(product, seen[1]) and all(map(torch.equal, injected, seen[0]))), None)
        answer = _placed(same, block) if same is not None else compare(
            block, *seen, [claim] if claim is not None and claim.gated == block.gated else [])
        if same is None and answer.block.layout == block.layout:
            known.append((*seen, answer))
        found.append(answer)
    return found


def _placed(answer: Identified, block: Block) -> Identified:
    """Return the same answer for another block."""
    if not (block.gated and answer.matches):
        return replace(answer, block=block)
    return replace(answer, block=block.with_layout(answer.matches[0].layout, answer.matches[0].gate_first))


def compare(block: Block, injected: tuple[Tensor, ...], product: Tensor, extra: Sequence[Definition] = ()
            ) -> Identified:
    """Return what fits ``product`` (rows, H) for the values (rows, H), or (rows, 2 H), that came in."""
    matches: dict[str, Match] = {}
    partial: tuple[float, Match] | None = None
    closest: tuple[float, str] = (float("inf"), "nothing")
    arranged = [a for a in _arrangements(block, injected) if a[2][0].shape == product.shape]
    for definition in candidates(block.gated, extra):
        if definition.parameters and matches:
            break  # a special case of it already fits
        for layout, gate_first, inputs in arranged:
            if definition.name in matches:
                break
            parameters = _fit(definition, inputs, product)
            within, off = _agreement(definition, inputs, product, parameters)
            closest = min(closest, (off, definition.name))
            match = Match(definition, layout, gate_first, parameters)
            if within == float("inf"):
                matches[definition.name] = match
            elif within > _CORE and (partial is None or within > partial[0]):
                partial = within, match
    if matches:
        status: Status = "found" if len(matches) == 1 else "ambiguous"
        return _placed(Identified(block, status, tuple(matches.values())), block)
    if partial is not None:
        within, match = partial
        return _placed(Identified(block, "partial", (match,), within, f"it equals {match.definition.name} below "
                                  f"{within:.3g} and differs beyond"), block)
    return Identified(block, "unknown", reason=f"no definition fits; the closest is {closest[1]}, off by "
                      f"{closest[0]:.2g} at the median")


def _agreement(definition: Definition, inputs: tuple[Tensor, ...], product: Tensor, parameters: dict[str, float]
               ) -> tuple[float, float]:
    """(the least max(|gate|, |up|) where they differ, or infinity; the median error near zero)."""
    size = torch.stack([x.abs() for x in inputs]).amax(0)
    whole = definition.expr is None  # what normalizes over a row needs all of it
    core = slice(None) if whole else (size < _CORE).flatten().nonzero().flatten()[:256]
    if not whole and core.numel() < 32:  # type: ignore[union-attr]  # values that are not of our choice
        core = size.flatten().topk(min(256, size.numel()), largest=False).indices
    few = inputs if whole else tuple(x.flatten()[core] for x in inputs)
    seen = product if whole else product.flatten()[core]
    expected = _compute(definition, few, parameters)
    off = float((expected - seen.double()).abs().median())
    if float(_errors(expected, seen, few).max()) > 1:
        return 0.0, off
    wrong = _errors(_compute(definition, inputs, parameters), product, inputs) > 1
    return (float(size[wrong].min()) if bool(wrong.any()) else float("inf")), off
