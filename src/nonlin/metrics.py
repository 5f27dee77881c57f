"""The measures of a model's inside, each defined once: of units, of magnitudes, of gradients, of losses.

Shapes: N tokens, H units (the hidden width of a feed-forward block), D model width.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nonlin import functional
from nonlin.functions import Definition

DEAD = 1e-3
"""A unit is dead when its output and its local derivatives stay below this on every token (arXiv:2309.04827)."""

SATURATED = 1e-3
"""A gate is saturated on a token when the activation's derivative by it is below this."""

KEPT_ERROR = 0.2
"""Relative error of a block's output at which sparsity is counted (CETT, arXiv:2402.03804, arXiv:2411.02335)."""

MASSIVE = 100.0
MASSIVE_RATIO = 1000.0
"""An activation is massive when above 100 and above 1000 times the median magnitude (arXiv:2402.17762)."""

EXPONENTS = 80
"""Magnitudes are counted by powers of two, from 2^-40 to 2^39; what lies beyond is counted at the ends."""

FORMATS = {"bfloat16": (3.3895e38, 9.2e-41), "float16": (65504.0, 5.97e-8), "float8_e5m2": (57344.0, 1.53e-5),
           "float8_e4m3": (448.0, 1.96e-3)}
"""The largest and the smallest positive number of each format (IEEE 754; OCP 8-bit floating point 1.0)."""


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Derivatives of our own, of which activation checkpointing and offloading around us must learn nothing."""
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        yield


def response(activation: Any, inputs: Sequence[Tensor]) -> Tensor:
    """Return, by unit (H,), the largest of \\|output\\| and \\|derivative by an input\\| over all tokens.

    ``activation`` is a function of the inputs, each (..., H).
    """
    with _aside():
        leaves = tuple(x.detach().requires_grad_() for x in inputs)
        hidden = activation(*leaves)
        derivatives = torch.autograd.grad(hidden.sum(), leaves, allow_unused=True)
    largest = hidden.detach().abs().flatten(0, -2).amax(0)
    for derivative in derivatives:
        if derivative is not None:
            largest = torch.maximum(largest, derivative.abs().flatten(0, -2).amax(0))
    return largest


def dead_units(activation: Any, inputs: Sequence[Tensor]) -> Tensor:
    """Return which units (H,) are dead over all tokens of the inputs (..., H).

    >>> x = torch.tensor([[-1.0, 1.0], [-2.0, -1.0]])
    >>> dead_units(torch.nn.ReLU(), (x,))
    tensor([ True, False])
    """
    return response(activation, inputs) < DEAD


def gate_derivatives(definition: Definition, gate: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """Return \\|d activation / d gate\\| at up = 1, or \\|d activation / dx\\| where it is plain; shaped like ``gate``.

    >>> from nonlin.functions import get
    >>> gate_derivatives(get("reglu"), torch.tensor([-1.0, 2.0]), {})
    tensor([0., 1.])
    """
    with _aside():
        leaf = gate.detach().requires_grad_()
        inputs = (leaf, torch.ones_like(leaf)) if definition.gated else (leaf,)
        out = functional.activation(definition)(*inputs, **parameters)
        (derivative,) = torch.autograd.grad(out.sum(), leaf)
    return derivative.abs()


@torch.no_grad()
def sparsity(hidden: Tensor, down: Tensor, error: float = KEPT_ERROR, tokens: int = 32, exact: bool = True) -> float:
    """Return the share of units that can be left out, a token, at that relative error of the block's output.

    Units leave in the order of \\|output\\| times the norm of their column, until the error is first exceeded. Shapes:
    hidden (..., H), down (D, H). With ``exact=False`` their number is found by bisection, as if the error grew with it.
    That is ten times quicker, and the same but for about a unit in a hundred.

    >>> sparsity(torch.tensor([[0.0, 0.0, 0.0, 2.0]]), torch.eye(4))
    0.75
    """
    h = hidden.detach().flatten(0, -2)[:tokens]
    weight = down.detach().to(h.dtype)
    order = (h.abs() * weight.norm(dim=0)).argsort(dim=-1)
    allowed = error * (h @ weight.t()).norm(dim=-1, keepdim=True)
    if exact:
        parts = h.gather(-1, order).unsqueeze(-1) * weight.t()[order]  # tokens, H, D
        return float((parts.cumsum(dim=1).norm(dim=-1) <= allowed).float().cumprod(dim=-1).mean())
    rank = order.argsort(dim=-1)
    low = torch.zeros(h.shape[0], 1, dtype=torch.long, device=h.device)
    high = torch.full_like(low, h.shape[1] + 1)  # low can be left out, high cannot
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        fits = ((h * (rank < middle)) @ weight.t()).norm(dim=-1, keepdim=True) <= allowed
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return float((low.double() / h.shape[1]).clamp(max=1.0).mean())


def kurtosis(second: Tensor, fourth: Tensor) -> Tensor:
    """Return E x^4 / (E x^2)^2: 3 for a normal distribution, large where few values carry all; 0 where all are 0.

    >>> kurtosis(torch.tensor(1.0), torch.tensor(3.0))
    tensor(3.)
    """
    return torch.where(second > 0, fourth / second.square().clamp(min=1e-300), torch.zeros_like(fourth))


def outlier_kurtosis(second: Tensor) -> float:
    """Return the kurtosis of the units' root mean squares, from E x^2 by unit (H,): 1 where all are alike, H where one
    has everything (arXiv:2405.19279).

    >>> outlier_kurtosis(torch.tensor([1.0, 1.0])), outlier_kurtosis(torch.tensor([0.0, 2.0]))
    (1.0, 2.0)
    """
    mean = second.mean()
    return float(second.square().mean() / mean.square()) if float(mean) > 0 else 0.0


def exponents(x: Tensor) -> Tensor:
    """Return how many of the non-zero finite values have each power of two, (EXPONENTS,).

    >>> counts = exponents(torch.tensor([0.0, 1.0, 1.5, 0.25]))
    >>> counts[40].item(), counts[38].item(), counts.sum().item()
    (2, 1, 3)
    """
    x = x.detach().flatten()
    x = x[(x != 0) & torch.isfinite(x)].float()
    power = (torch.frexp(x).exponent - 1 + EXPONENTS // 2).clamp(0, EXPONENTS - 1)
    return torch.bincount(power, minlength=EXPONENTS)


def flushed_share(counts: Tensor, largest: float, name: str = "float8_e4m3") -> float:
    """Return the share of values that become 0 in a format when the largest is scaled to the format's largest.

    Counted by powers of two (:func:`exponents`), rounded down: a bound within a factor of two in magnitude.
    """
    total = float(counts.sum())
    if not total or not largest:
        return 0.0
    top, least = FORMATS[name]
    half = torch.tensor(least / 2 / top * largest, dtype=torch.float32, device="cpu")
    limit = torch.log2(half).item()  # below half of the smallest rounds to 0
    powers = torch.arange(EXPONENTS, device=counts.device) - EXPONENTS // 2
    return float(counts[powers + 1 <= limit].sum()) / total


def spike_score(losses: list[float], window: int = 1000, stds: float = 7.0, least: int = 32) -> float:
    """Return the share of steps whose loss lies that many standard deviations above the rolling mean (OLMo 2).

    A step is judged once ``least`` steps precede it.

    >>> spike_score([1.0, 1.1] * 50 + [9.0])
    0.0144...
    """
    spikes = judged = 0
    total = squares = 0.0
    for i, loss in enumerate(losses):
        count = min(i, window)
        if count >= least:
            judged += 1
            mean = total / count
            std = max(squares / count - mean * mean, 0.0) ** 0.5
            spikes += loss - mean >= stds * max(std, 1e-9)
        total, squares = total + loss, squares + loss * loss
        if i >= window:
            total, squares = total - losses[i - window], squares - losses[i - window] ** 2
    return spikes / judged if judged else 0.0
