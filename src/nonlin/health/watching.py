"""``with nonlin.health.watch(model) as health:`` — a model looked at while it trains, one step in so many.

Between the observed steps the model carries no hook at all. An observed step runs without torch.compile, so that
compiled code never changes and never sees a hook. Activation checkpointing's recomputation is told from the forward
pass and left out.
"""

import sys
import warnings
from typing import Any

import torch
from torch import nn

from nonlin.errors import UserError, rule
from nonlin.files import finite
from nonlin.health import findings, record
from nonlin.health.collect import Collector
from nonlin.health.hooks import COMPILER, Hooks
from nonlin.health.steps import Steps
from nonlin.patching.blocks import must_be_module, uncompiled
from nonlin.patching.finding import some_blocks
from nonlin.patching.identification import identify_all
from nonlin.patching.loading import refuse

EVERY = 100
"""Steps from one observation to the next, by default."""

_UNSEEN = 10  # times that the weights change without a step, until that is said


class Health:
    """A model's health during training; made by :func:`watch`.

    A step ends with ``optimizer.step()`` of an optimizer that holds any of the model's parameters, or with
    :meth:`step`. Optimizers that step on the gradients of one backward pass end one step together. Those that step
    inside a backward pass end it with that pass.
    """

    def __init__(self, model: nn.Module, every: int, steps: int, gradients: bool, tokens: int, writer: Any):
        for name, value in (("every", every), ("steps", steps), ("tokens", tokens)):
            if value < 1:
                raise UserError(rule("watch", name, "be at least 1", value, "Pass a positive number."))
        must_be_module(model, "watch")
        self.model: nn.Module = uncompiled(model)
        refuse(self.model, "watch")
        self.every, self.steps, self.gradients, self.tokens, self.writer = every, steps, gradients, tokens, writer
        self.answers = identify_all(self.model, some_blocks(self.model, "watch"))
        self.index = 0
        self.observed_step: int | None = None
        self._steps = Steps(self.model, self.step)
        self._collector: Collector | None = None
        self._finished: Collector | None = None
        self._record: dict[str, Any] | None = None
        self._first = Hooks()
        self._paused, self._lost = False, ""
        self._weights, self._changes = self._versions(), 0

    def __enter__(self) -> "Health":
        self._steps.start()
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._steps.stop()
        if self._collector is not None:
            self._end()

    def step(self) -> None:
        """End a training step; called by itself after ``optimizer.step()``."""
        self.index += 1
        phase = self.index % self.every
        if self._collector is not None and (phase == 0 or phase >= self.steps):
            self._end()
        if self._collector is None and phase < self.steps:
            self._begin()

    def _begin(self) -> None:
        self._collector = Collector(self.model, self.answers, self.gradients, self.tokens, self.model.training)
        self._collector.attach()
        self._first.before(self.model, self._unseen)
        if "torch._dynamo" in sys.modules:  # else nothing can have been compiled
            COMPILER.pause()
            self._paused = True

    def _end(self) -> None:
        assert self._collector is not None
        self._collector.detach()
        self._first.remove()
        if self._paused:
            COMPILER.resume()
            self._paused = False
        if self._collector.saw_anything():
            self._finished, self._record, self.observed_step = self._collector, None, self.index
            self.answers = [one.answer for one in self._collector.observed]
            if self.writer is not None:
                self.write(self.writer)
        self._lost = self._collector.lost
        self._collector = None

    def _versions(self) -> int:
        return sum(0 if p.is_inference() else p._version for p in self.model.parameters())

    def _unseen(self, *_: Any) -> None:
        """Warn where the weights change again and again and no step has ended."""
        if self.index or not (self.model.training and torch.is_grad_enabled()):
            return
        weights = self._versions()
        self._changes += weights != self._weights
        self._weights = weights
        if self._changes == _UNSEEN:
            self._changes += 1
            warnings.warn("watch: the model's weights change, and no optimizer of torch that holds them has stepped: "
                          "all of it counts as one step. Call health.step() after each of yours.", stacklevel=2)

    def record(self) -> dict[str, Any]:
        """Return the last finished observation, as ``nonlin check --json`` prints it.

        With torch.distributed running, every rank must call it. Counts and sums are added over ranks, extremes take the
        largest. So a unit is dead only where it is dead on all of them. Raises UserError before the model has run.
        """
        if self._finished is None and self._collector is not None and self._collector.saw_anything():
            self._end()
            self._begin()
        if self._finished is None:
            why = self._lost or (self._collector.lost if self._collector is not None else "")
            raise UserError(f"health: findings must follow an observed step; {why or 'the model has not run yet'}. Run "
                            "a training step inside the with block first.")
        if self._record is None:
            made = record.make(self._finished, self.model, type(self.model).__name__)
            made["findings"] = findings.grade(made)
            self._record = made = finite(made)
            return made
        return self._record

    def findings(self) -> list[dict[str, Any]]:
        """Return the findings of the last finished observation, the gravest first; see :meth:`record`."""
        return self.record()["findings"]

    def scalars(self) -> dict[str, float]:
        """Return numbers to log, by name: ``health/BLOCK/dead_share`` and so on; see :meth:`record`."""
        found: dict[str, float] = {}
        for block in self.record()["blocks"]:
            hidden: dict[str, Any] = block["streams"]["hidden"]
            gradients: dict[str, Any] = block["gradients"] or {}
            values: dict[str, float | None] = {
                "dead_share": block["dead"]["share"], "saturated_share": block["saturated"]["share"],
                "sparsity": block["sparsity"], "hidden_rms": hidden["rms"],
                "hidden_largest": hidden["largest"], "gradient_rms": gradients.get("rms")}
            found |= {f"health/{block['name']}/{name}": float(v) for name, v in values.items() if v is not None}
        grades = [f["grade"] for f in self.findings()]
        return found | {f"health/{grade}": float(grades.count(grade)) for grade in ("warning", "serious")}

    def write(self, writer: Any) -> None:
        """Write :meth:`scalars` to a TensorBoard ``SummaryWriter`` at the step that was observed."""
        for name, value in self.scalars().items():
            writer.add_scalar(name, value, self.observed_step)


def watch(model: nn.Module, *, every: int = EVERY, steps: int = 1, gradients: bool = False, tokens: int = 2048,
          writer: Any = None) -> Health:
    """Return a context in which a model's feed-forward blocks are looked at while it trains.

    The first step and every ``every``-th one after it are observed, ``steps`` of them in a row, at most ``tokens`` a
    call. ``gradients`` adds gradients; ``writer``, a TensorBoard SummaryWriter, gets the scalars of each observation.
    Without optimizer steps all that runs is one observation. Raises UserError where the model has no feed-forward
    block, or is quantized or spread over devices.

    >>> model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    >>> with watch(model) as health:
    ...     _ = model(torch.randn(64, 8))
    >>> health.record()["blocks"][0]["activation"]["computed"]
    'gelu'
    """
    return Health(model, every, steps, gradients, tokens, writer)
