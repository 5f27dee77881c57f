"""``nonlin ladder``: :func:`nonlin.ladder` for the command line."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nonlin.cli import completion
from nonlin.cli.calls import must_be_names, must_be_texts, only_out, shares
from nonlin.cli.engine_options import ENGINE_OPTIONS, EngineChoice, engine_options
from nonlin.cli.numbers import number
from nonlin.cli.output import json_option, print_json, say
from nonlin.errors import UserError
from nonlin.kinds import LADDER, must_be
from nonlin.ladder.design import ACTIVATIONS, LONGER, SEEDS, TOKENS_PER_PARAMETER
from nonlin.letters import quoted
from nonlin.study import defaults

if TYPE_CHECKING:
    from nonlin.calls.ladder import Ladder

_ARMS = ",".join(ACTIVATIONS)
# Options that a resumed ladder may be called with: where it runs is no part of a plan.
_FREE = {"out", "resume", "as_json", *ENGINE_OPTIONS}


@click.command()
@click.option("--target", metavar="SIZE", help="The size asked about, in parameters without embeddings, 12K "
              "or more: 125M.")
@number("--tokens-per-parameter", 0, "Length of every run, for each parameter of its model.", above=True, whole=False,
        default=TOKENS_PER_PARAMETER, show_default=True)
@click.option("--activations", default=_ARMS, show_default=", ".join(ACTIVATIONS), metavar="LIST",
              shell_complete=completion.activations,
              help='Names, and formulas of your own: "gelu,mine=x*sigmoid(2*x)".')
@click.option("--baseline", metavar="NAME", shell_complete=completion.activation,
              help="The arm to compare the others with. Default: gelu, or the first.")
@click.option("--sizes", metavar="LIST", help="Sizes of the rungs: 50K,100K,210K,900K. Default: the longest ladder "
              "that fits.")
@number("--minutes", 1, "Time that the ladder may take. Default: 120, without --sizes.", whole=False)
@number("--budget", 0, "Floating-point operations of all runs, in place of --minutes: 1e15.", above=True, whole=False,
        metavar="FLOPS")
@number("--seeds", defaults.MINIMUM_RUNG_SEEDS, "Judged runs per arm at every rung.",
        most=defaults.FIRST_TUNE_SEED - 1, default=SEEDS, show_default=True)
@number("--longer", 0, "The horizon of two more rungs, as a multiple of the others'; 0: none.", whole=False,
        default=LONGER, show_default=True)
@click.option("--transfer", type=click.Choice(["completep", "standard"]), default="completep", show_default=True,
              help="The rule that carries learning rates upward.")
@click.option("--model", metavar="PATH|NAME", help="A config.json, a folder with one, or an architecture's name: every "
              "rung is it at another size. Default: ours.")
@click.option("--from-checkpoint", is_flag=True, hidden=True)  # refused, with the reason
@click.option("--data", multiple=True, metavar="PATH", help="Text to train on, as for compare; may be repeated.")
@click.option("--weights", metavar="LIST", help="Shares of a batch that come from each --data, in its order: 3,1.")
@click.option("--validation", multiple=True, metavar="PATH", help="Text to judge by, as --data; may be repeated.")
@click.option("--tokenizer", metavar="bytes|SIZE|FILE",
              help="Bytes, a byte-pair tokenizer of SIZE trained on the text, or a model's tokenizer.json. Default: "
              "bytes, or the tokenizer.json beside your --model.")
@click.option("--match", type=click.Choice(["params", "width"]), default="params", show_default=True,
              help="The quantity that all arms share.")
@number("--context", 1, "Tokens per sequence.", default=defaults.CONTEXT, show_default=True)
@number("--batch", 1, "Sequences per step.", default=defaults.BATCH, show_default=True)
@click.option("--precision", type=click.Choice(["float32", "bfloat16", "auto"]), default=defaults.PRECISION,
              show_default=True, help="Numbers to train with; auto: those that are faster here.")
@click.option("--schedule", type=click.Choice(["linear", "cosine", "wsd"]), default="linear", show_default=True,
              help="How the rate falls; wsd: longer runs are branches of the shorter ones.")
@number("--learning-rate", 0, f"Middle of the grid of learning rates at the smallest rung. Default: "
        f"{defaults.LEARNING_RATE:g}, or 0.001 in your --model.", above=True, whole=False)
@number("--learning-rates", 2, "Their number.", most=defaults.MOST_LEARNING_RATES, default=defaults.LEARNING_RATES,
        show_default=True)
@number("--margin", 0, "Differences below it count as none, in bits per byte.", whole=False,
        default=defaults.MARGIN_BITS_PER_BYTE, show_default=True)
@number("--confidence", 0, "Of the intervals.", above=True, whole=False, most=1, default=defaults.CONFIDENCE,
        show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="The ladder's folder. Default: runs/ladder-HASH.")
@click.option("--resume", is_flag=True, help="Continue the ladder in --out as it was planned.")
@engine_options
@json_option
@click.pass_context
def ladder(ctx: click.Context, target: str | None, out: Path | None, resume: bool, as_json: bool,
           engine: EngineChoice, **options: Any) -> None:
    """Compare activations at several sizes and forecast their differences at a size that nobody trains here.

    Every rung is a study. Learning rates are tuned at the two smallest, carried upward by a rule, and checked. The
    forecast of the largest rung is written down before it runs. The ladder can be stopped at any time: the same command
    continues it, and more --seeds or --sizes extend it.
    """
    if resume:
        must_be(only_out(ctx, out, _FREE), LADDER)
    elif target is None:
        raise UserError("ladder: --target must be given; got none. Name the size asked about: --target 125M.")
    must_be_texts(options["data"], options["validation"])
    must_be_names(options["activations"], options["baseline"])
    from nonlin.calls import ladder_comparison
    from nonlin.errors import Interrupted
    from nonlin.progress import listener

    try:
        if resume and out is not None:
            found = ladder_comparison.resume(out, listener(), engine)
        else:
            found = ladder_comparison.called(target=target or "", out=out, engine=engine, workers=None, progress=True,
                                             **_parsed(options))
    except Interrupted as stopped:
        _print(stopped.found, as_json)
        say("Stopped; every finished run is kept. To go on: nonlin ladder --resume --out "
            f"{quoted(stopped.found.directory)}")
        raise click.exceptions.Exit(130) from None
    _print(found, as_json)
    say(f"Report: {found.report}")


def _parsed(options: dict[str, Any]) -> dict[str, Any]:
    sizes = options["sizes"]
    return options | {"sizes": None if sizes is None else [part.strip() for part in sizes.split(",") if part.strip()],
                      "weights": shares("ladder", options["weights"])}


def _print(found: "Ladder", as_json: bool) -> None:
    from nonlin.report.ladder_terminal import print_ladder, words

    print_json(dict(found.results)) if as_json else print_ladder(found.results)
    for line in words(found.results):
        say(line)
