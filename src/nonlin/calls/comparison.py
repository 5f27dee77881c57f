"""``nonlin.compare``: from what a person asks for to a finished study. The command line is a thin layer over it.

Each step is a function of its own: :func:`requested`, :func:`planned`, :func:`run`, :func:`finish`.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from nonlin.calls import own_model
from nonlin.calls.arguments import Activations, Asked, Data
from nonlin.calls.study import Study, best_trial
from nonlin.data import Sources, intact
from nonlin.errors import NonlinError, UserError, not_empty, stopped_in
from nonlin.files import finite, inside, write_json
from nonlin.functions import Definition, get, has_constants, names, parse_arms
from nonlin.functions.definition import GATE, UP
from nonlin.kinds import CALIBRATION, STUDY, must_hold
from nonlin.model import ModelConfig, parameter_count
from nonlin.nn.widths import matched_hidden
from nonlin.progress import Progress, listener
from nonlin.study import (
    Arm,
    Plan,
    ProcessEngine,
    Request,
    Store,
    StudyFolder,
    defaults,
    load,
    make_plan,
    run_study,
)
from nonlin.study.engines import Engine, EngineChoice, ask, ask_all
from nonlin.study.engines.choice import chosen_engine
from nonlin.study.engines.opening import choose_machine, crowded, fit_to_records, measure_and_fit, open_engine
from nonlin.study.folder import plan_in
from nonlin.study.tuning import complete
from nonlin.subject.asking import Model
from nonlin.tracking import Following, chosen_trackers
from nonlin.training.resources import available_memory_bytes

#: Compared where nobody says which.
ACTIVATIONS = ("relu", "gelu", "silu", "swiglu", "geglu", "relu_squared")

_TEMPERATURE, _LENGTH = 0.7, 240  # of the samples
_REQUEST = ("minutes", "match", "seeds", "learning_rates", "margin", "confidence")


def compare(data: Data = None, activations: Activations = ACTIVATIONS, *, model: Model | None = None,
            from_checkpoint: bool = False, activation_checkpointing: bool = False, compile: str = "auto",
            packing: str | None = None, baseline: str | None = None, minutes: float | None = None,
            match: str = "params", tokenizer: str | int | Path | None = None,
            weights: Sequence[float] | None = None, validation: Data = None,
            layers: int | None = None, dim: int | None = None, heads: int | None = None,
            kv_heads: int | None = None, context: int | None = None, batch: int | str | None = None,
            steps: int | None = None, seeds: int = defaults.JUDGE_SEEDS,
            learning_rate: float | None = None, learning_rates: int = defaults.LEARNING_RATES,
            optimizer: str | None = None, schedule: str | None = None, weight_decay: float | None = None,
            warmup: float | None = None, decay: float | None = None, clip: float | None = None,
            precision: str | None = None, accumulation: int | None = None, recipe: str | Path | None = None,
            evaluation_tokens: int | None = None, transfer: str | None = None,
            margin: float = defaults.MARGIN_BITS_PER_BYTE, confidence: float = defaults.CONFIDENCE,
            engine: str | EngineChoice = "processes", workers: int | None = None,
            out: str | Path | None = None, track: str | Sequence[str] | None = None, progress: bool = True) -> Study:
    """Train small language models that differ in the activation alone, and return the study with its verdicts.

    The study is planned, and its rule fixed, before the first run. Every finished run is kept: the same call
    continues a stopped study, and runs nothing of a finished one again. ``nonlin compare`` does the same in the same
    folder.

    ``data``: text to train on, as files, folders, or a Hugging Face dataset's name, one or several; without it, the
    text of Python's standard library. ``activations``: names, formulas of your own (``"mine=x*sigmoid(2*x)"``) and
    definitions; ``baseline``, gelu or the first, is the one that the others are compared with. ``match``: what the
    arms have in common, "params", "flops", "time" or "width". ``tokenizer``: "bytes", the size of a byte-pair
    vocabulary, or the tokenizer.json of a model. ``weights``, one for each of the data's paths, are the shares of a
    batch that come from each. ``validation``: text to judge by, as ``data``; without it, a tenth of the data.

    ``model`` is your own model, whose feed-forward blocks are replaced: a config.json of ``transformers`` or a folder
    with one, an architecture's name ("qwen3", of the sizes given), or a configuration. It may be a function at the
    top of a file that returns a module with logits for tokens. Without it, ours. ``from_checkpoint`` begins with the
    weights in the folder, whose matrices stay: the study then measures recovery. ``activation_checkpointing``
    recomputes its layers in the backward pass, to save memory. ``compile`` "yes" or "no" decides over torch.compile;
    "auto" tries it where ``steps`` make a run longer than ten minutes. ``packing`` is how documents follow each other
    in your model's sequences. "stream" puts a blank line between them, "end-token" the configuration's end token.
    "documents" puts that token with attention inside each document alone.

    ``layers``, ``dim``, ``heads``, ``kv_heads`` and ``context`` (tokens per sequence) are the model's sizes. ``steps``
    is the length of judged runs: 1,000, the same on every machine, or as many as the ``minutes`` allow here where
    those are given. ``seeds`` is the number of judged runs per arm. ``learning_rates`` rates around ``learning_rate``
    are tried. Differences below ``margin``, in bits per byte, count as none; intervals are of ``confidence``.

    The recipe is the same for all arms: ``batch`` of so many sequences, or of ``"4096tokens"``, computed in
    ``accumulation`` parts; ``optimizer`` "adamw" or "muon"; ``weight_decay``. ``schedule`` is "linear", "cosine" or
    "wsd". ``warmup`` and, for wsd, ``decay`` are shares of the steps, or steps from 1 on. ``clip`` is the largest norm
    of the gradient (0: no limit). ``precision`` is that of matrix products, "float32", "bfloat16" or "auto", the faster
    here. ``evaluation_tokens`` of held-out text give a run's loss, 65,536 by default. ``recipe`` is the path of a JSON
    file of ``transformers.TrainingArguments``: it says what the call leaves open. ``transfer`` "completep" scales
    rates, initial values, epsilon and decay from the default study's model to this one, by parameter group. Then
    ``learning_rate`` is that of the default study.

    ``engine`` is where the runs are computed: "processes" on this machine, "ray", "slurm", or an
    :class:`nonlin.study.engines.EngineChoice`. ``workers`` runs at once, by default as many as cores and memory allow.
    Neither is part of the study: another call may continue it elsewhere.

    ``out`` is the study's folder, by default runs/compare-HASH. ``track`` names where finished runs are logged too:
    "wandb", "mlflow", "tensorboard", "trackio", or several; a tracker that fails is said and costs the study nothing.
    ``progress`` shows a bar in a notebook and on a
    terminal, and lines elsewhere.

    Raises UserError for values that make no study, where the folder holds another one, or where the disk is full.
    Ctrl-C raises Interrupted, a KeyboardInterrupt with the study so far as ``found``.

    >>> study = compare(activations=["gelu", "swiglu"], steps=20, seeds=4, learning_rates=2, layers=1, dim=16,
    ...                 heads=2, context=16, out=getfixture("tmp_path") / "study", progress=False)
    >>> study.verdicts["gelu"].verdict, study.status
    ('baseline', 'complete')
    """
    given = locals()
    not_empty("compare", engine=engine, out=out, track=track)
    chosen_engine(engine, workers)  # what is wrong with the call is said before anything is written
    trackers = chosen_trackers(track)
    asked, words = Asked(**{one.name: given[one.name] for one in fields(Asked)}), listener(progress)
    if out is not None:
        must_hold(out, STUDY, also=(CALIBRATION,))  # before a text is read
    request, store = requested(asked, None if out is None else Path(out), words)
    return run(store, request, words, chosen_engine(engine, workers), trackers)


def resume_study(directory: str | Path, *, engine: str | EngineChoice = "processes", workers: int | None = None,
                 track: str | Sequence[str] | None = None, progress: bool = True) -> Study:
    """Run what is missing of the study in a folder, as it was planned, and return it.

    Tokens that are damaged or gone are made anew. Raises as :func:`compare` does, and UserError where no study is.
    """
    not_empty("resume_study", directory=directory, engine=engine, track=track)
    directory, words, trackers = Path(directory), listener(progress), chosen_trackers(track)
    data = plan_in(directory).request["data"]
    store = Store(directory)
    prepare_again(directory, data, words)
    return run(store, None, words, chosen_engine(engine, workers), trackers)


def prepare_again(directory: Path, data: Mapping[str, Any], words: Progress) -> None:
    """Write a study's tokens again where they are damaged or gone; the runs check what text they are of."""
    if not intact(directory / "data"):
        sources = Sources.of_plan(data)
        sources.prepare(sources.read(directory, words), directory, words)


def requested(asked: Asked, out: Path | None, words: Progress, engine: ProcessEngine | None = None
              ) -> tuple[Request, Store]:
    """Return the request and the store of its folder, where the tokens are prepared.

    A user's own model is looked at in a process of ``engine``, or in one of its own. UserError for a mistake in what
    is asked for, before anything is written.
    """
    definitions, sources = definitions_of(asked.activations), asked.sources
    subject = None
    if asked.model is not None:
        sources.check()
        subject = own_model.subject(asked, definitions, sources, engine)
        sources = subject.sources(sources)
    first = _request(asked, definitions, {"sha256": ""}, 256, subject)  # before a text is read: that may take minutes
    sources.check()
    for definition in definitions:
        check_defined(definition)
    with _leaving_nothing(out or Path("runs")):
        return _prepared(asked, definitions, sources, subject, first, out, words)


def _prepared(asked: Asked, definitions: Sequence[Definition], sources: Sources, subject: own_model.Subject | None,
              first: Request, out: Path | None, words: Progress) -> tuple[Request, Store]:
    corpus = sources.read(out, words)
    about = sources.about(corpus)
    if out is None:
        text = json.dumps(_request(asked, definitions, about, 256, subject).as_dict(), sort_keys=True)
        out = Path("runs") / f"compare-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    new, store = not out.exists(), Store(out)
    info = sources.prepare(corpus, out, words)
    try:
        _check_length(first.model["context"], info)
    except UserError:
        if new:
            shutil.rmtree(out, ignore_errors=True)
        raise
    about |= {key: info[key] for key in ("train_tokens", "validation_tokens", "train_bytes", "validation_bytes")}
    return _request(asked, definitions, about, info["vocabulary"], subject), store


@contextlib.contextmanager
def _leaving_nothing(folder: Path) -> Generator[None]:
    """Remove the folders that are made here on the way to a mistake, unless something lies in them."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except UserError:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _request(asked: Asked, definitions: Sequence[Definition], data: Mapping[str, Any], vocabulary: int,
             subject: own_model.Subject | None = None) -> Request:
    values = {name: getattr(asked, name) for name in _REQUEST}
    values |= asked.recipe_values(asked.context if subject is None else subject.context)
    if asked.minutes is None and values["steps"] is None:
        values["steps"] = defaults.STEPS
    if subject is not None:
        values["training"] = subject.training | values["training"]
        return Request(subject.arms, subject.baseline(asked.baseline), subject.model | {"vocabulary": vocabulary},
                       dict(data), **values)
    model = asked.sizes() | {"vocabulary": vocabulary}
    arms = arms_of(definitions, model, asked.match)
    known = [d.name for d in definitions]
    baseline = get(asked.baseline or ("gelu" if "gelu" in known else known[0])).name
    return Request(arms, baseline, model, dict(data), **values)


def arms_of(definitions: Sequence[Definition], model: Mapping[str, Any], match: str) -> list[Arm]:
    """Return the arms of these activations in a model of these sizes, as wide as ``match`` makes them."""
    arms: list[Arm] = []
    for d in definitions:
        hidden = 4 * model["dim"] if match == "width" else matched_hidden(model["dim"], d.kind)
        parameters = parameter_count(ModelConfig(**model, hidden=hidden), d.gated, len(d.parameters))
        arms.append(Arm(d.name, d.kind, hidden, parameters, d.formula if d.user_defined else None))
    return arms


def definitions_of(activations: Activations) -> list[Definition]:
    """Return the activations of a text like ``"gelu,mine=x*sigmoid(2*x)"``, or of a list."""
    if not isinstance(activations, str):
        activations = ",".join(one if isinstance(one, str) else _name(one) for one in activations)
    return parse_arms(activations)


def _name(definition: Definition) -> str:
    if has_constants(definition) or (definition.name in names() and get(definition.name) is definition):
        return definition.name
    raise UserError(f"compare: activations must be known by name to the processes that train; got "
                    f"{definition.name!r}, made by hand. Add it with nonlin.define(name, formula).")


def check_defined(definition: Definition) -> None:
    """Raise UserError for a formula that has no value or no derivative somewhere near zero."""
    from nonlin.functions.properties import first_undefined

    for variable, formula in _by_each_input(definition):
        if (at := first_undefined(formula)) is not None:
            raise UserError(f"compare: {definition.name} must have a value and a derivative everywhere near zero; "
                            f"{definition.formula} has none at {variable} = {at:g}. Correct the formula: "
                            "max(x, 0), abs(x) or clip keep an argument where a function is defined.")


def _by_each_input(definition: Definition) -> list[tuple[str, Definition]]:
    """Return the formula as one of each input, the other at 1: up takes gate's place in a formula of both."""
    if definition.expr is None:
        return []
    expr: Any = definition.expr
    turned = replace(definition, expr=expr.xreplace({GATE: UP, UP: GATE}))
    return list(zip(definition.variables, (definition, turned), strict=False))


def _check_length(context: int, info: Mapping[str, Any]) -> None:
    shortest = min(info["train_tokens"], info["validation_tokens"])
    if context >= shortest:
        part = "validation" if shortest == info["validation_tokens"] else "training"
        raise UserError(f"compare: context must be shorter than the text ({shortest:,} tokens of it are kept for "
                        f"{part}); got {context}. Add text with --data, or take a smaller --context.")


def run(store: Store, request: Request | None, progress: Progress, choice: EngineChoice | None = None,
        trackers: Sequence[str] = ()) -> Study:
    """Plan a request, or take the plan that lies in the store; run what is missing, finish, and return the study.

    Without a request the study in the store goes on as planned. Raises Interrupted at Ctrl-C.
    """
    from nonlin.report import LivePage

    choice = choice or EngineChoice()
    with open_engine(choice, store.directory) as engine:
        environment = ask(engine, {"do": "describe"})
        plan = planned(store, request, engine, environment, progress.say, choice.parallel)
        with progress, LivePage(store.directory), Following(store.directory, trackers, progress.say):
            results = finite(run_study(plan, store, engine, progress, environment))
        folder = StudyFolder(store.directory, plan, results)
        Study(folder).write_runs()
        if results["status"] == "interrupted":
            raise stopped_in(store.directory, Study(folder))
        if isinstance(engine, ProcessEngine):
            return Study(folder, finish(folder, engine))
    with ProcessEngine(store.directory / "data") as here:  # the models lie here, wherever they were trained
        return Study(folder, finish(folder, here))


def planned(store: Store, request: Request | None, engine: Engine, environment: Mapping[str, Any],
            say: Callable[[str], None], parallel: str = "ddp") -> Plan:
    """Return the plan that lies in the store; else measure this machine and write the request's plan there."""
    plan = store.plan() if request is None else store.resume(request)
    free = available_memory_bytes()  # what is measured here takes some, and gives it back
    if plan is not None:
        fit_to_records(engine, plan.machine, environment, store, plan.memory_bytes)
        here = replace(plan, workers=engine.total())  # it decides nothing, and may be another number than once
        if complete(plan, {key: record for key, (_, record) in load(store.directory).trials().items()}):
            say(f"Continuing the study in {store.directory}: all of its runs are there.")
        else:
            say(f"Continuing the study in {store.directory}.\n{here.describe()}")
            for line in crowded(engine, plan.machine, plan.memory_bytes, free):
                say(line)
        for line in changes(plan.machine.get("made_on", {}), environment):
            say(line)
        return plan
    assert request is not None  # plan_in() found a plan where none was given
    if not environment["compiler"] and not environment["native_engine"]:
        say("No C++ compiler is here: torch trains the models, which is slower. `nonlin doctor` says how to get one.")
    say("Measuring this machine …")
    machine, speeds = measured(request, engine, environment, parallel)
    plan = make_plan(request, speeds, machine, engine.total(), store.directory.resolve().name)
    with store.lock():  # another process may have planned meanwhile
        store.create(plan)
    say(plan.describe())
    for line in crowded(engine, plan.machine, plan.memory_bytes, free):
        say(line)
    return plan


def measured(request: Request, engine: Engine, environment: Mapping[str, Any], parallel: str
             ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings to train with on this engine, and each arm's speed with them."""
    first = request.measure_configs({"engine": "torch", "dtype": "float32", "threads": 1})[request.arms[0].name]
    machine = choose_machine(engine, first, environment, parallel, request.precision, request.steps)
    speeds = measure_and_fit(engine, request.measure_configs(machine), machine, environment,
                             equal_times=request.match == "time")
    return machine | {"made_on": environment_of(environment)}, speeds


def environment_of(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return the parts of an environment that decide a run's last bits, beside its configuration."""
    return {"nonlin": environment["nonlin"], "torch": environment["torch"],
            "processor": environment["processor"]["name"]}


def changes(then: Mapping[str, str], environment: Mapping[str, Any]) -> list[str]:
    """Return a warning for each part of the machine that a study's runs so far were not made on."""
    now = environment_of(environment)
    return [f"Take care: this study began with {part} {then[part]} and goes on with {now[part]}; its runs may differ "
            "in more than the activation." for part in now if part in then and then[part] != now[part]]


def finish(folder: StudyFolder, engine: ProcessEngine) -> dict[str, str]:
    """Write samples.json, model/ and report.html; return what lies where, for people.

    A sample or an export that fails is said in the answer and costs nothing else.
    """
    from nonlin.report import build

    results = folder.results
    trials = {arm["name"]: best_trial(results, arm["name"]) for arm in results["arms"]}
    made = _write_samples(folder, trials, engine)
    key = trials[results["winner"]]
    if key:
        made["Model"] = _export(folder.directory, key, engine)
    made["Report"] = str(build(folder))
    return made


def _write_samples(folder: StudyFolder, trials: Mapping[str, str | None], engine: ProcessEngine) -> dict[str, str]:
    prompt = "def " if folder.plan.data.get("paths") == [] else "The "
    wanted = {"do": "sample", "prompt": prompt, "length": _LENGTH, "temperature": _TEMPERATURE, "seed": 0}
    requests = {name: wanted | {"trial": str(folder.directory / "trials" / key)} for name, key in trials.items() if key}
    try:
        texts = dict(zip(requests, ask_all(engine, list(requests.values())), strict=True))
    except NonlinError as error:
        return {"Samples": f"none: {error}"}
    write_json(folder.directory / "samples.json", {"prompt": prompt, "texts": texts})
    return {}


def _export(directory: Path, key: str, engine: ProcessEngine) -> str:
    target, fresh = directory / "model", directory / ".new" / "model"
    shutil.rmtree(fresh.parent, ignore_errors=True)
    try:
        inside(fresh.parent)
        described = ask(engine, {"do": "export", "trial": str(directory / "trials" / key), "out": str(fresh)})
    except NonlinError as error:
        return f"none: {error}"
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    fresh.parent.rmdir()
    return f"{target} ({described['architecture']}; {described['note']})"
