"""The recipe that all arms share: optimizer, schedule, evaluation."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

BETAS = (0.9, 0.95)
ADAM_EPS = 1e-8


def learning_rate(step: int, steps: int, peak: float, warmup_fraction: float) -> float:
    """Return the rate of a step (0-based): linear warm-up to ``peak``, then linear decay to nothing.

    >>> [round(learning_rate(s, 10, 1.0, 0.2), 3) for s in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    """
    warmup = max(1, round(steps * warmup_fraction))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup)


def make_optimizer(model: nn.Module, rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW, fused; only matrices decay: no scale of a norm and no activation parameter does."""
    decayed = [p for p in model.parameters() if p.ndim >= 2 and not getattr(p, "_no_weight_decay", False)]
    others = [p for p in model.parameters() if not any(p is q for q in decayed)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS, eps=ADAM_EPS, fused=True)


@torch.no_grad()
def evaluate(model: Any, batches: Iterable[tuple[np.ndarray, np.ndarray]], bytes_per_token: float) -> float:
    """Return bits per byte over fixed batches: total nats / ln 2 / bytes of text."""
    device = next(model.parameters()).device
    nats = tokens = 0.0
    for inputs, targets in batches:
        loss = model.loss(torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device))
        nats, tokens = nats + float(loss) * targets.size, tokens + targets.size
    return nats / math.log(2) / (tokens * bytes_per_token)
