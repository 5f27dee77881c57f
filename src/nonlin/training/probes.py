"""What one looks at while a model trains: gradients and units of every feed-forward block.

A probe computes the activation and its derivative once more, in torch, and the statistics: a probed step takes two to
four times as long as a plain one, so that at a ``probe_every`` of 100 a run takes one to three percent longer.
"""

from typing import Any

import torch
from torch import Tensor

DEAD = 1e-3
"""A unit is dead when its output and its local derivatives stay below this on every token of the probe."""

KEPT_ERROR = 0.2
"""Relative error of a block's output at which sparsity is counted."""


def gradient_outputs(watched: list[Any]) -> None:
    """Ask autograd to keep the gradient at each block's output; call between forward and backward."""
    for _, _, out in watched:
        out.retain_grad()


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def dead_units(activation: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return which units (hidden,) are dead over all tokens of the inputs (..., hidden).

    >>> x = torch.tensor([[-1.0, 1.0], [-2.0, -1.0]])
    >>> dead_units(torch.nn.ReLU(), (x,))
    tensor([ True, False])
    """
    with torch.enable_grad():
        leaves = tuple(x.detach().requires_grad_() for x in inputs)
        hidden = activation(*leaves)
        slopes = torch.autograd.grad(hidden.sum(), leaves, allow_unused=True)
    largest = hidden.detach().abs().flatten(0, -2).amax(0)
    for slope in slopes:
        if slope is not None:
            largest = torch.maximum(largest, slope.abs().flatten(0, -2).amax(0))
    return largest < DEAD


def layer_measures(model: torch.nn.Module, watched: list[Any]) -> list[dict[str, float]]:
    """Return one record a layer; call after backward (see :func:`gradient_outputs`)."""
    records = []
    for block, (inputs, hidden, out) in zip(model.blocks, watched, strict=True):  # type: ignore[arg-type]
        dead = dead_units(block.feed_forward.activation, inputs)
        records.append({
            "gradient_rms": _rms(out.grad),
            "output_rms": _rms(out.detach()),
            "dead_share": float(dead.float().mean()),
            "zero_output_share": float((hidden.detach() == 0).float().mean()),
        })
    return records


@torch.no_grad()
def sparsity(hidden: Tensor, down: Tensor, error: float = KEPT_ERROR, tokens: int = 32) -> float:
    """Return the share of units that can be left out, a token, at that relative error of the block's output.

    Units leave in the order of |output| times the norm of their column; hidden (..., units), down (D, units).

    >>> sparsity(torch.tensor([[0.0, 0.0, 0.0, 2.0]]), torch.eye(4))
    0.75
    """
    h = hidden.detach().flatten(0, -2)[:tokens]
    order = (h.abs() * down.norm(dim=0)).argsort(dim=-1)
    parts = h.gather(-1, order).unsqueeze(-1) * down.t()[order]  # tokens, units, D
    dropped = parts.cumsum(dim=1).norm(dim=-1)
    full = parts.sum(dim=1).norm(dim=-1, keepdim=True)
    return float((dropped <= error * full).float().cumprod(dim=-1).mean())


def spike_score(losses: list[float], window: int = 1000, deviations: float = 7.0, least: int = 32) -> float:
    """Return the share of steps whose loss lies that many deviations above the rolling mean (OLMo 2).

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
            deviation = max(squares / count - mean * mean, 0.0) ** 0.5
            spikes += loss - mean >= deviations * max(deviation, 1e-9)
        total, squares = total + loss, squares + loss * loss
        if i >= window:
            total, squares = total - losses[i - window], squares - losses[i - window] ** 2
    return spikes / judged if judged else 0.0
