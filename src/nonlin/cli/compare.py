"""``nonlin compare``: from the call to the plan, the runs, the page."""

import hashlib
import json
from pathlib import Path
from typing import Any

import click

from nonlin.cli.output import json_option, print_json, say, span
from nonlin.errors import UserError
from nonlin.study import defaults

_ARMS = "relu,gelu,silu,swiglu,geglu,relu_squared"
_FREE = {"out", "resume", "as_json"}  # options that a resumed study may be called with


@click.command()
@click.option("--data", multiple=True, metavar="PATH", help="Text to train on: files, folders, or a Hugging Face "
              "dataset's name; may be repeated. Default: the text of Python's standard library.")
@click.option("--tokenizer", default="bytes", show_default=True, metavar="bytes|SIZE",
              help="Bytes, or a byte-pair tokenizer of SIZE trained on the text.")
@click.option("--activations", default=_ARMS, show_default=True, metavar="LIST",
              help='Names, and formulas of your own: "gelu,mine=x*sigmoid(2*x)".')
@click.option("--baseline", metavar="NAME", help="What the others are compared with. Default: gelu, or the first.")
@click.option("--minutes", type=float, default=defaults.MINUTES, show_default=True, help="Time the study may take.")
@click.option("--match", type=click.Choice(["params", "time", "width"]), default="params", show_default=True,
              help="What the arms have in common.")
@click.option("--layers", type=int, default=defaults.LAYERS, show_default=True)
@click.option("--dim", type=int, default=defaults.DIM, show_default=True, help="Width of the model.")
@click.option("--heads", type=int, default=defaults.HEADS, show_default=True)
@click.option("--kv-heads", type=int, default=None, help="Default: as many as heads.")
@click.option("--context", type=int, default=defaults.CONTEXT, show_default=True, help="Tokens a sequence.")
@click.option("--batch", type=int, default=defaults.BATCH, show_default=True, help="Sequences a step.")
@click.option("--steps", type=int, help="Length of a judged run; without it, as long as the minutes allow.")
@click.option("--seeds", type=int, default=defaults.JUDGE_SEEDS, show_default=True, help="Judged runs an arm.")
@click.option("--learning-rate", type=float, default=defaults.LEARNING_RATE, show_default=True,
              help="Middle of the grid of learning rates.")
@click.option("--learning-rates", type=int, default=defaults.LEARNING_RATES, show_default=True, help="Their number.")
@click.option("--margin", type=float, default=defaults.MARGIN_BITS_PER_BYTE, show_default=True,
              help="Differences below it count as none, in bits per byte.")
@click.option("--confidence", type=float, default=defaults.CONFIDENCE, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="The study's folder. Default: runs/compare-HASH.")
@click.option("--resume", is_flag=True, help="Continue the study in --out as it was planned.")
@json_option
@click.pass_context
def compare(ctx: click.Context, out: Path | None, resume: bool, as_json: bool, **options: Any) -> None:
    """Train small language models that differ in the activation alone, and say which to use.

    The study is planned to --minutes, and its rule fixed, before the first run. It can be stopped at any time:
    the same command continues it.
    """
    from nonlin.study import Store

    if resume:
        _only_out(ctx, out)
        assert out is not None
        from nonlin.study import load

        asked = load(out).plan.request
        store, request = Store(out), None
        _prepare_again(asked, out)
    else:
        request, out = _request(options, out)
        store = Store(out)
    _run(request, store, as_json)


def _only_out(ctx: click.Context, out: Path | None) -> None:
    given = [p.opts[0] for p in ctx.command.params if p.name not in _FREE and p.name is not None
             and ctx.get_parameter_source(p.name) is click.core.ParameterSource.COMMANDLINE]
    if out is None:
        raise UserError("compare: --resume must come with --out; got none. Add --out and the study's folder.")
    if given:
        raise UserError(f"compare: --resume must stand with --out alone, since the plan is fixed; got "
                        f"{', '.join(given)}. Leave {'it' if len(given) == 1 else 'them'} out, or start another study "
                        "in another folder.")


def _prepare_again(asked: dict[str, Any], out: Path) -> None:
    """Write the tokens anew if they are damaged or gone; the runs check what text they are of."""
    from nonlin.data import intact, load_corpus, prepare

    if not intact(out / "data"):
        data = asked["data"]
        prepare(load_corpus(data["paths"] or None), out / "data", data["tokenizer"])


def _request(options: dict[str, Any], out: Path | None) -> tuple[Any, Path]:
    """Return what is asked for, and its folder; the tokens are prepared there."""
    from nonlin.data import load_corpus, prepare
    from nonlin.functions import parse_arms
    from nonlin.model import ModelConfig, parameter_count
    from nonlin.nn.widths import matched_hidden
    from nonlin.study import Arm, Request, Store

    tokenizer = _tokenizer(options["tokenizer"])
    definitions = parse_arms(options["activations"])
    names = [d.name for d in definitions]
    baseline = options["baseline"] or ("gelu" if "gelu" in names else names[0])
    sizes = {key: options[key] for key in ("layers", "dim", "heads", "context")}
    sizes["kv_heads"] = options["heads"] if options["kv_heads"] is None else options["kv_heads"]
    ModelConfig(**sizes)
    fixed = {key: options[key] for key in ("minutes", "match", "seeds", "learning_rate", "learning_rates", "steps",
                                           "margin", "confidence", "batch")}

    def make(data: dict[str, Any], vocabulary: int) -> Request:
        arms = []
        for d in definitions:
            hidden = 4 * sizes["dim"] if options["match"] == "width" else matched_hidden(sizes["dim"], d.kind)
            config = ModelConfig(**sizes, vocabulary=vocabulary, hidden=hidden)
            arms.append(Arm(d.name, d.kind, hidden, parameter_count(config, d.gated, len(d.parameters)),
                            d.formula if d.user_defined else None))
        return Request(arms, _canonical(baseline), sizes | {"vocabulary": vocabulary}, data, **fixed)

    corpus = load_corpus(options["data"] or None)
    about = {"sha256": corpus.sha256, "tokenizer": tokenizer, "description": corpus.description,
             "paths": list(options["data"])}
    first = make(about, 256)  # what is wrong with the call is said before anything is written
    if out is None:
        text = json.dumps(first.as_dict(), sort_keys=True)
        out = Path("runs") / f"compare-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    for d in definitions:
        _check_defined(d)
    Store(out)
    info = prepare(corpus, out / "data", tokenizer)
    shortest = min(info["train_tokens"], info["validation_tokens"])
    if sizes["context"] >= shortest:
        raise UserError(f"compare: context must be shorter than the text ({shortest:,} tokens of it are kept for "
                        f"{'validation' if shortest == info['validation_tokens'] else 'training'}); got "
                        f"{sizes['context']}. Add text with --data, or take a smaller --context.")
    about |= {key: info[key] for key in ("train_tokens", "validation_tokens", "train_bytes", "validation_bytes")}
    return make(about, info["vocabulary"]), out


def _check_defined(definition: Any) -> None:
    from nonlin.functions.properties import first_undefined

    if definition.expr is not None and (at := first_undefined(definition)) is not None:
        raise UserError(f"compare: {definition.name} must be a number, and have a slope, everywhere near zero; "
                        f"{definition.formula} has none at {definition.variables[0]} = {at:g}. Mend the formula: "
                        "max(x, 0), abs(x) or clip keep an argument where a function is defined.")


def _canonical(name: str) -> str:
    from nonlin.functions import get

    return get(name).name


def _tokenizer(text: str) -> str | int:
    if text == "bytes" or text.isdecimal():
        return text if text == "bytes" else int(text)
    raise UserError(f"compare: tokenizer must be bytes or a vocabulary's size; got {text!r}. Try --tokenizer 4096.")


def _run(request: Any, store: Any, as_json: bool) -> None:
    from rich.console import Console

    from nonlin.cli.finish import finish
    from nonlin.cli.progress import Progress
    from nonlin.cli.table import print_table, reasons
    from nonlin.study import ProcessEngine, run_study

    words = Console(stderr=True)
    with ProcessEngine(store.directory / "data", defaults.WORKERS) as engine:
        environment = engine.call({"do": "describe"})
        plan = store.plan() if request is None else store.resume(request)
        if plan is None:
            plan = _plan(request, store, engine, environment)
            say(plan.describe())
        else:
            say(f"Continuing the study in {store.directory}.\n{plan.describe()}")
            _say_what_changed(plan.machine.get("made_on", {}), environment)
        try:
            with Progress(words) as listener:
                results = run_study(plan, store, engine, listener, environment)
        finally:
            say("")
        interrupted = results["status"] == "interrupted"
        made = {} if interrupted else finish(store.directory, results, engine)
    if as_json:
        print_json(results)
    else:
        print_table(results)
    for line in (*reasons(results), results["advice"], *results["remarks"]):
        say(line)
    if interrupted:
        say(f"Stopped; every finished run is kept. To go on: nonlin compare --resume --out {store.directory}")
        raise click.exceptions.Exit(130)
    for what, where in made.items():
        say(f"{what}: {where}")
    say(f"Took {span(results['timing']['seconds'])} (planned: {span(60 * plan.predicted_minutes)}).")


def _made_on(environment: Any) -> dict[str, str]:
    """What decides a run's last bits, beside its configuration."""
    return {"nonlin": environment["nonlin"], "torch": environment["torch"],
            "processor": environment["processor"]["name"]}


def _say_what_changed(then: dict[str, str], environment: Any) -> None:
    now = _made_on(environment)
    for what in (key for key in then if then[key] != now[key]):
        say(f"Take care: this study began with {what} {then[what]} and goes on with {now[what]}; its runs may differ "
            "in more than the activation.")


def _plan(request: Any, store: Any, engine: Any, environment: Any) -> Any:
    from nonlin.study import make_plan

    say("Measuring this machine …")
    arm = request.arms[0]
    first = request.measure_configs({"engine": "torch", "dtype": "float32", "threads": 1})[arm.name]
    machine = engine.call({"do": "machine", "config": first})["machine"]
    speeds = engine.measure(request.measure_configs(machine))
    machine |= {"made_on": _made_on(environment)}
    plan = make_plan(request, speeds, machine, defaults.WORKERS, store.directory.resolve().name)
    store.create(plan)
    return plan
