"""A run that can be stopped in its middle: all that its next step depends on, in one safetensors file.

That is the weights, the optimizer's moments, torch's generator, and the position: the step, what was measured so far,
and how long metrics.jsonl was. Batches are a function of seed and step. A run that goes on from here ends as one that
was never stopped, to the last bit.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nonlin.files import replacing
from nonlin.training.config import CHECKPOINT
from nonlin.training.optimizer import Optimizers


class Stopped(Exception):
    """A run was asked to stop, and lies in its checkpoint."""


class Checkpoints:
    """When and where a run writes its checkpoint: every ``seconds``, and once ``asked()`` says that it is to stop."""

    def __init__(self, folder: Path, seconds: float | None = None, asked: Callable[[], bool] = lambda: False):
        self.path, self.seconds, self.asked = folder / CHECKPOINT, seconds, asked
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether a checkpoint is to be written after this step."""
        if self.asked():
            return True
        return self.seconds is not None and time.monotonic() - self._last >= self.seconds

    def save(self, key: str, model: torch.nn.Module, optimizer: Optimizers, position: dict[str, Any],
             losses: list[float]) -> None:
        """Write the checkpoint of the configuration ``key``; raise Stopped where the run is asked to stop."""
        write(self.path, key, model, optimizer, position, losses)
        self._last = time.monotonic()
        if self.asked():
            raise Stopped

    def load(self, key: str, model: torch.nn.Module, optimizer: Optimizers
             ) -> tuple[dict[str, Any], list[float]] | None:
        """Put a run back to where its checkpoint was; return (position, losses), None where there is none to use."""
        return read(self.path, key, model, optimizer)

    def remove(self) -> None:
        """Remove the checkpoint: the run has ended."""
        self.path.unlink(missing_ok=True)


def write(path: Path, key: str, model: torch.nn.Module, optimizer: Optimizers, position: Mapping[str, Any],
          losses: list[float]) -> None:
    """Write a checkpoint of the configuration ``key``, whole or not at all."""
    tensors = {f"model.{name}": value.detach().cpu().contiguous() for name, value in model.named_parameters()}
    for number, state in optimizer.moments().items():
        tensors |= {f"optimizer.{number}.{name}": value.cpu().contiguous() for name, value in state.items()}
    tensors["generator"] = torch.get_rng_state()
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"config_hash": key, "position": json.dumps(position)})


def read(path: Path, key: str, model: torch.nn.Module, optimizer: Optimizers
         ) -> tuple[dict[str, Any], list[float]] | None:
    """Put a run to where a checkpoint is; return (position, losses), None where it is none of ``key``."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("config_hash") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        position = json.loads(about["position"])
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(tensors[f"model.{name}"])
    _put_moments(optimizer, tensors)
    torch.set_rng_state(tensors["generator"])
    return position, tensors["losses"].tolist()


def _put_moments(optimizer: Optimizers, tensors: dict[str, torch.Tensor]) -> None:
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            moments.setdefault(int(number), {})[key] = value
    optimizer.put_moments(moments)
