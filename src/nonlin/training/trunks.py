"""Runs that differ in their length alone share their beginning: the trunk that "wsd" branches from.

Until its decay begins, a run of warm-up, stable rate and decay does not depend on how long it will be. It leaves a
checkpoint there, and a longer one goes on from it instead of from the start. Without one, a run trains from the start;
its result is the same, to the last bit.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nonlin.errors import UserError
from nonlin.files import inside
from nonlin.training import checkpoint, recipe, transfer
from nonlin.training.config import config_hash
from nonlin.training.devices import OneDevice
from nonlin.training.optimizer import Optimizers
from nonlin.training.resources import processor

# Of a recipe, what a run before its decay does not depend on; the warm-up is taken in steps.
_LATER = ("steps", "warmup_fraction", "warmup_steps", "decay_fraction", "decay_steps", "final_fraction")


class Trunks:
    """The checkpoints of a folder that a run may begin from, and the one that it leaves there."""

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        training, steps = config["training"], config["training"]["steps"]
        self.folder, self.at = folder, recipe.decay_start(training, steps)
        # Evaluations on the way lie elsewhere in longer runs, so that only runs without any share.
        self.shared = recipe.choice(training, "schedule") == "wsd" and training["evaluations"] == 1 and self.at < steps
        common = {name: value for name, value in training.items() if name not in _LATER}
        common["warmup_steps"] = recipe.warmup_steps(training, steps)
        if training["probe_every"] >= steps:  # only the end is probed
            common["probe_every"] = 0
        if "transfer" in training:
            common["horizon"] = transfer.horizon(
                training["transfer"], steps * training["batch"] * config["model"]["context"])
        self.key = config_hash({**config, "training": common, "processor": processor()["name"]})

    def _path(self, step: int) -> Path:
        return self.folder / f"{self.key}-{step:09d}.safetensors"

    def save(self, devices: OneDevice, optimizer: Optimizers, position: Mapping[str, Any],
             losses: list[float]) -> None:
        """Write the checkpoint of the step at which the decay begins; where that fails, the run goes on without."""
        with contextlib.suppress(OSError, SafetensorError, UserError):
            inside(self.folder)
            checkpoint.write(self._path(self.at), self.key, devices, optimizer, position, losses)

    def read(self, optimizer: Optimizers) -> checkpoint.State | None:
        """Return the latest checkpoint before the decay, None where there is none that such an optimizer wrote."""
        names = sorted(self.folder.glob(f"{self.key}-*.safetensors"), reverse=True) if self.shared else []
        for path in names:
            if path.stem.rpartition("-")[2] <= f"{self.at:09d}":
                found = checkpoint.read(path, self.key, optimizer)
                if found is not None:
                    return found
        return None
