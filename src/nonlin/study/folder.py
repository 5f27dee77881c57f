"""Reading a study that lies on disk."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonlin.errors import UserError
from nonlin.study.plan import Plan
from nonlin.study.store import DamagedRecord, Store


@dataclass(frozen=True)
class StudyFolder:
    """A study on disk: its plan, its results (None before the first are written) and its trials."""

    directory: Path
    plan: Plan
    results: dict[str, Any] | None

    def trials(self) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """Return (config, record) of every finished trial by its hash; damaged ones are left out."""
        store = Store(self.directory)
        found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        for key in store.hashes():
            try:
                found[key] = store.read(key)
            except DamagedRecord:
                continue
        return found

    def trial(self, key: str) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
        """Return (config, record, lines of metrics.jsonl) of one trial. UserError if it is damaged or not there."""
        try:
            config, record = Store(self.directory).read(key)
        except DamagedRecord as damage:
            raise UserError(f"{self.directory} must hold the finished run {key}; {damage}. "
                            "Continue the study: it runs again.") from damage
        metrics = self.directory / "trials" / key / "metrics.jsonl"
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
        return config, record, [json.loads(line) for line in lines]


def load(directory: str | Path) -> StudyFolder:
    """Return the study in a folder. UserError where there is none."""
    directory = Path(directory)
    plan = Store(directory).plan() if (directory / "plan.json").exists() else None
    if plan is None:
        raise UserError(f"{directory} must hold a study; it has no plan.json. Give the folder of a study.")
    path = directory / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise UserError(f"{path} must be JSON; {error}. Give the study's command again: it writes it anew.") from error
    return StudyFolder(directory, plan, results)
