"""Weights & Biases: a run per trial in a group per activation; ``WANDB_MODE=offline`` and all its settings apply."""

import os
from pathlib import Path
from typing import Any

import wandb  # pyright: ignore[reportMissingImports]

from nonlin.errors import UserError
from nonlin.tracking.records import TrackedRun, Verdicts

PROJECT = "nonlin"


def open_tracker(study: str, directory: Path) -> "WandbTracker":
    """Return the tracker; UserError where a key would have to be asked for."""
    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in ("offline", "disabled", "dryrun") and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
        raise UserError("wandb must know your key; it has none. Call `wandb login`, or set WANDB_MODE=offline")
    return WandbTracker(study, directory)


class WandbTracker:
    """Runs of one study, in the project of WANDB_PROJECT or "nonlin"."""

    def __init__(self, study: str, directory: Path):
        self.study = study
        self.folder = os.environ.get("WANDB_DIR") or str(directory / "tracking")

    def _start(self, name: str, group: str, job: str, key: str, config: dict[str, Any]) -> Any:
        settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True)
        return wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT), dir=self.folder, name=name, group=group,
                          job_type=job, id=f"{_plain(self.study)}-{key}", config=config, tags=[self.study[:64]],
                          reinit="create_new", settings=settings)

    def run(self, run: TrackedRun) -> None:
        """Log a finished run; one that diverged is marked as failed."""
        made = self._start(run.name, run.arm, run.purpose, run.key, run.config)
        try:
            for step, values in run.curve:
                made.log(values, step=step)
            made.summary.update({**run.outcome, "status": run.status})
        finally:
            made.finish(exit_code=0 if run.status == "finished" else 1)

    def verdicts(self, verdicts: Verdicts) -> None:
        """Log the table, its numbers as the summary, and the advice."""
        made = self._start("verdicts", "verdicts", "verdicts", f"verdicts-{verdicts.key}", {})
        try:
            columns: Any = verdicts.header
            data: Any = verdicts.rows
            made.log({"verdicts": wandb.Table(columns=columns, data=data)})
            made.summary.update({**verdicts.numbers, "winner": verdicts.winner, "advice": verdicts.advice})
        finally:
            made.finish()

    def close(self) -> str:
        """Return where the runs lie."""
        offline = os.environ.get("WANDB_MODE", "online") != "online"
        return f"{self.folder}/wandb (offline; wandb sync sends it)" if offline else "the project's page on wandb"


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name)[:60]
