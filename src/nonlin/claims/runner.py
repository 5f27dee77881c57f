"""Running claims: what their experiments and studies still ask for, and what their records say."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from nonlin.claims.definition import OPEN, Claim, Found, Verdict
from nonlin.claims.needs import share_needed
from nonlin.claims.plan import ClaimsPlan, minutes_for
from nonlin.errors import UserError
from nonlin.numbers import typeset
from nonlin.study.budget import makespan
from nonlin.study.engines import Engine
from nonlin.study.folder import measures_of
from nonlin.study.jobs import Jobs
from nonlin.study.schedule import Schedule
from nonlin.study.store import Store
from nonlin.study.tuning import Trial

Listener = Callable[[dict[str, Any]], None]
_PROGRESS_SECONDS = 0.5


def run_claims(plan: ClaimsPlan, claims: Sequence[Claim], everything: Sequence[Claim], store: Store, engine: Engine,
               listener: Listener | None = None, environment: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run what ``claims`` still miss and return the results of ``everything``, written to the store too.

    Ctrl-C ends the workers and returns what is known, with "status": "interrupted". Finished runs stay, whatever
    happens; the next call continues, on any engine. Raises NonlinError, after all else has run, where runs fail.
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
            work.jobs.stop()
        found = results(plan, everything, store, environment, work.seconds(), interrupted)
        store.write_results(found, csv_rows(found))
        if not interrupted:
            work.jobs.check()
        return found


class _Work:
    def __init__(self, plan: ClaimsPlan, claims: Sequence[Claim], store: Store, engine: Engine, listener: Listener):
        self.engine, self.listener = engine, listener
        self.jobs = Jobs(store, engine, lambda text: self.tell(text))
        self.experiments = {e.key: e for claim in claims for e in claim.experiments(plan)}
        names = dict.fromkeys(n for c in claims for n in c.studies)
        self.schedules = [Schedule(plan.study(name)) for name in names]
        self.began, self.told = time.monotonic(), 0.0
        self.owners: dict[str, list[Schedule]] = {}  # studies share runs of equal configuration
        self.seconds_of = {key: e.seconds for key, e in self.experiments.items()}  # of every run asked for so far

    def run(self) -> None:
        """Run until nothing is left: experiments, the longest first; then tuning, then judged runs."""
        recalled = {job.key for job in self.jobs.recall(list(self.experiments.values()))}
        for experiment in self.experiments.values():
            if experiment.key not in recalled:
                self.jobs.offer(experiment, (0, -experiment.seconds))
        for schedule in self.schedules:
            self._take(schedule, schedule.first)
        while self.jobs.busy:
            for job in self.jobs.step(_PROGRESS_SECONDS):
                self._add(job.key)
            if time.monotonic() - self.told > _PROGRESS_SECONDS:
                self.tell()
        self.tell()

    def _take(self, schedule: Schedule, trials: Sequence[Trial]) -> None:
        """Take trials that a study asks for; those of equal configuration are one run."""
        for trial in trials:
            new = trial.key not in self.owners
            self.owners.setdefault(trial.key, []).append(schedule)
            self.seconds_of.setdefault(trial.key, schedule.plan.trial_seconds(trial.arm, trial.purpose))
            if trial.key in self.jobs.records or (new and self.jobs.recall([trial])):
                self.jobs.waiting.place(trial.seed, self.jobs.records[trial.key].get("processor"))
                self._add(trial.key)
            elif new:
                self.jobs.offer(trial, (1, trial.purpose != "tune"), trial.seed)

    def _add(self, key: str) -> None:
        """Let every study that asked for a run know its record."""
        for schedule in self.owners.get(key, []):
            if key in schedule.missing:
                self._take(schedule, schedule.add(key, self.jobs.records[key]))

    def seconds(self) -> float:
        """How long this call has been running."""
        return time.monotonic() - self.began

    def tell(self, message: str | None = None) -> None:
        """Send an event."""
        self.told = time.monotonic()
        later = [schedule.later_seconds() for schedule in self.schedules]
        records, known = self.jobs.records, self.seconds_of
        missing = [seconds for key, seconds in known.items() if key not in records]
        missing += [seconds for each in later for seconds in each]
        total = len(known.keys() | records.keys()) + sum(map(len, later))
        running = [{"name": run.job.name, "purpose": "claims", "seed": None, "step": run.progress["step"] or 0,
                    "steps": run.job.config.get("training", {}).get("steps", 1)} for run in self.jobs.running.values()]
        self.listener({"stage": "claims", "done": total - len(missing), "total": total,
                       "seconds_left": makespan(missing, self.engine.total()) if missing else 0.0, "ranking": [],
                       "running": running, "message": message})


def read(plan: ClaimsPlan, claims: Iterable[Claim], store: Store) -> Found:
    """Return the records that the claims ask for and that lie in the store, whole."""
    jobs = Jobs(store, None, lambda _: None)  # type: ignore[arg-type]  # it starts none
    jobs.recall([e for claim in claims for e in claim.experiments(plan)])
    for name in dict.fromkeys(n for c in claims for n in c.studies):
        schedule = Schedule(plan.study(name))
        trials = schedule.first
        while trials:
            jobs.recall([trial for trial in trials if trial.key not in jobs.records])
            trials = [new for trial in trials if trial.key in jobs.records
                      for new in schedule.add(trial.key, jobs.records[trial.key])]
    return Found(plan, jobs.records, lambda key: measures_of(store.directory, key))


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


@contextlib.contextmanager
def as_measured(number: int) -> Iterator[None]:
    """Raise UserError where the records of a claim's experiments, which each have a form of its own, hold others."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"claims: the runs of claim {number} must hold what they measured; {type(error).__name__}: "
                        f"{' '.join(str(error).split())[:160]}. Remove trials/, or start in another folder: its runs "
                        "are made anew.") from error


def _claim(claim: Claim, plan: ClaimsPlan, found: Found) -> dict[str, Any]:
    with as_measured(claim.number):
        return _told(claim, plan, found)


def _told(claim: Claim, plan: ClaimsPlan, found: Found) -> dict[str, Any]:
    base = {"number": claim.number, "slug": claim.slug, "statement": claim.statement, "rule": claim.rule,
            "missing": claim.missing()}
    experiments, studies = claim.experiments(plan), [plan.study(name) for name in claim.studies]
    if not found.done(experiments, studies):
        return base | {"verdict": None, "summary": "Not run yet.", "on": None, "parts": {}, "measures": None}
    measures, verdict = answer(claim, found)
    seconds = sum(found.records[e.key]["timing"]["seconds"] for e in experiments)
    words = {"summary": typeset(verdict.summary), "on": typeset(verdict.on) if verdict.on else None}
    return base | verdict.as_dict() | words | {
        "measures": measures, "timing": {"experiments": seconds}, "minutes": _minutes(claim, measures, verdict, plan)}


def _minutes(claim: Claim, measures: Mapping[str, Any] | None, verdict: Verdict, plan: ClaimsPlan) -> dict[str, Any]:
    """The minutes planned here, and those that would decide what is open: an estimate, None where there is none."""
    planned, open_ = plan.request["minutes"], verdict.verdict == OPEN and measures is not None
    questions = claim.questions(measures) if open_ and measures else []
    share = share_needed(questions) if questions else None
    return {"planned": planned, "needed": None if share is None else minutes_for(plan, share)}


def answer(claim: Claim, found: Found) -> tuple[dict[str, Any] | None, Verdict]:
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


