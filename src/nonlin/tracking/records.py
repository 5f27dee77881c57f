"""What a tracker is told: one finished run with its curves, and the verdicts at the end."""

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nonlin.numbers import number
from nonlin.study import StudyFolder

#: (step, values by name), a step once and in order.
Curve = list[tuple[int, dict[str, float]]]


@dataclass(frozen=True)
class TrackedRun:
    """One run: its name, its arm, its configuration in flat names, its curves, and what came out."""

    key: str
    name: str
    arm: str
    purpose: str
    status: str
    config: dict[str, Any]
    curve: Curve
    outcome: dict[str, float]


@dataclass(frozen=True)
class Verdicts:
    """The table of verdicts: a header, rows of text, and the numbers by name; ``key`` is of what it says."""

    key: str
    header: list[str]
    rows: list[list[str]]
    numbers: dict[str, float]
    advice: str
    winner: str


class Tracker(Protocol):
    """One place to log to, open for a study. Its errors are said, and cost the study nothing."""

    def run(self, run: TrackedRun) -> None:
        """Log a finished run."""
        ...

    def verdicts(self, verdicts: Verdicts) -> None:
        """Log the verdicts of a study that is complete."""
        ...

    def close(self) -> str:
        """Let go of it; return where it all lies, for people."""
        ...


def tracked_run(folder: StudyFolder, key: str) -> TrackedRun:
    """Return what is to be logged of a finished run; UserError where it is damaged."""
    config, record, lines = folder.trial(key)
    arm, training = config["activation"]["name"], config["training"]
    numbers = ("bits_per_byte", "initial_bits_per_byte", "best_bits_per_byte", "spike_score", "dead_share", "sparsity",
               "parameters", "flops_per_token")
    outcome = {name: float(record[name]) for name in numbers if record.get(name) is not None}
    outcome |= {name: float(value) for name, value in record.get("timing", {}).items()
                if isinstance(value, int | float) and not isinstance(value, bool)}
    return TrackedRun(
        key=key, name=f"{arm} {config['purpose']} rate {training['learning_rate']:g} seed {config['seed']}", arm=arm,
        purpose=config["purpose"], status=record["status"], config=flat(config) | {"config_hash": key},
        curve=curve(lines), outcome=outcome)


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested values under names with dots; null is left out.

    >>> flat({"model": {"dim": 16}, "seed": 1, "formula": None})
    {'model.dim': 16, 'seed': 1}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{name}.")
        elif value is not None:
            found[f"{before}{name}"] = value if isinstance(value, int | float | str) else str(value)
    return found


def curve(lines: Iterable[Mapping[str, Any]]) -> Curve:
    """Return the lines of metrics.jsonl as values by step: train/, evaluation/ and layer_N/.

    >>> curve([{"kind": "train", "step": 5, "tokens": 10, "loss_nats": 2.0, "learning_rate": None},
    ...        {"kind": "probe", "step": 5, "layers": [{"dead_share": 0.5}]}])
    [(5, {'train/tokens': 10.0, 'train/loss_nats': 2.0, 'layer_1/dead_share': 0.5, 'layers/dead_share': 0.5})]
    """
    steps: dict[int, dict[str, float]] = {}
    for line in lines:
        at = steps.setdefault(int(line["step"]), {})
        if line["kind"] == "probe":
            layers = [{k: v for k, v in layer.items() if v is not None} for layer in line["layers"]]
            at.update({f"layer_{i}/{k}": float(v) for i, layer in enumerate(layers, 1) for k, v in layer.items()})
            at.update({f"layers/{k}": statistics.fmean(layer[k] for layer in layers) for k in (layers or [{}])[0]
                       if all(k in layer for layer in layers)})
        else:
            at.update({f"{line['kind']}/{k}": float(v) for k, v in line.items()
                       if k not in ("kind", "step") and isinstance(v, int | float)})
    return sorted(steps.items())


def verdicts_of(results: Mapping[str, Any]) -> Verdicts:
    """Return the table of verdicts, the best activation first."""
    order = {name: i for i, name in enumerate(results["ranking"])}
    rows: list[list[str]] = []
    numbers: dict[str, float] = {}
    for arm in sorted(results["arms"], key=lambda arm: order[arm["name"]]):
        d = arm["difference"] or {}
        rows.append([arm["name"], number(arm["bits_per_byte"], ".5f"), number(d.get("mean"), "+.5f"),
                     number(d.get("low"), "+.5f"), number(d.get("high"), "+.5f"), number(d.get("p_value"), ".2g"),
                     arm["verdict"], number(arm["learning_rate"], ".3g")])
        for name, value in (("bits_per_byte", arm["bits_per_byte"]), ("difference", d.get("mean")),
                            ("low", d.get("low")), ("high", d.get("high"))):
            if value is not None:
                numbers[f"{arm['name']}/{name}"] = float(value)
    key = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
    return Verdicts(key, ["activation", "bits per byte", "difference", "low", "high", "p, corrected", "verdict",
                     "learning rate"], rows, numbers, str(results["advice"]), str(results["winner"]))
