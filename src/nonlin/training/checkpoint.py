"""A run that can be stopped in its middle: all that its next step depends on, in one safetensors file.

That is the weights, the optimizer's moments, torch's generators, and the position: the step, what was measured so far,
and how long metrics.jsonl was. Batches are a function of seed and step. A run that goes on from here ends as one that
was never stopped, to the last bit. Where several processes train together the state is whole, as of one device: every
process calls these functions, and the first one writes.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import UNSET, Meta, UnsetType
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nonlin.files import replacing
from nonlin.training.config import CHECKPOINT, Stopped
from nonlin.training.devices import OneDevice, set_generators, spread_like
from nonlin.training.optimizer import Optimizers


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

    def save(self, key: str, devices: OneDevice, optimizer: Optimizers, position: dict[str, Any],
             losses: list[float]) -> None:
        """Write the checkpoint of the configuration ``key``; raise Stopped where the run is asked to stop."""
        write(self.path, key, devices, optimizer, position, losses)
        self._last = time.monotonic()
        if devices.agreed(self.asked()):
            raise Stopped

    def read(self, key: str, optimizer: Optimizers) -> "State | None":
        """Return the state that lies there, None where there is none of this configuration and arithmetic."""
        return read(self.path, key, optimizer)

    def remove(self) -> None:
        """Remove the checkpoint: the run has ended."""
        self.path.unlink(missing_ok=True)


class CourseForm(msgspec.Struct, forbid_unknown_fields=True):
    """What a run measured so far, as :mod:`nonlin.training.trial` goes on with it."""

    step: Annotated[int, Meta(ge=0)]
    initial: float | None
    best: float
    final: float | None
    layers: list[dict[str, float]] | None
    seconds: float
    training_seconds: float
    evaluations: list[tuple[float, float]]
    processor_seconds: float | None = None


class PositionForm(msgspec.Struct):
    """The position of a checkpoint, or with "metrics" that of a trunk."""

    course: CourseForm
    log_bytes: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    metrics: str | UnsetType = UNSET


@dataclass(frozen=True)
class State:
    """What a checkpoint holds: ``position`` and ``losses`` of a run, and its tensors, whole."""

    position: dict[str, Any]
    losses: list[float]
    tensors: Mapping[str, torch.Tensor]

    def fits(self, devices: OneDevice, optimizer: Optimizers) -> bool:
        """Whether this is the state of such a run: a file's seal says who it is for, not what is in it."""
        wanted = {f"model.{name}": value.shape for name, value in devices.model.named_parameters()}
        parameters, held = optimizer.parameters(), self.tensors
        if any(name not in held or held[name].shape != shape for name, shape in wanted.items()):
            return False
        for name, value in held.items():
            kind, _, rest = name.partition(".")
            number = rest.partition(".")[0]
            if kind == "optimizer" and not (
                    number.isascii() and number.isdigit() and len(number) < 9 and int(number) < len(parameters)
                    and (value.ndim == 0 or value.shape == parameters[int(number)].shape)):
                return False
            if kind in ("model", "optimizer") and not value.is_floating_point():
                return False
        generator = held.get("generator", torch.empty(0))
        try:
            torch.Generator().set_state(generator.view(devices.size, -1)[0][:torch.get_rng_state().numel()].clone())
        except (RuntimeError, TypeError):
            return False
        return True

    @torch.no_grad()
    def put(self, devices: OneDevice, optimizer: Optimizers) -> None:
        """Put a run's model, optimizer and generators to this state."""
        for name, value in devices.model.named_parameters():
            value.copy_(spread_like(self.tensors[f"model.{name}"], value))
        parameters = optimizer.parameters()
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in self.tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".", 2)
                moments.setdefault(int(number), {})[key] = spread_like(value, parameters[int(number)])
        optimizer.put_moments(moments)
        set_generators(self.tensors["generator"].view(devices.size, -1)[devices.rank])


def write(path: Path, key: str, devices: OneDevice, optimizer: Optimizers, position: Mapping[str, Any],
          losses: list[float]) -> None:
    """Write a checkpoint of the configuration ``key``, whole or not at all."""
    tensors = {f"model.{name}": value for name, value in devices.weights().items()}
    for number, state in optimizer.moments().items():
        tensors |= {f"optimizer.{number}.{name}": devices.whole_tensor(value) for name, value in state.items()}
    tensors["generator"] = devices.generators()
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    if devices.rank == 0:
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"config_hash": key, "position": json.dumps(position),
                                           "arithmetic": json.dumps(optimizer.arithmetic)})


def read(path: Path, key: str, optimizer: Optimizers) -> State | None:
    """Return the state in a checkpoint, None where it is none of ``key``, or of steps that this optimizer takes.

    Another optimizer's states would fit, but the run would end otherwise than one from the start.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("config_hash") != key or json.loads(about.get("arithmetic", "[]")) != optimizer.arithmetic:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        position, losses = json.loads(about["position"]), tensors["losses"]
        msgspec.convert(position, PositionForm)
        if losses.dtype != torch.float64 or losses.shape != (position["course"]["step"],):
            return None
        return State(position, losses.tolist(), tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError,
            msgspec.ValidationError):
        return None
