"""What the figures and tables draw: a study's records, read once and put in order."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nonlin.study import Store, StudyFolder, statistics


@dataclass(frozen=True)
class Curve:
    """One judged run: training loss and held-out loss against tokens, in bits per byte."""

    arm: str
    seed: int
    tokens: list[int]
    loss: list[float]
    evaluated_tokens: list[int]
    evaluated: list[float]


@dataclass(frozen=True)
class Band:
    """A mean over seeds against tokens, and the pointwise interval of it."""

    tokens: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Study:
    """What the page shows: results.json, the arms best first, and the judged runs' curves."""

    FIRST: ClassVar[int] = 9
    """Curves are drawn from the tenth value on: the first fall would squeeze all that follows."""

    results: Mapping[str, Any]
    arms: list[Mapping[str, Any]]
    curves: list[Curve]

    @property
    def baseline(self) -> str:
        """The baseline's name."""
        return self.results["baseline"]

    @property
    def others(self) -> list[Mapping[str, Any]]:
        """The arms that are compared with the baseline."""
        return [arm for arm in self.arms if arm["name"] != self.baseline]

    def means(self) -> dict[str, tuple[list[int], list[float]]]:
        """Return each arm's tokens and smoothed training loss, the mean over its seeds, in the plan's order."""
        found = {}
        for name in (arm["name"] for arm in self.results["arms"]):
            runs = [c for c in self.curves if c.arm == name and c.tokens]
            if runs:
                length = min(len(run.tokens) for run in runs)
                mean = np.mean([smooth(run.loss)[:length] for run in runs], axis=0)
                found[name] = (runs[0].tokens[:length], mean.tolist())
        return found

    def bands(self) -> dict[str, Band]:
        """Return the paired differences of the smoothed training loss to the baseline's, from the tenth value on.

        The two runs of a seed see the same batches, so that the batches' own difficulty drops out. The interval is
        Student's at the rule's confidence over the seeds, at every place by itself, not corrected.
        """
        confidence = self.results["rule"]["confidence"]
        base = {c.seed: c for c in self.curves if c.arm == self.baseline and c.tokens}
        found: dict[str, Band] = {}
        for name in (arm["name"] for arm in self.results["arms"] if arm["name"] != self.baseline):
            pairs = [(c, base[c.seed]) for c in self.curves if c.arm == name and c.tokens and c.seed in base]
            length = min((min(len(a.tokens), len(b.tokens)) for a, b in pairs), default=0)
            if len(pairs) < 2 or length <= self.FIRST + 1:
                continue
            each = np.array([np.subtract(smooth(a.loss, 0.06)[:length], smooth(b.loss, 0.06)[:length])
                             for a, b in pairs])[:, self.FIRST:]
            mean = each.mean(0)
            half = each.std(0, ddof=1) * statistics.half_width(1.0, len(pairs), confidence)
            found[name] = Band(pairs[0][0].tokens[self.FIRST:length], mean.tolist(), (mean - half).tolist(),
                               (mean + half).tolist())
        return found


def read(folder: StudyFolder) -> Study:
    """Return what a folder's page shows."""
    results: dict[str, Any] = folder.results | {"remarks": [*folder.notes, *folder.results["remarks"]]}
    order = {name: i for i, name in enumerate(results["ranking"])}
    arms = sorted(results["arms"], key=lambda arm: order[arm["name"]])
    data = results["data"]
    per_byte = data["train_tokens"] / data["train_bytes"] if "train_bytes" in data else 1.0
    runs = set(Store(folder.directory).hashes())  # none where results were copied without their runs
    curves = [_curve(folder, arm["name"], run, per_byte) for arm in arms for run in arm["judged"]
              if run["config_hash"] in runs]
    return Study(results, arms, curves)


def _curve(folder: StudyFolder, arm: str, run: Mapping[str, Any], tokens_per_byte: float) -> Curve:
    lines = folder.trial(run["config_hash"])[2]
    bits = tokens_per_byte / math.log(2)
    train = [line for line in lines if line["kind"] == "train" and line["loss_nats"] is not None]
    evaluations = [line for line in lines if line["kind"] == "evaluation" and line["bits_per_byte"] is not None]
    return Curve(arm, run["seed"], [t["tokens"] for t in train], [t["loss_nats"] * bits for t in train],
                 [e["tokens"] for e in evaluations], [e["bits_per_byte"] for e in evaluations])


def tuned(arm: Mapping[str, Any]) -> list[tuple[float, float | None, list[float]]]:
    """Return (rate, mean bits per byte over seeds or None where one diverged, each finished seed's), by rate.

    >>> run = {"learning_rate": 0.1, "bits_per_byte": 2.0}
    >>> tuned({"tuning": [run, run | {"bits_per_byte": 3.0}, run | {"learning_rate": 0.2, "bits_per_byte": None}]})
    [(0.1, 2.5, [2.0, 3.0]), (0.2, None, [])]
    """
    found = []
    for rate in sorted({run["learning_rate"] for run in arm["tuning"]}):
        losses = [run["bits_per_byte"] for run in arm["tuning"] if run["learning_rate"] == rate]
        finished = [loss for loss in losses if loss is not None]
        found.append((rate, math.fsum(losses) / len(losses) if len(finished) == len(losses) else None, finished))
    return found


def smooth(values: list[float], share: float = 0.03) -> list[float]:
    """Return a centred moving average over that share of the curve.

    >>> smooth([1.0, 2.0, 3.0], 0.5)
    [1.5, 2.0, 2.5]
    """
    reach = max(1, round(len(values) * share / 2))
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    bounds = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[high] - sums[low]) / (high - low) for low, high in bounds]
