"""``nonlin.ladder``: from what a person asks for to a finished ladder. The command line is a thin layer over it.

A ladder is its rungs, each a study in a folder of its own. Here they are planned; ``ladder_running`` runs them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nonlin.advice.sizes import parse_size
from nonlin.calls import own_ladder
from nonlin.calls.arguments import Activations, Asked
from nonlin.calls.comparison import changes, definitions_of, environment_of, prepare_again, requested
from nonlin.calls.ladder import Ladder, transfer_of
from nonlin.calls.ladder_running import of_rung, run
from nonlin.calls.own_ladder import Own
from nonlin.errors import UserError, not_empty, rule
from nonlin.ladder import design, folder, forecast, plan, results
from nonlin.ladder.design import Rung, Settings
from nonlin.ladder.folder import LadderFolder
from nonlin.ladder.plan import LadderPlan
from nonlin.ladder.rates import Rule
from nonlin.numbers import counted, number
from nonlin.progress import Progress, listener
from nonlin.study import Arm, Request, Store, defaults
from nonlin.study.engines import Engine, EngineChoice, ask
from nonlin.study.engines.choice import chosen_engine
from nonlin.study.engines.opening import choose_machine, measure_and_fit, open_engine
from nonlin.subject.asking import Wanted as OwnModel
from nonlin.training import recipe

MINUTES = 120.0
_MEASURED = (15e3, 120e3, 1e6)  # sizes whose speed is measured where nobody names sizes
_SECONDS = 1.0  # of each measurement


@dataclass(frozen=True)
class Wanted:
    """The arguments of a ladder beside those of :func:`nonlin.compare`."""

    target: float
    settings: Settings
    sizes: tuple[float, ...] | None
    minutes: float | None
    budget: float | None

    def __post_init__(self):
        for name, value in (("target", self.target), ("minutes", self.minutes), ("budget", self.budget)):
            if value is not None and not 0 < value < float("inf"):
                raise UserError(rule("ladder", name, "be positive and finite", value, "Choose another value."))
        if self.target < design.SMALLEST:
            raise UserError(rule("ladder", "target", f"be {design.SMALLEST:,} parameters or more", self.target,
                                 "The smallest rung has as many."))
        if self.minutes is not None and self.budget is not None:
            raise UserError("ladder: minutes and budget must not both be given; got both. Leave one of them out.")


def called(*, target: float | str, sizes: Sequence[float | str] | None, minutes: float | None, budget: float | None,
           tokens_per_parameter: float, seeds: int, longer: float, context: int, batch: int, transfer: str,
           engine: str | EngineChoice, workers: int | None, out: str | Path | None, progress: bool,
           activations: Activations | None, model: Any = None, from_checkpoint: bool = False, **asked: Any) -> Ladder:
    """Run a ladder; the arguments are those of ``nonlin.ladder``."""
    not_empty("ladder", target=target, sizes=sizes, transfer=transfer, engine=engine, out=out, activations=activations,
              model=model, **asked)
    own = own_ladder.asked_for(model, from_checkpoint)
    known = _UNSAID | own_ladder.unsaid(own)
    asked |= {name: known[name] for name in ("tokenizer", "learning_rate") if asked[name] is None}
    settings = Settings(tokens_per_parameter, seeds, batch, context, longer=longer)
    wanted = Wanted(_size("target", target), settings,
                    None if sizes is None else tuple(_size("sizes", size) for size in sizes), minutes, budget)
    arms = ",".join(design.ACTIVATIONS) if activations is None else activations
    named = [one.name for one in definitions_of(arms)]
    if len(set(named)) < 2:
        raise UserError(rule("ladder", "activations", "be two or more, since one is compared with the others",
                             ", ".join(named) or "none", "Name another with --activations."))
    return climb(wanted, {"activations": arms, **asked}, transfer, None if out is None else Path(out),
                 listener(progress), chosen_engine(engine, workers), own)


#: Values of arguments that are left out, for our own small model.
_UNSAID: dict[str, Any] = {"tokenizer": "bytes", "learning_rate": defaults.LEARNING_RATE}


def _size(name: str, value: float | str) -> float:
    if isinstance(value, str):
        return float(parse_size(value, name, "ladder"))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(rule("ladder", name, "be a number of parameters, or a text like 125M", value,
                             "Choose another value."))
    return float(value)


def climb(wanted: Wanted, asked: Mapping[str, Any], transfer: str, out: Path | None, words: Progress,
          choice: EngineChoice, model: OwnModel | None = None) -> Ladder:
    """Plan the ladder, or extend the one in the folder; run what is missing, forecast, write the page; return it.

    ``asked`` are the arguments that :class:`nonlin.calls.arguments.Asked` takes; ``model`` is a user's own
    architecture. Raises Interrupted at Ctrl-C.
    """
    rule_ = transfer_of(transfer)
    with own_ladder.opened(model, asked["tokenizer"], wanted.settings, wanted.sizes, wanted.target,
                           transfer) as own:
        shapes = own.shapes if own else design.SMALL
        if wanted.sizes is not None:  # what makes no ladder is said before a text is read
            design.design(wanted.sizes, wanted.settings, shapes)
        sha256 = own and own.sha256
        out = out or _default_folder(wanted, {**asked, **({"model": sha256} if own else {})}, transfer)
        if out.exists():
            folder.plan_of(out)  # something else there is said before a text is read
        whole, store = _request(wanted, asked, out, words, own)
        settings = replace(wanted.settings, vocabulary=whole.model["vocabulary"])
        store = folder.store_of(store.directory)
        with store.lock():
            there = folder.plan_of(store.directory)  # as it is by now: reading the text took its time
            if there is not None and there.transfer["name"] != transfer:
                raise UserError(f"ladder: transfer must be {there.transfer['name']}, as the ladder in {out} has it; "
                                f"got {transfer}. Choose another folder with --out.")
            if there is not None and own and there.model.get("sha256") == sha256:
                there = own.widened(there)
            made = there and plan.extended(there, plan.request_of(whole), settings, wanted.target, wanted.sizes, sha256)
            if made is not None and own:
                made = own.completed(made)
            if made is not None and _complete(LadderFolder(store.directory, made)):  # at most another target
                folder.keep_plan(store.directory, made)
                return run(LadderFolder(store.directory, made), whole, rule_, None, {}, words)
            with open_engine(choice, store.directory) as engine:
                environment = ask(engine, {"do": "describe"})
                if made is None:
                    made = _planned(wanted, settings, whole, rule_, store.directory, engine, environment, choice, words,
                                    own)
                else:
                    words.say(f"Continuing the ladder in {store.directory}.")
                    for line in changes(made.machine.get("made_on", {}), environment):
                        words.say(line)
                folder.keep_plan(store.directory, made)
                words.say(described(made, engine.total()))
                if own:
                    own.engine.close()  # its memory is the runs' now
                return run(LadderFolder(store.directory, made), whole, rule_, engine, environment, words)


def _complete(there: LadderFolder) -> bool:
    return len(there.finished()) == len(there.plan.rungs)


def resume(directory: Path, words: Progress, choice: EngineChoice) -> Ladder:
    """Run what is missing of the ladder in a folder, as it was planned."""
    prepare_again(directory, folder.load_ladder(directory).plan.data, words)
    with folder.store_of(directory).lock(), open_engine(choice, directory) as engine:
        there = folder.load_ladder(directory)
        environment = ask(engine, {"do": "describe"})
        words.say(f"Continuing the ladder in {directory}.\n{described(there.plan, engine.total())}")
        whole = _from_plan(there.plan)
        return run(there, whole, transfer_of(there.plan.transfer["name"]), engine, environment, words)


def _default_folder(wanted: Wanted, asked: Mapping[str, Any], transfer: str) -> Path:
    values = [wanted.target, plan.settings_dict(wanted.settings), wanted.sizes, transfer,
              {key: str(value) for key, value in asked.items()}]
    return Path("runs") / f"ladder-{hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]}"


def _request(wanted: Wanted, asked: Mapping[str, Any], out: Path, words: Progress, own: Own | None
             ) -> tuple[Request, Store]:
    """Return the request that every rung's is made from, and the store of the folder, where the tokens are."""
    small = {"layers": 1, "dim": 32, "heads": 2, "kv_heads": None, "model": None} if own is None else {
        "layers": None, "dim": None, "heads": None, "kv_heads": None, "model": own.probe()}
    first = Asked(**small, **asked, steps=1, minutes=None, from_checkpoint=False, context=wanted.settings.context,
                  batch=wanted.settings.batch, seeds=max(wanted.settings.seeds, defaults.MINIMUM_SEEDS))
    whole, store = requested(first, out, words, own and own.engine)
    if own is None:
        return whole, store
    own.asking(first)
    return own_ladder.shared(whole), store


def _from_plan(made: LadderPlan) -> Request:
    """Return the request that the plan was made from."""
    values = {k: v for k, v in made.request.items() if k != "arms"}
    model = {"layers": 1, "dim": 32, "heads": 2, "kv_heads": 2, "context": made.settings["context"],
             "vocabulary": made.settings["vocabulary"]}  # of no rung
    return Request([Arm(**arm) for arm in made.request["arms"]], model=model, minutes=None, steps=1,
                   seeds=max(made.settings["seeds"], defaults.MINIMUM_SEEDS), **values)


def _planned(wanted: Wanted, settings: Settings, whole: Request, transfer: Rule, out: Path, engine: Engine,
             environment: Mapping[str, Any], choice: EngineChoice, words: Progress, own: Own | None) -> LadderPlan:
    """Measure this machine and return the plan of a new ladder; UserError where it could not say anything."""
    shapes = own.shapes if own else design.SMALL
    sizes = sorted(wanted.sizes or [max(shapes.smallest / design.SMALLEST, 1) * size for size in _MEASURED])
    head = shapes.head_width(sizes[0])
    measured, subjects = [shapes.rung(size, "tuned", head, settings) for size in sizes], dict[str, Any]()
    if own:
        measured, subjects = own.described(measured, head, {}, whole.baseline)
    words.say("Measuring this machine …")
    requests = [of_rung(whole, one, settings, None, subject=subjects.get(plan.shape_name(one))) for one in measured]
    first = requests[-1].measure_configs({"engine": "torch", "dtype": "float32", "threads": 1})[whole.baseline]
    machine = choose_machine(engine, first, environment, choice.parallel, whole.precision)
    configs = {f"{one.parameters} {arm}": config
               for i, (one, request) in enumerate(zip(measured, requests, strict=True))
               for arm, config in request.measure_configs(machine).items() if arm == whole.baseline or i == 0}
    speeds = measure_and_fit(engine, configs, machine, environment, _SECONDS, whole.match == "time")
    machine |= {"made_on": environment_of(environment)}
    base = speeds[f"{measured[0].parameters} {whole.baseline}"]["tokens_per_second"]
    ratios = {arm.name: base / speeds[f"{measured[0].parameters} {arm.name}"]["tokens_per_second"]
              for arm in whole.arms}
    timing = {
        "speeds": [{"parameters": one.parameters,
                    "tokens_per_second": defaults.SUSTAINED_SPEED
                    * speeds[f"{one.parameters} {whole.baseline}"]["tokens_per_second"]} for one in measured],
        "seconds_overhead": max(s.get("seconds_overhead", 0.0) for s in speeds.values()),
        "over_baseline": ratios, "mean_over_baseline": sum(ratios.values()) / len(ratios)}
    wsd = recipe.choice(whole.training, "schedule") == "wsd"
    rungs, model = _rungs(wanted, settings, timing, len(whole.arms), engine.total(), wsd, shapes), dict[str, Any]()
    if own:
        known, head = subjects if own.head_width(rungs[0]) == head else {}, own.head_width(rungs[0])
        rungs, subjects = own.described(rungs, head, known, whole.baseline)
        design.check_span(rungs)  # by the operations of the built models
        model = own.model(head, {plan.shape_name(one): subjects[plan.shape_name(one)] for one in rungs})
    asked = plan.request_of(whole)
    return LadderPlan(
        name=out.resolve().name, request=asked, settings=plan.settings_dict(settings), rungs=plan.rows(rungs),
        baseline=whole.baseline, rule={"margin": whole.margin, "confidence": whole.confidence,
                                       "text": forecast.text()},
        transfer={"name": transfer.name, "source": transfer.source}, machine=machine, data=asked["data"],
        target=wanted.target, timing=timing, workers=engine.total(), model=model)


def _rungs(wanted: Wanted, settings: Settings, timing: Mapping[str, Any], arms: int, workers: int, wsd: bool = False,
           shapes: design.Shapes = design.SMALL) -> list[Rung]:
    """Return the rungs of the sizes, or the longest ladder that fits; UserError, with what is needed, if none does."""
    seconds = results.seconds_of(timing)
    unit = "FLOPs" if wanted.budget is not None else "minutes"
    given = wanted.budget if wanted.budget is not None else wanted.minutes

    def branched(rungs: Sequence[Rung]) -> list[Rung]:
        return [replace(one, branches=wsd and one.longer != 1) for one in rungs]

    def needed(rungs: Sequence[Rung]) -> float:
        return (design.flops(rungs, settings, arms) if wanted.budget is not None
                else design.minutes(rungs, seconds, settings, arms, workers))

    if wanted.sizes is not None:
        rungs = branched(design.design(wanted.sizes, settings, shapes))
        if given is not None and needed(rungs) > given:
            raise design.too_little(rungs, needed(rungs), given, unit)
        return rungs
    given = MINUTES if given is None else given
    found = design.largest_that_fits(wanted.target, settings, lambda rungs: needed(branched(rungs)) <= given, shapes)
    if found is None:
        least = branched(design.smallest(settings, shapes))
        raise design.too_little(least, needed(least), given, unit)
    return branched(found)


def described(made: LadderPlan, workers: int) -> str:
    """Return a ladder's plan in words."""
    rungs, settings = [one for one, _ in made.ordered()], made.steady
    seconds = results.seconds_of(made.timing)
    others = ", ".join(arm for arm in made.arms if arm != made.baseline)
    minutes = design.minutes(rungs, seconds, settings, len(made.arms), workers)
    return "\n".join([
        f"Compare {others} with {made.baseline} as the baseline, for {made.target:,.0f} parameters.",
        f"Data: {made.data.get('description', made.data['sha256'][:16])}.",
        f"{settings.tokens_per_parameter:g} tokens per parameter (without embeddings), {settings.seeds} seeds; rates "
        f"carried by the rule {made.transfer['name']}.",
        *own_ladder.lines(made),
        *design.describe(rungs, settings, seconds, len(made.arms), workers, made.data),
        f"Rule: {forecast.sentence(made.rule['margin'], made.rule['confidence'], made.baseline)}",
        f"In all {number(design.flops(rungs, settings, len(made.arms)), '.1e')} FLOPs; about {minutes:.0f} minutes, "
        f"{counted(workers, 'run')} at a time."])
