"""Running claims: what their experiments and studies still ask for, and what their records say."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nonlin.claims.claim import OPEN, Claim, Found, Verdict
from nonlin.claims.plan import ClaimsPlan
from nonlin.errors import UserError
from nonlin.study.budget import makespan
from nonlin.study.engine import Engine
from nonlin.study.jobs import Job, Jobs
from nonlin.study.store import Store
from nonlin.study.tuning import trials_of, tuning

Listener = Callable[[dict[str, Any]], None]
_PROGRESS_SECONDS = 0.5


def run_claims(plan: ClaimsPlan, claims: Sequence[Claim], everything: Sequence[Claim], store: Store, engine: Engine,
               listener: Listener | None = None, environment: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run what ``claims`` still miss and return the results of ``everything``, written to the store too.

    Ctrl-C ends the workers and returns what is known, with "status": "interrupted". Finished runs stay, whatever
    happens; the next call continues.
    """
    with store.lock():
        store.create(plan)
        work = _Work(plan, claims, store, engine, listener or (lambda _: None))
        interrupted = False
        try:
            work.run()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if work.jobs.running:
                engine.close()
        found = results(plan, everything, store, environment, work.seconds(), interrupted)
        store.write_results(found, csv_rows(found))
        return found


class _Work:
    def __init__(self, plan: ClaimsPlan, claims: Sequence[Claim], store: Store, engine: Engine, listener: Listener):
        self.engine, self.listener = engine, listener
        self.jobs = Jobs(store, engine, lambda text: self.tell(text))
        self.experiments = [e for claim in claims for e in claim.experiments(plan)]
        self.studies = [plan.study(name) for name in dict.fromkeys(n for c in claims for n in c.studies)]
        self.workers, self.began, self.told = plan.workers, time.monotonic(), 0.0
        self.left: tuple[int, int, list[float]] = (-1, 0, [])  # for how many records, and what _left found
        self.asked: set[str] = set()

    def run(self) -> None:
        """Run until nothing is left."""
        waiting = self._waiting()
        while True:
            while waiting and self.engine.idle():
                self.jobs.start(waiting.pop(0))
            if not self.jobs.running:
                return
            ended = [self.jobs.handle(event) for event in self.engine.wait(_PROGRESS_SECONDS)]
            if any(ended):
                waiting = self._waiting()
            if time.monotonic() - self.told > _PROGRESS_SECONDS:
                self.tell()

    def _waiting(self) -> list[Job]:
        """What can start now, the longest first among experiments, then tuning before judged runs."""
        while True:
            wanted: dict[str, Job] = {e.key: e for e in sorted(self.experiments, key=lambda e: -e.seconds)}
            for stage in ("tune", "judge"):
                for study in self.studies:
                    wanted |= {t.key: t for t in trials_of(study, stage, self.jobs.records)}
            new = [job for key, job in wanted.items() if key not in self.asked]
            self.asked |= {job.key for job in new}
            if not self.jobs.recall(new):
                done = self.jobs.records.keys() | self.jobs.running.keys()
                return [job for key, job in wanted.items() if key not in done]

    def seconds(self) -> float:
        """How long this call has been running."""
        return time.monotonic() - self.began

    def _left(self) -> tuple[int, list[float]]:
        """How many runs there are in all as far as known, and the seconds of each that is missing."""
        records = self.jobs.records
        seconds = {e.key: e.seconds for e in self.experiments}
        later: list[float] = []
        for study in self.studies:
            for trial in [*trials_of(study, "tune", {}), *trials_of(study, "tune", records),
                          *trials_of(study, "judge", records)]:
                seconds[trial.key] = study.trial_seconds(trial.arm, trial.purpose)
            for arm in (a["name"] for a in study.arms):
                if not tuning(study, arm, records).done:
                    later += [study.trial_seconds(arm, "judge")] * len(study.judge_seeds)
        missing = [value for key, value in seconds.items() if key not in records]
        return len(records.keys() | seconds.keys()) + len(later), missing + later

    def tell(self, message: str | None = None) -> None:
        """Send an event."""
        self.told = time.monotonic()
        if self.left[0] != len(self.jobs.records):  # not at every event: it looks at every study
            self.left = (len(self.jobs.records), *self._left())
        _, total, missing = self.left
        running = [{"name": job.name, "purpose": "claims", "seed": None,
                    "step": p["step"] or 0, "steps": job.config.get("training", {}).get("steps", 1)}
                   for job, _, p in self.jobs.running.values()]
        self.listener({"stage": "claims", "done": total - len(missing), "total": total,
                       "seconds_left": makespan(missing, self.workers) if missing else 0.0, "ranking": [],
                       "running": running, "message": message})


def read(plan: ClaimsPlan, claims: Iterable[Claim], store: Store) -> Found:
    """Return the records that the claims ask for and that lie in the store, whole."""
    jobs = Jobs(store, None, lambda _: None)  # type: ignore[arg-type]  # it starts none
    jobs.recall([e for claim in claims for e in claim.experiments(plan)])
    for name in dict.fromkeys(n for c in claims for n in c.studies):
        study, asked = plan.study(name), set()
        while new := [t for stage in ("tune", "judge") for t in trials_of(study, stage, jobs.records)
                      if t.key not in asked]:
            asked |= {t.key for t in new}
            jobs.recall(new)
    return Found(plan, jobs.records, lambda key: _lines(store.directory / "trials" / key))


def _lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def results(plan: ClaimsPlan, claims: Sequence[Claim], store: Store, environment: Mapping[str, Any] | None = None,
            seconds: float = 0.0, interrupted: bool = False) -> dict[str, Any]:
    """Return the values of results.json: every claim's verdict and numbers, None where its runs are missing."""
    found = read(plan, list(claims), store)
    rows = [_claim(claim, plan, found) for claim in claims]
    done = all(row["verdict"] for row in rows)
    return {"format": 1, "status": "interrupted" if interrupted else "complete" if done else "partial",
            "claims": rows, "plan": plan.as_dict(), "data": plan.data, "environment": dict(environment or {}),
            "timing": {"seconds": seconds,
                       "run_seconds": sum(r["timing"]["seconds"] for r in found.records.values())}}


def _claim(claim: Claim, plan: ClaimsPlan, found: Found) -> dict[str, Any]:
    base = {"number": claim.number, "slug": claim.slug, "statement": claim.statement, "rule": claim.rule,
            "missing": claim.missing()}
    experiments, studies = claim.experiments(plan), [plan.study(name) for name in claim.studies]
    if not found.done(experiments, studies):
        return base | {"verdict": None, "summary": "Not run yet.", "on": None, "parts": {}, "measures": None}
    measures, verdict = judge(claim, found)
    seconds = sum(found.records[e.key]["timing"]["seconds"] for e in experiments)
    return base | verdict.as_dict() | {"measures": measures, "timing": {"experiments": seconds}}


def judge(claim: Claim, found: Found) -> tuple[dict[str, Any] | None, Verdict]:
    """Return a claim's numbers and verdict; not settled, without numbers, where too few of its runs trained."""
    try:
        measures = claim.measure(found)
        return measures, claim.decide(measures)
    except UserError as error:
        return None, Verdict(OPEN, f"Too few of its runs trained to compare them: {error}")


def csv_rows(found: Mapping[str, Any]) -> list[list[Any]]:
    """Return results.csv's rows: a header, then one a claim."""
    rows: list[list[Any]] = [["number", "statement", "verdict", "on", "summary"]]
    return rows + [[c["number"], c["statement"], c["verdict"] or "", c["on"] or "", c["summary"]]
                   for c in found["claims"]]


