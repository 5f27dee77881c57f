"""The runs of a ladder: its rungs one after another, each forecast before the rung that tests it, and its page."""

import datetime
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nonlin.calls import own_ladder
from nonlin.calls.ladder import Ladder, ladder_of, watcher_of
from nonlin.errors import stopped_in
from nonlin.files import finite, inside, write_json
from nonlin.functions import get
from nonlin.ladder import folder, results
from nonlin.ladder.design import Rung, Settings
from nonlin.ladder.folder import LadderFolder
from nonlin.ladder.plan import LadderPlan
from nonlin.ladder.points import Finished
from nonlin.ladder.rates import Rule
from nonlin.model import ModelConfig, parameter_count
from nonlin.nn.widths import matched_hidden
from nonlin.progress import Progress
from nonlin.report.live import LivePages
from nonlin.study import Arm, Plan, Request, Store, make_plan, run_study
from nonlin.study.engines import Engine
from nonlin.training import recipe


def of_rung(whole: Request, one: Rung, settings: Settings, rates: Mapping[str, float] | None,
             center: float | None = None, training: Mapping[str, Any] | None = None,
             subject: Mapping[str, Any] | None = None) -> Request:
    """Return the request of a rung's study; ``rates`` are the carried ones, None where the rung is tuned."""
    arms, model = (_of_small(whole, one, settings) if subject is None else
                   own_ladder.of_rung(whole, subject, settings.context, settings.vocabulary))
    if rates is not None:
        arms = [replace(arm, learning_rate=rates[arm.name]) for arm in arms if arm.name in rates]
    return replace(whole, arms=arms, model=model, minutes=None, steps=one.steps,
                   seeds=settings.seeds, role=one.role if rates is not None else "tuned",
                   learning_rate=center or whole.learning_rate,
                   training={**whole.training, "keep_weights": False, **(training or {})})


def _of_small(whole: Request, one: Rung, settings: Settings) -> tuple[list[Arm], dict[str, Any]]:
    """Return a rung's arms and its model, of nonlin's small model."""
    sizes: dict[str, Any] = {"layers": one.layers, "dim": one.dim, "heads": one.heads, "kv_heads": one.heads,
                             "context": settings.context}
    arms = []
    for arm in whole.arms:
        hidden = 4 * one.dim if whole.match == "width" else matched_hidden(one.dim, arm.kind)
        config = ModelConfig(**sizes, vocabulary=settings.vocabulary, hidden=hidden)
        learned = 0 if arm.formula else len(get(arm.activation or arm.name).parameters)
        arms.append(replace(arm, hidden=hidden, parameters=parameter_count(config, arm.kind == "gated", learned)))
    return arms, sizes | {"vocabulary": settings.vocabulary}


def run(there: LadderFolder, whole: Request, transfer: Rule, engine: Engine | None, environment: Mapping[str, Any],
         words: Progress) -> Ladder:
    """Run the rungs that are missing, in their order; write each forecast before the rung that tests it.

    Where none is missing, no engine is needed.
    """
    made, finished = there.plan, list[Finished]()
    rungs = made.ordered()
    top = max((one for one, _ in rungs if one.longer == 1), key=lambda one: one.parameters)
    with _live(there):
        for one, name in rungs:
            if one == top:
                _forecast_top(there, finished, top, transfer, words)
            found = _run_rung(there, whole, one, name, finished, transfer, engine, environment, words)
            finished.append((one, found))
    _forecast_target(there, finished, transfer)
    shutil.rmtree(there.directory / folder.TRUNKS, ignore_errors=True)  # every branch has gone on
    return _finish(there)


def _run_rung(there: LadderFolder, whole: Request, one: Rung, name: str, finished: Sequence[Finished], transfer: Rule,
              engine: Engine | None, environment: Mapping[str, Any], words: Progress) -> Mapping[str, Any]:
    """Run what is missing of a rung's study and return its results."""
    made, directory = there.plan, there.directory / folder.RUNGS / name
    done = there.study(name)
    if done is not None and done.results is not None and done.results["status"] == "complete":
        return done.results
    assert engine is not None
    settings, base = made.steady, made.ordered()[0][0]
    rates = results.rates_at(made, one, finished, transfer)
    if rates is not None:
        results.must_compare(made, rates)
    request = of_rung(whole, one, settings, rates, whole.learning_rate * transfer.factor(base, one),
                       transfer.training(one, base, whole.learning_rate, (made.subject(base) or {}).get("own"))
                       | _warmup(made, whole, one), made.subject(one))
    from nonlin.report import LivePage, build  # here, so that a ladder's look costs no library that draws

    inside(inside(directory.parent) / name)
    store = Store(directory)
    _link_data(there.directory, directory)
    _take_over(there, name)
    study = store.resume(request) or _study_plan(request, made, one, engine.total(), name)
    words.say(f"Rung {one.name}: {one.parameters:,} parameters, {one.tokens:,} tokens")
    with words, LivePage(directory):
        found = finite(run_study(study, store, engine, words, environment, _trunks(there, one)))
    if found["status"] == "interrupted":
        raise stopped_in(there.directory, _finish(there))
    build(directory)
    return found


def _warmup(made: LadderPlan, whole: Request, one: Rung) -> dict[str, Any]:
    """Return the warm-up of a branch in steps: that of the shorter run, whose beginning it has."""
    short = next((other for other, _ in made.ordered() if one.branches and other.longer == 1
                  and other.parameters == one.parameters), None)
    return {} if short is None else {"warmup_steps": recipe.warmup_steps(whole.training, short.steps)}


def _trunks(there: LadderFolder, one: Rung) -> Path | None:
    """Return the folder of the runs' beginnings where a rung shares them with one of another horizon."""
    shared = any(other.branches and other.parameters == one.parameters for other, _ in there.plan.ordered())
    return there.directory / folder.TRUNKS if shared else None


def _study_plan(request: Request, made: LadderPlan, one: Rung, workers: int, name: str) -> Plan:
    run = results.seconds_of(made.timing | {"seconds_overhead": 0.0, "mean_over_baseline": 1.0})(one)
    speeds = {arm.name: {"tokens_per_second": one.tokens / run / made.timing["over_baseline"][arm.name],
                         "seconds_overhead": made.timing["seconds_overhead"]} for arm in request.arms}
    return make_plan(request, speeds, made.machine, workers, name)


def _link_data(ladder: Path, rung: Path) -> None:
    """Let a rung's folder show the ladder's tokens, as any study has them."""
    link = rung / "data"
    if not os.path.lexists(link):
        link.symlink_to(os.path.relpath(ladder / "data", rung), target_is_directory=True)


def _take_over(there: LadderFolder, name: str) -> None:
    """Give a rung of more seeds the finished runs of the one before it."""
    before = there.plan.folder_before(name)
    if before is None:
        return
    source = there.directory / folder.RUNGS / before / "trials"
    target = inside(there.directory / folder.RUNGS / name / "trials")
    for trial in sorted(source.iterdir()) if source.is_dir() else ():
        if not os.path.lexists(target / trial.name):
            shutil.copytree(trial, target / f".{trial.name}", dirs_exist_ok=True)
            os.rename(target / f".{trial.name}", target / trial.name)  # whole, or not at all


def _live(there: LadderFolder) -> LivePages:
    """Keep the ladder's page up to date while a block runs."""
    from nonlin.report import ladder as page

    return LivePages(watcher_of(there), lambda: ladder_of(there).results, page)


def _forecast_top(there: LadderFolder, finished: Sequence[Finished], top: Rung, transfer: Rule, words: Progress
                  ) -> None:
    """Write down the forecast of the top rung, unless one from the same rungs lies there."""
    from_rungs = [one.name for one, _ in finished if one.longer == 1]
    for made in there.forecasts():
        tested = any(at["what"] == "held-out rung" and at["parameters"] == top.parameters for at in made["at"])
        if tested and made["rungs"] == from_rungs and made["seeds"] == there.plan.steady.seeds:
            return
    sizes = {"held-out rung": float(top.parameters), "target": there.plan.target}
    _write_forecast(there, finished, transfer, sizes, not there.begun(top))
    words.say(f"The forecast of {top.name} is written down in {there.directory / folder.FORECASTS}.")


def _forecast_target(there: LadderFolder, finished: Sequence[Finished], transfer: Rule) -> None:
    """Write down the forecast of the target from all rungs, unless the last one is of the same rungs and target."""
    from_rungs = [one.name for one, _ in finished if one.longer == 1]
    known = there.forecasts()
    last = known[-1] if known else {}
    if (last.get("rungs"), last.get("seeds")) == (from_rungs, there.plan.steady.seeds) and any(
            at["parameters"] == there.plan.target for at in last["at"]):
        return
    _write_forecast(there, finished, transfer, {"target": there.plan.target}, False)


def _write_forecast(there: LadderFolder, finished: Sequence[Finished], transfer: Rule, sizes: Mapping[str, float],
                    before: bool) -> None:
    made = results.written_forecast(there.plan, finished, transfer, sizes, before)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    there.add_forecast(made | {"timing": {"written": now}})


def _finish(there: LadderFolder) -> Ladder:
    """Write results.json and the page of what is there."""
    found = ladder_of(there)
    write_json(there.directory / folder.RESULTS, found.results)
    found.build_report(ended=True)
    return found

