"""The loss on held-out text."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch


@torch.no_grad()
def evaluate(model: Any, batches: Iterable[tuple[np.ndarray, np.ndarray]], bytes_per_token: float) -> float:
    """Return bits per byte over fixed batches: total nats / ln 2 / bytes of text."""
    device = next(model.parameters()).device
    nats = tokens = 0.0
    for inputs, targets in batches:
        loss = model.loss(torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device))
        nats, tokens = nats + float(loss) * targets.size, tokens + targets.size
    return nats / math.log(2) / (tokens * bytes_per_token)
