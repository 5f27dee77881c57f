"""``nonlin compare``: :func:`nonlin.compare` for the command line."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nonlin.cli import completion
from nonlin.cli.calls import must_be_names, must_be_texts, only_out, others, shares
from nonlin.cli.engine_options import ENGINE_OPTIONS, EngineChoice, engine_options
from nonlin.cli.numbers import number
from nonlin.cli.output import json_option, print_json, say
from nonlin.cli.recipe_options import recipe_options
from nonlin.errors import UserError
from nonlin.kinds import STUDY, must_be
from nonlin.letters import quoted
from nonlin.study import defaults
from nonlin.tracking.names import TRACKERS

if TYPE_CHECKING:
    from nonlin.calls.study import Study

_ARMS = "relu,gelu,silu,swiglu,geglu,relu_squared"
# Options that a resumed study may be called with: where it runs is no part of a plan.
_FREE = {"out", "resume", "as_json", "track", *ENGINE_OPTIONS}


@click.command()
@click.option("--data", multiple=True, metavar="PATH", help="Text to train on: files, folders, or a Hugging Face "
              "dataset's name; may be repeated. Default: the text of Python's standard library.")
@click.option("--weights", metavar="LIST", help="Shares of a batch that come from each --data, in its order: 3,1.")
@click.option("--validation", multiple=True, metavar="PATH", help="Text to judge by, as --data; may be repeated. "
              "Default: a tenth of the text.")
@click.option("--tokenizer", metavar="bytes|SIZE|FILE", help="Bytes, a byte-pair tokenizer of SIZE trained on the "
              "text, or a model's tokenizer.json. Default: the one beside --model, or bytes.")
@click.option("--model", metavar="PATH|NAME", help="Compare inside your own model: a config.json of transformers, a "
              "folder with one, or an architecture's name (qwen3). Default: nonlin's own small model.")
@click.option("--from-checkpoint", is_flag=True, help="Begin with the weights in the folder --model, and measure how "
              "they recover from another activation.")
@click.option("--activation-checkpointing", is_flag=True, help="Recompute the layers of your own model in the backward "
              "pass: less memory, more time.")
@click.option("--packing", type=click.Choice(["stream", "end-token", "documents"]), help="How documents follow each "
              "other in your own model's sequences: a blank line between them, the configuration's end token, or that "
              "token with attention inside each document alone. Default: end-token where the model's tokenizer.json is "
              "used, else stream.")
@click.option("--compile", type=click.Choice(["auto", "yes", "no"]), default="auto", show_default=True,
              help="torch.compile of your own model; auto tries it where --steps make a run longer than ten minutes.")
@click.option("--activations", default=_ARMS, show_default=True, metavar="LIST",
              shell_complete=completion.activations,
              help='Names, and formulas of your own: "gelu,mine=x*sigmoid(2*x)".')
@click.option("--baseline", metavar="NAME", shell_complete=completion.activation,
              help="The arm to compare the others with. Default: gelu, or the first.")
@number("--minutes", defaults.MINIMUM_MINUTES, "Time that the study may take: its judged runs are then as long as "
        "that allows on this machine.", whole=False)
@click.option("--match", type=click.Choice(["params", "flops", "time", "width"]), default="params", show_default=True,
              help="The quantity that all arms share.")
@number("--layers", 1, f"Default: {defaults.LAYERS}, or those of --model.")
@number("--dim", 2, f"Width of the model, an even multiple of --heads. Default: {defaults.DIM}, or that of "
        "--model.")
@number("--heads", 1, f"Default: {defaults.HEADS}, or those of --model.")
@number("--kv-heads", 1, "A divisor of --heads; default: as many.")
@number("--context", 1, f"Tokens per sequence. Default: {defaults.CONTEXT}; in a --model of your own as many as it has "
        "positions, 512 at most.")
@number("--steps", 1, f"Length of a judged run. Default: {defaults.STEPS} on every machine, or as long as --minutes "
        "allow.")
@number("--seeds", defaults.MINIMUM_SEEDS, "Judged runs per arm.", most=defaults.FIRST_TUNE_SEED - 1,
        default=defaults.JUDGE_SEEDS, show_default=True)
@number("--learning-rate", 0, f"Middle of the grid of learning rates. Default: {defaults.LEARNING_RATE:g}; in a "
        "--model of your own 0.001, from a checkpoint 0.0001.", above=True, whole=False)
@number("--learning-rates", 2, "Their number.", most=defaults.MOST_LEARNING_RATES, default=defaults.LEARNING_RATES,
        show_default=True)
@recipe_options
@number("--margin", 0, "Differences below it count as none, in bits per byte.", whole=False,
        default=defaults.MARGIN_BITS_PER_BYTE, show_default=True)
@number("--confidence", 0, "Of the intervals.", above=True, whole=False, most=1, default=defaults.CONFIDENCE,
        show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="The study's folder. Default: runs/compare-HASH.")
@number("--aa", 1, "Run the set-up as so many studies of identical arms instead, each as long as the study itself, "
        "and say how often a verdict is false.")
@click.option("--aa-streams", type=click.Choice(defaults.AA_STREAMS), default=defaults.AA_STREAMS[0], show_default=True,
              help="Of --aa: whether each arm draws feed-forward weights of its own, as a gated and a plain one do, or "
              "all share them, as plain ones do (each is then scaled a little).")
@click.option("--resume", is_flag=True, help="Continue the study in --out as it was planned.")
@click.option("--track", multiple=True, type=click.Choice(list(TRACKERS)), help="Log finished runs there too; may be "
              "repeated.")
@engine_options
@json_option
@click.pass_context
def compare(ctx: click.Context, out: Path | None, resume: bool, as_json: bool, engine: EngineChoice,
            aa: int | None, aa_streams: str, track: tuple[str, ...], **options: Any) -> None:
    """Train small language models that differ in the activation alone, and say which to use.

    The study is planned, and its rule fixed, before the first run. It can be stopped at any time: the same command
    continues it.
    """
    from nonlin.errors import Interrupted

    if resume:
        must_be(only_out(ctx, out, _FREE), STUDY)
    must_be_texts(options["data"], options["validation"])
    must_be_names(options["activations"], options["baseline"])
    options["weights"] = shares("compare", options["weights"])
    if aa is None and "--aa-streams" in others(ctx, ()):
        raise UserError("compare: --aa-streams must come with --aa; got none. Add --aa 20.")
    if aa is not None and track:
        raise UserError("compare: --track must stand without --aa, whose studies are logged nowhere else. "
                        "Leave it out.")
    from nonlin.calls.comparison import compare, resume_study

    try:
        if aa is not None:
            return _calibrate(aa, out, aa_streams, engine, as_json, options)
        study = (resume_study(out, engine=engine, track=track) if resume and out is not None
                 else compare(out=out, engine=engine, track=track, **options))
    except Interrupted as stopped:
        print_study(stopped.found, as_json, stopped=True) if stopped.found is not None else say(str(stopped))
        raise click.exceptions.Exit(130) from None
    print_study(study, as_json)


def _calibrate(studies: int, out: Path | None, streams: str, engine: Any, as_json: bool,
               options: dict[str, Any]) -> None:
    from nonlin.calls.arguments import Asked
    from nonlin.calls.calibration import calibrate

    found = calibrate(Asked(**options), studies, out, streams=streams, engine=engine)
    if as_json:
        print_json(found.as_dict())
    say(str(found))
    say(f"Report: {found.directory / 'report.html'}")


def print_study(study: "Study", as_json: bool, stopped: bool = False) -> None:
    """Print a study's table, or its results as JSON, the words below it, and what was made or how to go on."""
    from nonlin.progress import span
    from nonlin.report.terminal import print_table, words

    results = study.folder.results
    print_json(results) if as_json else print_table(results)
    for line in words(results, str(study.directory)):
        say(line)
    if stopped:
        return say(f"Stopped; every finished run is kept. To go on: nonlin compare --resume --out "
                   f"{quoted(study.directory)}")
    for part, where in study.made.items():
        say(f"{part}: {where}")
    say(f"Took {span(study.results.timing.seconds)} (planned: {span(60 * study.plan.predicted_minutes)}).")
