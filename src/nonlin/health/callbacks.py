"""Callbacks that watch a model's health in other people's training loops; each loads its framework when made."""

import importlib
import sys
import warnings
from typing import Any

from torch import nn

from nonlin.errors import UserError
from nonlin.health.watching import Health, watch


class Following:
    """What the callbacks share: one watch, and a warning for each new serious finding."""

    def __init__(self, **options: Any):
        self.options = options
        self.health: Health | None = None
        self.watching = False
        self._told: set[tuple[str, str]] = set()
        self._seen: int | None = None

    def start(self, model: nn.Module) -> None:
        """Begin to watch; a watch that a broken run left behind ends first."""
        self.stop()
        self.health = watch(model, **self.options)
        self.health.__enter__()
        self.watching = True

    def news(self) -> dict[str, float] | None:
        """Return the scalars of an observation that has ended since the last call, else None."""
        if self.health is None or self.health.observed_step in (None, self._seen):
            return None
        self._seen = self.health.observed_step
        for finding in self.health.findings():
            key = finding["measure"], finding["layer"]
            if finding["grade"] == "serious" and key not in self._told:
                self._told.add(key)
                warnings.warn(f"step {self._seen}: {finding['text']} {finding['action']}", stacklevel=2)
        return self.health.scalars()

    def stop(self) -> None:
        """End the watch, if one is on; what it found stays."""
        if self.watching and self.health is not None:
            self.health.__exit__(None, None, None)
        self.watching = False


def trainer_callback(**options: Any) -> Any:
    """Return a callback for the Hugging Face Trainer that watches its model; options are those of ``watch``.

    Each observation's scalars go into the trainer state's ``log_history``. Serious findings are warned of once;
    ``callback.health`` has them all. The Trainer tells no callback that training failed. After an exception the watch
    stays on, and torch.compile may stand aside, until ``callback.stop()`` or the next ``train()``.
    """
    from transformers import TrainerCallback

    class HealthCallback(TrainerCallback):
        def __init__(self) -> None:
            self.following = Following(**options)

        @property
        def health(self) -> Health | None:
            return self.following.health

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.following.start(model)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            scalars = self.following.news()
            if scalars is not None:
                state.log_history.append({"step": state.global_step, **scalars})

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.stop()

        def stop(self) -> None:
            """End the watch; what it found stays."""
            self.following.stop()

    return HealthCallback()


def lightning_callback(**options: Any) -> Any:
    """Return a callback for Lightning's Trainer that watches its module; options are those of ``watch``.

    Works with ``lightning.pytorch`` and with ``pytorch_lightning``, whichever the process has imported. Each
    observation's scalars go to the trainer's logger; serious findings are warned of once; ``callback.health`` has
    them all. Raises UserError where neither is installed.
    """

    class HealthCallback(_lightning().Callback):
        def __init__(self) -> None:
            super().__init__()  # pyright: ignore[reportUnknownMemberType]
            self.following = Following(**options)

        @property
        def health(self) -> Health | None:
            return self.following.health

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.following.start(pl_module)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            scalars = self.following.news()
            if scalars is not None and trainer.logger is not None:
                trainer.logger.log_metrics(scalars, step=trainer.global_step)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.following.stop()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            self.following.stop()  # an interrupted fit leaves no hooks on the model

    return HealthCallback()


def _lightning() -> Any:
    """Lightning under the name that the process uses it by: its two packages hold classes of their own each."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UserError("lightning_callback: the package 'lightning' must be installed; it is not. Install it: "
                    "pip install lightning.")
