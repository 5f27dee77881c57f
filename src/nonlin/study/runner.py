"""Running a plan: what comes next, on which engine, and what is known so far."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nonlin.errors import UserError
from nonlin.study.engines.protocol import Engine
from nonlin.study.jobs import Jobs
from nonlin.study.plan import Plan
from nonlin.study.results import csv_rows, ranking, results
from nonlin.study.schedule import Schedule
from nonlin.study.snapshot import Pulse
from nonlin.study.store import Store
from nonlin.study.tuning import Trial, tuning
from nonlin.subject.vouching import must_be_vouched

Listener = Callable[[dict[str, Any]], None]
_PROGRESS_SECONDS = 0.5  # between two events that only tell of progress inside runs
_TELLING_SHARE = 0.05  # of the time, at most, goes into telling


def run_study(plan: Plan, store: Store, engine: Engine, listener: Listener | None = None,
              environment: Mapping[str, Any] | None = None, trunks: Path | None = None) -> dict[str, Any]:
    """Run what is missing of a plan and return its results, written to the store too.

    Studies of one model may differ in the length of their runs. Those of "wsd" share their beginnings where they are
    given one folder for ``trunks``. No result depends on it.

    ``listener`` gets {"stage", "done", "total", "seconds_left", "ranking", "running", "message"}. Ctrl-C ends the
    workers and returns what is known, with "status": "interrupted". Raises UserError where the disk is full,
    where another process runs the study, or where everything diverged. A model that is a function not passed here is
    one too. NonlinError is raised, after all else has run, where runs fail by themselves. Whatever happens, finished
    runs stay, and the next call continues, on any engine.
    """
    store.must_go_on(plan)
    must_be_vouched(plan.model.get("own"), "compare", store.directory)
    with store.lock():
        store.create(plan)
        study = _Study(plan, store, engine, listener or (lambda _: None), trunks)
        interrupted = False
        try:
            study.run()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            study.jobs.stop()
            study.pulse.end()
        found = results(plan, study.records, environment, study.seconds(), interrupted)
        found["timing"]["lost_attempts"] = dict(study.jobs.lost)
        store.write_results(found, csv_rows(found))
        if not interrupted:
            study.jobs.check()
            if not any(arm["judged"] for arm in found["arms"]):
                raise _all_diverged(plan, study)
        return found


def _all_diverged(plan: Plan, study: "_Study") -> UserError:
    rates = sorted({rate for arm in plan.arms for rate in tuning(plan, arm["name"], study.records).rates})
    return UserError(
        f"compare: learning rates must let some activation train; all {len(plan.arms)} diverged at every rate from "
        f"{rates[0]:g} to {rates[-1]:g}. Start a study in another folder with --learning-rate {rates[0] / 100:g}.")


class _Study:
    def __init__(self, plan: Plan, store: Store, engine: Engine, listener: Listener, trunks: Path | None = None):
        self.plan, self.engine, self.listener = plan, engine, listener
        self.jobs = Jobs(store, engine, lambda text: self.tell(message=text), trunks)
        self.records = self.jobs.records
        self.schedule, self.pulse = Schedule(plan), Pulse(store.directory)
        self.began, self.told, self.telling = time.monotonic(), 0.0, 0.0
        self.spent, self.predicted = 0.0, 0.0  # seconds of finished runs: measured, and as planned

    def run(self) -> None:
        """Run until nothing is left."""
        self._take(self.schedule.first)
        self.tell()
        while self.jobs.busy:
            ended = self.jobs.step(_PROGRESS_SECONDS)
            for job in ended:
                assert isinstance(job, Trial)
                self._take(self._add(job))
            self._give_up_arms()
            since, stage = time.monotonic() - self.told, self.schedule.stage
            if since > _PROGRESS_SECONDS or (ended and since > self.telling / _TELLING_SHARE) or stage != self.stage:
                self.tell()
        self.tell()

    def _take(self, trials: Sequence[Trial]) -> None:
        """Take trials that the plan asks for: their records, where earlier calls finished them; the others wait.

        Tuning comes first, since judged runs wait for it; then seed by seed, so that the ranking forms fairly; the
        longest first.
        """
        while trials:
            known = {trial.key for trial in self.jobs.recall(trials)}
            following: list[Trial] = []
            for trial in trials:
                if trial.key in known:
                    self.jobs.waiting.place(trial.seed, self.records[trial.key].get("processor"))
                    following += self._add(trial)
            for trial in trials:
                if trial.key not in known:
                    priority = (trial.purpose != "tune", trial.seed, -self.plan.trial_seconds(trial.arm, trial.purpose))
                    self.jobs.offer(trial, priority, trial.seed)
            trials = following

    def _add(self, trial: Trial) -> list[Trial]:
        """Let the schedule know a record, and a finished run correct the prediction of what is left."""
        record = self.records[trial.key]
        if record["status"] == "finished":
            self.spent += record["timing"]["seconds"]
            self.predicted += self.plan.trial_seconds(trial.arm, trial.purpose)
        return self.schedule.add(trial.key, record)

    def _give_up_arms(self) -> None:
        """Start no more runs of an arm of which one failed by itself: it would fail again, and no verdict comes."""
        if self.jobs.failed:
            arms = {job.arm for job, _ in self.jobs.failed.values() if isinstance(job, Trial)}
            self.jobs.waiting.drop(lambda job: isinstance(job, Trial) and job.arm in arms)

    def seconds(self) -> float:
        """How long this call has been running."""
        return time.monotonic() - self.began

    def _seconds_left(self) -> float:
        """The predicted time of what is left, corrected by how the predictions did so far."""
        total, longest = self.schedule.seconds()
        for run in self.jobs.running.values():
            trial = run.job
            assert isinstance(trial, Trial)
            share = run.progress["step"] / max(1, trial.config["training"]["steps"])
            total -= share * self.plan.trial_seconds(trial.arm, trial.purpose)
        left = max(total / self.engine.total(), longest if total > longest else total, 0.0)
        return left * (self.spent / self.predicted if self.predicted else 1.0)

    def tell(self, message: str | None = None) -> None:
        """Send an event."""
        begin = time.monotonic()
        self.stage = self.schedule.stage
        done, total = self.schedule.counts(self.stage)
        event = {
            "stage": self.stage, "done": done, "total": total, "seconds_left": self._seconds_left(),
            "ranking": ranking(self.plan, self.records), "message": message,
            "running": [self._running(run.job, run.progress) for run in self.jobs.running.values()]}
        self.pulse(event)
        self.listener(event)
        self.told = time.monotonic()
        self.telling = self.told - begin

    @staticmethod
    def _running(job: Any, progress: Mapping[str, Any]) -> dict[str, Any]:
        return {"name": job.arm, "purpose": job.purpose, "learning_rate": job.learning_rate, "seed": job.seed,
                "step": progress["step"], "steps": job.config["training"]["steps"],
                "loss_nats": progress["loss_nats"]}
