"""``nonlin.accelerate(model, sparse=True)``: which blocks skip hidden units at few tokens, from which threshold on.

Every block is given inputs of the model's own. If the activation is zero on a set, zeros are skipped and nothing
else. Elsewhere a threshold is fitted on one part of the inputs (TEAL, arXiv:2408.14690); its error is measured on
another. Then each block is timed, dense beside sparse, on this machine.
"""

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from nonlin.errors import UserError
from nonlin.kernels import dispatch
from nonlin.kernels.ffn import sparse as products
from nonlin.kernels.ffn.layout import Form, Tensors, pair, split
from nonlin.patching.identification import evaluating
from nonlin.patching.observing import Asked, observed
from nonlin.patching.patch import compute, make_sparse, tensors_of
from nonlin.patching.verify import Replacement

COUNTS = (1, 2, 4, products.TOKENS)
"""The numbers of tokens at which dense and sparse are timed."""
_PAYS = 1.05  # times as fast, or the block stays dense: below it, another run may find the opposite
_ROUNDS, _FIT_ROWS, _STEPS = 7, 256, 12


@dataclass(frozen=True)
class Sparsity:
    """How one block computes at few tokens. ``tokens`` is the most at which it is sparse; 0: dense, for ``reason``.

    ``skipped`` is the share of hidden units left out of one token's product, and ``error`` the mean over tokens of
    the output's relative error (norms). Both are of tokens held out. An ``exact`` block leaves out zeros alone.
    ``ratios`` are dense time / sparse time by number of tokens, as measured here. ``copied_bytes`` is the memory of
    the copy of ``down`` by units. ``observed`` says on which inputs the share is.
    """

    name: str
    kind: str
    activation: str
    exact: bool = False
    threshold: float = 0.0
    skipped: float = 0.0
    error: float = 0.0
    tokens: int = 0
    ratios: dict[int, float] = field(default_factory=dict)
    copied_bytes: int = 0
    observed: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Prepared:
    """A block with its outcome so far, its units where it may be sparse, and inputs held out (N, D)."""

    made: Replacement
    outcome: Sparsity
    units: products.Units | None = None
    held: Tensor | None = None


def prepare(model: nn.Module, replacements: Sequence[Replacement], asked: Asked, run: Any) -> list[Prepared]:
    """Return every block with its threshold, or the reason for none. Raises UserError where none can be sparse.

    The model is not changed: its blocks compute as before while their inputs are observed.
    """
    with torch.no_grad(), evaluating(model):
        found = [_structure(made, asked) for made in replacements]
        seen = observed(model, [p.made for p in found if p.units is not None], asked, run)
        found = [p if p.units is None else _fitted(p, *seen.get(p.made.block.name, (None, "")), asked) for p in found]
    if all(p.units is None for p in found):
        reasons = "; ".join(dict.fromkeys(f"{p.outcome.kind}: {p.outcome.reason}" for p in found))
        raise UserError("accelerate: sparse must find a block with hidden units to skip; the model is as it was. "
                        f"{reasons}. Leave sparse out to accelerate without it.")
    return found


def _structure(made: Replacement, asked: Asked) -> Prepared:
    """Return the block with units where its layout and its activation allow them."""
    block, recipe = made.block, made.recipe
    outcome = Sparsity(block.name, type(block.module).__name__, recipe.definition.name)

    def refused(reason: str) -> Prepared:
        return Prepared(made, replace(outcome, reason=reason))

    if recipe.style != "block":
        return refused("its layer computes it, or its experts: sparse products are for blocks that are one module")
    if recipe.definition.expr is None:
        return refused("its activation is not pointwise")
    x = torch.zeros(1, block.dim, dtype=block.up.weight.dtype, device=block.up.weight.device)
    tensors = tensors_of(block.module, recipe, x)
    if tensors is None:
        return refused("its projections have to be called as modules (an adapter, a hook, or another dtype)")
    if reason := products.refusal(*tensors):
        return refused(reason)
    choice = products.choice_of(recipe.definition)
    if not choice.exact and not asked.approximate:
        return refused(f"{recipe.definition.name} is zero on no set, and without an error nothing can be skipped: "
                       "pass calibration= and share= or error=")
    return Prepared(made, replace(outcome, exact=choice.exact), products.Units())


def _fitted(p: Prepared, rows: Tensor | None, origin: str, asked: Asked) -> Prepared:
    """Return the block with its threshold, and its share and error on the last quarter of the inputs."""
    if rows is None or len(rows) < 8:
        return Prepared(p.made, replace(p.outcome, reason="it got fewer than eight tokens while inputs were observed"))
    assert p.units is not None
    fit, held = rows[:-(len(rows) // 4)], rows[-(len(rows) // 4):]
    block = _Float(p, fit)
    threshold = 0.0 if p.outcome.exact else (
        block.of_share(asked.share) if asked.share is not None else block.of_error(asked.error or 0.0))
    block = _Float(p, held)
    skipped, error = block.skipped(threshold), 0.0 if p.outcome.exact else float(block.errors(threshold).mean())
    outcome = replace(p.outcome, threshold=threshold, skipped=skipped, error=error, observed=origin)
    if not p.outcome.exact and asked.error is not None and not error <= asked.error:
        return Prepared(p.made, replace(outcome, reason=f"on tokens held out its error is {error:.2g}, above the "
                                        f"{asked.error:g} that was asked for"))
    units = products.Units(threshold)
    return Prepared(p.made, outcome, units, held[:256].clone())


class _Float:
    """A block on some rows, dense and in float32: what chooses units, the hidden values, and the last weight."""

    def __init__(self, p: Prepared, rows: Tensor):
        found = tensors_of(p.made.block.module, p.made.recipe, rows)
        assert found is not None
        (tensors, form), x = found, rows.float()
        self.down = tensors.down.float()
        self.bias = None if tensors.down_bias is None else tensors.down_bias.float()
        inputs = _first(tensors, form, x)
        self.hidden = dispatch.forward(form.definition, inputs, split(tensors.parameters, torch.float32))
        factor = products.choice_of(form.definition).factor
        self.size = (self.hidden if factor is None else dispatch.forward(factor, inputs[:1])).abs()

    def of_share(self, share: float) -> float:
        """Return the threshold that this share of all values is not above."""
        values = self.size.flatten()
        return float(values.kthvalue(max(1, round(share * values.numel()))).values)

    def errors(self, threshold: float, every: int = 1) -> Tensor:
        """Return each token's relative error of the output, the norm of what is left out by that of the whole."""
        hidden, size = self.hidden[::every], self.size[::every]
        lost = linear(hidden.where(size <= threshold, hidden.new_zeros(())), self.down)
        return lost.norm(dim=-1) / linear(hidden, self.down, self.bias).norm(dim=-1).clamp(min=1e-30)

    def of_error(self, error: float) -> float:
        """Return a threshold whose mean error, two standard errors added, is at most this; 0 where there is none."""
        low, high = 0.0, 1.0
        best = 0.0
        for _ in range(_STEPS):
            share = (low + high) / 2
            threshold = self.of_share(share)
            found = self.errors(threshold, -(-len(self.hidden) // _FIT_ROWS))
            spread = float(found.std()) / len(found)**0.5 if len(found) > 1 else 0.0
            if float(found.mean()) + 2 * spread <= error:
                low, best = share, threshold
            else:
                high = share
        return best

    def skipped(self, threshold: float) -> float:
        """Return the share of values that a token's product leaves out."""
        return float(((self.size <= threshold) | (self.hidden == 0)).float().mean())


def _first(tensors: Tensors, form: Form, x: Tensor) -> list[Tensor]:
    return [linear(x, w.float(), None if b is None else b.float())  # type: ignore[union-attr]
            for w, b in zip(pair(tensors.gate, tensors.up, form), pair(tensors.gate_bias, tensors.up_bias, form),
                            strict=True)]


def decide(prepared: Sequence[Prepared], asked: Asked) -> tuple[Sparsity, ...]:
    """Let the blocks that it pays for compute sparsely, and return every block's outcome. They are replaced already."""
    found = {id(p): dict[int, float]() for p in prepared}
    able = [p for p in prepared if p.units is not None]
    with torch.no_grad():
        for count in () if asked.always else COUNTS:
            ratios = timed(able, count)
            for p, ratio in zip(able, ratios, strict=True):
                found[id(p)][count] = ratio
            able = [p for p, ratio in zip(able, ratios, strict=True) if ratio >= _PAYS]
    return tuple(_outcome(p, found[id(p)], asked.always) for p in prepared)


def _outcome(p: Prepared, ratios: dict[int, float], always: bool) -> Sparsity:
    if p.units is None:
        return p.outcome
    tokens = products.TOKENS if always else max((n for n, ratio in ratios.items() if ratio >= _PAYS), default=0)
    if not tokens:
        return replace(p.outcome, ratios=ratios, reason=f"it does not pay here: dense takes {ratios[1]:.2f} times the "
                       f"time of sparse, {100 * p.outcome.skipped:.0f} % of hidden units skipped")
    p.units.tokens = tokens
    make_sparse(p.made.block.module, p.units)
    assert p.held is not None
    with torch.no_grad():
        compute(p.made.block.module, p.made.recipe, p.held[:1])  # makes the copy
    return replace(p.outcome, ratios=ratios, tokens=tokens, copied_bytes=p.units.copied_bytes)


def timed(able: Sequence[Prepared], count: int) -> list[float]:
    """Return dense time / sparse time of each block at so many tokens, medians of rounds in which the arms alternate.

    A round goes through all blocks, as decoding does, so that their weights come from where they come from then.
    """
    seconds: dict[int, tuple[list[float], list[float]]] = {id(p): ([], []) for p in able}
    for turn in range(_ROUNDS + 1):
        for arm in (0, 1) if turn % 2 else (1, 0):
            for p in able:
                took = _once(p, count, turn, sparse=arm == 1)
                if turn:  # the first makes copies and finds kernels
                    seconds[id(p)][arm].append(took)
    return [statistics.median(dense) / statistics.median(sparse) for dense, sparse in seconds.values()]


def _once(p: Prepared, count: int, turn: int, sparse: bool) -> float:
    assert p.held is not None
    module = p.made.block.module
    at = [(turn * count + k) % len(p.held) for k in range(count)]
    x = p.held[at][None]
    make_sparse(module, p.units if sparse else None)
    start = time.perf_counter()
    compute(module, p.made.recipe, x)
    took = time.perf_counter() - start
    make_sparse(module, None)
    return took


def summary(outcomes: Iterable[Sparsity]) -> list[tuple[str, str]]:
    """Return the rows of a report: what is said of a block, and its name. Blocks that differ in figures share a row."""
    rows: list[tuple[str, str]] = []
    groups: dict[Any, list[Sparsity]] = {}
    for one in outcomes:
        groups.setdefault((one.activation, one.tokens, one.exact, one.reason if not one.ratios else ""), []).append(one)
    for some in groups.values():
        text = _said(some)
        rows += [(text, one.name) for one in some]
    return rows


def _said(some: Sequence[Sparsity]) -> str:
    first, skipped = some[0], [100 * one.skipped for one in some]
    share = f"{statistics.median(skipped):.0f} % of hidden units skipped ({min(skipped):.0f}–{max(skipped):.0f} %, " \
            f"on {first.observed})"
    ratios = [one.ratios[1] for one in some if one.ratios]
    speed = f", {statistics.median(ratios):.2f} times as fast as dense at one token" if ratios else ""
    if not first.tokens:
        return f"dense: it does not pay here, {share}{speed}" if ratios else f"dense: {first.reason}"
    exact = "exact" if first.exact else f"error {max(one.error for one in some):.2g} at most on tokens held out"
    copies = sum(one.copied_bytes for one in some) / 1e6
    return (f"sparse up to {first.tokens} token{'s' * (first.tokens > 1)}: {share}, {exact}{speed}"
            + (f"; copies of down take {copies:.1f} MB" if copies else ""))
