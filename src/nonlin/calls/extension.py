"""``nonlin.extend_study``: a study grows by seeds, by activations, by minutes; its finished runs are kept."""

from pathlib import Path
from typing import Any

from nonlin.calls.arguments import Activations
from nonlin.calls.comparison import arms_of, check_defined, definitions_of, prepare_again, run
from nonlin.calls.study import Study
from nonlin.errors import UserError, not_empty, rule
from nonlin.functions.catalog_names import without_pluses
from nonlin.numbers import counted
from nonlin.progress import Progress, listener, span
from nonlin.study import Arm, Plan, Store, load
from nonlin.study.engines import Engine, EngineChoice, ask
from nonlin.study.engines.choice import chosen_engine
from nonlin.study.engines.opening import fit_to_records, measure_and_fit, open_engine
from nonlin.study.extension import extended, looked_at, seeds_in, with_baseline
from nonlin.study.folder import plan_in


def extend_study(directory: str | Path, *, seeds: int | None = None, activations: Activations | None = None,
                 minutes: float | None = None, engine: str | EngineChoice = "processes", workers: int | None = None,
                 progress: bool = True) -> Study:
    """Add judged seeds, activations, or both to the study in a folder, run what is missing, and return it.

    ``seeds``: the judged seeds of each activation in all. ``minutes``: add as many seeds as fit in so many. New
    ``activations`` are tuned and judged as the others were, and join them in Holm's correction. Finished runs are kept
    and counted. Seeds that are added after a judged run ended are a further stage, whose tests have a level of their
    own. Looking and adding until something is found would find what is not there. The plan keeps its history.

    ``engine``, ``workers`` and ``progress`` are as in :func:`nonlin.compare`. Raises UserError for values that add
    nothing, where no study is, and where it runs; Interrupted at Ctrl-C: ``resume_study`` goes on.

    >>> from nonlin import compare
    >>> study = compare(activations=["gelu", "swiglu"], steps=20, seeds=4, learning_rates=2, layers=1, dim=16,
    ...                 heads=2, context=16, out=getfixture("tmp_path") / "study", progress=False)
    >>> study = extend_study(study.directory, seeds=5, progress=False)
    >>> study.verdicts["swiglu"].difference.seeds, study.plan.looks
    (5, [4, 5])
    """
    not_empty("extend_study", directory=directory, activations=activations, engine=engine)
    choice, words = chosen_engine(engine, workers), listener(progress)
    directory = Path(directory)
    plan = plan_in(directory)
    store = Store(directory)
    store.must_go_on(plan)
    _check(seeds, activations, minutes)
    arms = _arms(plan, activations)
    extended(plan, len(plan.judge_seeds) + (0 if arms else 1) if seeds is None else seeds, arms,
             {arm.name: {"tokens_per_second": 1.0} for arm in arms})  # a mistake is said before anything is measured
    prepare_again(directory, plan.request["data"], words)
    with store.lock(), open_engine(choice, directory) as opened:
        store.extend(_planned(plan, store, opened, seeds, arms, minutes, words))
    return run(store, None, words, choice)


def _check(seeds: int | None, activations: Any, minutes: float | None) -> None:
    if seeds is None and activations is None and minutes is None:
        raise UserError("extend: seeds, activations or minutes must be given; got none of them. "
                        "Ask for more seeds with --seeds, in all.")
    if seeds is not None and minutes is not None:
        raise UserError(rule("extend", "minutes", "stand without seeds", minutes, "Give one of them."))
    for name, value, kind in (("seeds", seeds, int), ("minutes", minutes, int | float)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise UserError(rule("extend", name, "be a number", value, "Choose another value."))
    if minutes is not None and not 0 < minutes < 1e6:
        raise UserError(rule("extend", "minutes", "be positive and finite", minutes, "Choose another value."))


def _arms(plan: Plan, activations: Activations | None) -> list[Arm]:
    """Return the arms of new activations, as wide as the study's rule makes them."""
    if activations is None:
        return []
    if "own" in plan.model or plan.request.get("role"):
        raise UserError(rule("extend", "activations", "be added to studies of nonlin's own model, tuned by themselves",
                             activations, "Begin a study of these activations in another folder."))
    definitions = definitions_of(without_pluses(activations) if isinstance(activations, str) else activations)
    for definition in definitions:
        check_defined(definition)
    return arms_of(definitions, plan.model, plan.match)


def _planned(plan: Plan, store: Store, engine: Engine, seeds: int | None, arms: list[Arm], minutes: float | None,
             words: Progress) -> Plan:
    environment = ask(engine, {"do": "describe"})
    speeds: dict[str, Any] = {}
    fit_to_records(engine, plan.machine, environment, store, plan.memory_bytes)
    if arms:
        words.say("Measuring the new activations …")
        configs = with_baseline(plan, arms).measure_configs(plan.machine)
        speeds = measure_and_fit(engine, configs, plan.machine, environment, equal_times=plan.match == "time")
    records = {key: record for key, (_, record) in load(store.directory).trials().items()}
    if minutes is not None:
        seeds = seeds_in(plan, records, minutes, engine.total())
    made = extended(plan, seeds or len(plan.judge_seeds), arms, speeds, looked_at(plan, records))
    added = len(made.judge_seeds) - len(plan.judge_seeds)
    parts = [f"{counted(added, 'seed')} for each activation"] if added else []
    parts += [", ".join(arm.name for arm in arms)] if arms else []
    words.say(f"Added to the study: {' and '.join(parts)}; about {span(60 * made.predicted_minutes)}.")
    return made

