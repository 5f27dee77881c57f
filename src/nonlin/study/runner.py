"""Running a plan: what comes next, on which engine, and what is known so far."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from nonlin.errors import UserError
from nonlin.study.budget import makespan
from nonlin.study.engine import Engine, Event
from nonlin.study.jobs import Jobs
from nonlin.study.plan import Plan
from nonlin.study.results import csv_rows, ranking, results
from nonlin.study.store import Store
from nonlin.study.tuning import Trial, trials_of, tuning

Listener = Callable[[dict[str, Any]], None]
_PROGRESS_SECONDS = 0.5  # between two events that only tell of progress inside runs


def run_study(plan: Plan, store: Store, engine: Engine, listener: Listener | None = None,
              environment: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run what is missing of a plan and return its results, written to the store too.

    ``listener`` gets {"stage", "done", "total", "seconds_left", "ranking", "running", "message"}. Ctrl-C ends the
    workers and returns what is known, with "status": "interrupted". Raises UserError where the disk is full,
    where another process runs the study, or where everything diverged; NonlinError where a run fails twice.
    Whatever happens, finished runs stay, and the next call continues.
    """
    with store.lock():
        store.create(plan)
        study = _Study(plan, store, engine, listener or (lambda _: None))
        interrupted = False
        try:
            study.read_records()
            study.run()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if study.jobs.running:
                engine.close()  # whatever they were at belongs to no one now
        found = results(plan, study.records, environment, study.seconds(), interrupted)
        store.write_results(found, csv_rows(found))
        if not interrupted and not any(arm["judged"] for arm in found["arms"]):
            raise _all_diverged(plan, study)
        return found


def _all_diverged(plan: Plan, study: "_Study") -> UserError:
    rates = sorted({rate for arm in plan.arms for rate in tuning(plan, arm["name"], study.records).rates})
    return UserError(
        f"compare: learning rates must let some activation train; all {len(plan.arms)} diverged at every rate from "
        f"{rates[0]:g} to {rates[-1]:g}. Start a study in another folder with --learning-rate {rates[0] / 100:g}.")


class _Study:
    def __init__(self, plan: Plan, store: Store, engine: Engine, listener: Listener):
        self.plan, self.engine, self.listener = plan, engine, listener
        self.jobs = Jobs(store, engine, lambda text: self.tell(message=text))
        self.records = self.jobs.records
        self.began, self.told = time.monotonic(), 0.0
        self.spent, self.predicted = 0.0, 0.0  # seconds of finished runs: measured, and as planned

    def read_records(self) -> None:
        """Take what earlier calls finished, as far as the plan asks for it."""
        while wanted := [*trials_of(self.plan, "tune", self.records), *trials_of(self.plan, "judge", self.records)]:
            if not self.jobs.recall(wanted):
                return
            for trial in wanted:
                if trial.key in self.records:
                    self._count(trial)

    def run(self) -> None:
        """Run until nothing is left."""
        self.tell()
        while True:
            waiting = self._waiting()
            while waiting and self.engine.idle():
                self.jobs.start(waiting.pop(0))
            if not self.jobs.running:
                return
            for event in self.engine.wait(_PROGRESS_SECONDS):
                self._handle(event)
            if time.monotonic() - self.told > _PROGRESS_SECONDS:
                self.tell()

    def _waiting(self) -> list[Trial]:
        """What can start now: tuning first, since judged runs wait for it; then seed by seed, so that the ranking
        forms fairly; the longest first."""
        found: list[Trial] = []
        for stage in ("tune", "judge"):
            trials = [t for t in trials_of(self.plan, stage, self.records) if t.key not in self.jobs.running]
            found += sorted(trials, key=lambda t: (t.seed, -self.plan.trial_seconds(t.arm, t.purpose)))
        return found

    def _handle(self, event: Event) -> None:
        ended = self.jobs.handle(event)
        if isinstance(ended, Trial):
            self._count(ended)
            self.read_records()  # what it decides may have run already, before a damaged record was put aside
            self.tell()

    def seconds(self) -> float:
        """How long this call has been running."""
        return time.monotonic() - self.began

    def _seconds_left(self) -> float:
        """The predicted time of what is left, corrected by how the predictions did so far."""
        left: list[float] = []
        for arm in (a["name"] for a in self.plan.arms):
            state = tuning(self.plan, arm, self.records)
            missing = sum(loss is None for loss in state.losses) * len(self.plan.tune_seeds)
            left += [self.plan.trial_seconds(arm, "tune")] * missing
            if not state.done:
                left += [self.plan.trial_seconds(arm, "judge")] * len(self.plan.judge_seeds)
        for trial in trials_of(self.plan, "judge", self.records):
            left.append(self.plan.trial_seconds(trial.arm, "judge"))
        for trial, _, progress in self.jobs.running.values():
            share = progress["step"] / max(1, trial.config["training"]["steps"])
            left.append(-share * self.plan.trial_seconds(trial.arm, trial.purpose))
        done = -sum(x for x in left if x < 0)
        total = max(0.0, makespan([x for x in left if x > 0], self.plan.workers) - done / self.plan.workers)
        return total * (self.spent / self.predicted if self.predicted else 1.0)

    def _count(self, trial: Trial) -> None:
        """Let a finished run correct the prediction of what is left."""
        record = self.records[trial.key]
        if record["status"] == "finished":
            self.spent += record["timing"]["seconds"]
            self.predicted += self.plan.trial_seconds(trial.arm, trial.purpose)

    def tell(self, message: str | None = None) -> None:
        """Send an event."""
        self.told = time.monotonic()
        states = {a["name"]: tuning(self.plan, a["name"], self.records) for a in self.plan.arms}
        stage = "judge" if all(state.done for state in states.values()) else "tune"
        if stage == "tune":
            losses = [loss for state in states.values() for loss in state.losses]
            total, done = len(losses), sum(loss is not None for loss in losses)
        else:
            able = sum(state.best is not None for state in states.values())
            total = able * len(self.plan.judge_seeds)
            done = total - len(trials_of(self.plan, "judge", self.records))
        self.listener({
            "stage": stage, "done": done, "total": total, "seconds_left": self._seconds_left(),
            "ranking": ranking(self.plan, self.records), "message": message,
            "running": [{"name": t.arm, "purpose": t.purpose, "learning_rate": t.learning_rate, "seed": t.seed,
                         "step": p["step"], "steps": t.config["training"]["steps"], "loss_nats": p["loss_nats"]}
                        for t, _, p in self.jobs.running.values()]})
