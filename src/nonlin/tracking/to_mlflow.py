"""MLflow: an experiment for the study, a parent run for an activation, a run for a trial; in SQLite without server."""

import os
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
from mlflow.entities import Metric, Param, RunTag  # pyright: ignore[reportMissingImports]

from nonlin.tracking.records import TrackedRun, Verdicts

_AT_ONCE = 900  # metrics, and a tenth of it parameters, in one request: a server takes 1000 and 100


def open_tracker(study: str, directory: Path) -> "MlflowTracker":
    """Return the tracker of MLFLOW_TRACKING_URI, or of mlflow.db beside the study's folder."""
    return MlflowTracker(study, directory)


class MlflowTracker:
    """Runs of one study as an experiment of its name."""

    def __init__(self, study: str, directory: Path):
        beside = directory.resolve().parent
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{beside / 'mlflow.db'}"
        self.client: Any = MlflowClient(tracking_uri=self.uri)
        name = f"nonlin {study}"
        known = self.client.get_experiment_by_name(name)
        own = None if "MLFLOW_TRACKING_URI" in os.environ else (beside / "mlflow-artifacts").as_uri()
        self.experiment: str = known.experiment_id if known else self.client.create_experiment(name, own)
        self.parents: dict[str, str] = {}

    def _start(self, name: str, tags: dict[str, str]) -> str:
        made = self.client.create_run(self.experiment, run_name=name, tags=tags)
        return made.info.run_id

    def _parent(self, arm: str) -> str:
        """Return the run that stands for an activation, made where there is none."""
        if arm not in self.parents:
            quoted = arm.replace("'", "")
            found = self.client.search_runs([self.experiment], f"tags.nonlin_arm = '{quoted}'", max_results=1)
            self.parents[arm] = found[0].info.run_id if found else self._start(arm, {"nonlin_arm": quoted})
            self.client.set_terminated(self.parents[arm])
        return self.parents[arm]

    def run(self, run: TrackedRun) -> None:
        """Log a finished run below its activation's; one that diverged is marked as failed."""
        made = self._start(run.name, {"mlflow.parentRunId": self._parent(run.arm), "arm": run.arm,
                                      "purpose": run.purpose, "status": run.status})
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for step, values in run.curve for name, value in values.items()]
        metrics += [Metric(name, value, now, 0) for name, value in run.outcome.items()]
        params = [Param(name, str(value)[:6000]) for name, value in run.config.items()]
        for i in range(0, max(len(metrics), 10 * len(params)), _AT_ONCE):
            self.client.log_batch(made, metrics[i:i + _AT_ONCE], params[i // 10:(i + _AT_ONCE) // 10])
        self.client.set_terminated(made, "FINISHED" if run.status == "finished" else "FAILED")

    def verdicts(self, verdicts: Verdicts) -> None:
        """Log the table as an artifact, its numbers as metrics."""
        made, now = self._start("verdicts", {"purpose": "verdicts", "winner": verdicts.winner}), int(1000 * time.time())
        self.client.log_batch(made, [Metric(name, value, now, 0) for name, value in verdicts.numbers.items()], [],
                              [RunTag("mlflow.note.content", verdicts.advice[:4000])])
        self.client.log_dict(made, {"columns": verdicts.header, "data": verdicts.rows}, "verdicts.json")
        self.client.set_terminated(made)

    def close(self) -> str:
        """Return where the runs lie."""
        return f"{self.uri} (mlflow ui --backend-store-uri {self.uri})"
