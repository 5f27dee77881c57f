"""Trackio: a run per trial in a group per activation, in the project of the study's name; TRACKIO_DIR applies."""

from pathlib import Path
from typing import Any

import trackio  # pyright: ignore[reportMissingImports]

from nonlin.tracking.records import TrackedRun, Verdicts


def open_tracker(study: str, directory: Path) -> "TrackioTracker":
    """Return the tracker of a study."""
    return TrackioTracker(study)


class TrackioTracker:
    """Runs of one study as a project."""

    def __init__(self, study: str):
        self.project = f"nonlin-{study}"

    def _start(self, name: str, group: str, config: dict[str, Any]) -> Any:
        return trackio.init(project=self.project, name=name, group=group, config=config, embed=False,
                            auto_log_gpu=False, auto_log_cpu=False)

    def run(self, run: TrackedRun) -> None:
        """Log a finished run: its curves, and its outcome at the last step."""
        made = self._start(run.name, run.arm, {**run.config, "status": run.status})
        try:
            last = run.curve[-1][0] if run.curve else 0
            for step, values in run.curve:
                made.log({**values, **({f"outcome/{k}": v for k, v in run.outcome.items()} if step == last else {})},
                         step=step)
        finally:
            made.finish()

    def verdicts(self, verdicts: Verdicts) -> None:
        """Log the table and its numbers."""
        made = self._start("verdicts", "verdicts", {"winner": verdicts.winner, "advice": verdicts.advice})
        try:
            made.log({**verdicts.numbers, "verdicts": trackio.Table(columns=verdicts.header, rows=verdicts.rows)},
                     step=0)
        finally:
            made.finish()

    def close(self) -> str:
        """Return where the runs lie."""
        return f"project {self.project} (trackio show --project {self.project})"
