"""``nonlin claims``: :func:`nonlin.claims` for the command line."""

from pathlib import Path
from typing import Any

import click

from nonlin.cli.calls import must_be_texts, must_stand_alone, only_out
from nonlin.cli.engine_options import ENGINE_OPTIONS, EngineChoice, engine_options
from nonlin.cli.numbers import number
from nonlin.cli.output import json_option, print_json, say
from nonlin.errors import UserError, rule
from nonlin.letters import quoted
from nonlin.numbers import interval, typeset

# Options that claims may be resumed with: where they run is no part of a plan, and more of them may be added.
_FREE = {"numbers", "out", "resume", "as_json", *ENGINE_OPTIONS}


@click.command()
@click.argument("numbers", nargs=-1, type=int, metavar="[NUMBER]...")
@number("--minutes", 1, "Time that all claims together may take.", whole=False, default=20.0, show_default=True)
@number("--seed", 0, "Another one repeats everything independently.", most=999_999, default=0, show_default=True)
@click.option("--data", multiple=True, metavar="PATH", help="Text for the language model. Default: the text of "
              "Python's standard library.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder. Default: runs/claims-SEED.")
@click.option("--resume", is_flag=True, help="Continue the claims in --out as they were planned.")
@click.option("--ladder", type=click.Path(path_type=Path), help="Judge claim 11 by this ladder's rungs; runs nothing.")
@engine_options
@json_option
@click.pass_context
def claims(ctx: click.Context, numbers: tuple[int, ...], out: Path | None, resume: bool, as_json: bool,
           ladder: Path | None, engine: EngineChoice, **options: Any) -> None:
    """Put to the test what articles say about activation functions: all claims, or those of these NUMBERs.

    Every rule is fixed before the first run. It can be stopped at any time: the same command continues, and more
    claims can be added to the same folder later.
    """
    from nonlin.errors import Interrupted
    from nonlin.progress import listener, span

    if ladder is not None:
        must_stand_alone(ctx, "--ladder", {"numbers", "ladder", "as_json"})
        return _by_ladder(numbers, ladder, as_json)
    if resume:
        only_out(ctx, out, _FREE)
    must_be_texts(options["data"])
    from nonlin.claims import call

    stopped = False
    try:
        found = call.put_to_the_test(call.asked(numbers, options["minutes"], options["seed"], options["data"]), out,
                                     listener(), engine, resume)
    except Interrupted as interruption:
        found, stopped = interruption.found, True
    from nonlin.claims.outcome import print_table

    print_json(found.values) if as_json else print_table(found.values, found.numbers)
    say(f"Took {span(found.values['timing']['seconds'])}.\nPage: {found.report}")
    if stopped:
        say(f"Stopped; every finished run is kept. To go on: nonlin claims --resume --out {quoted(found.directory)}")
        raise click.exceptions.Exit(130)


def _by_ladder(numbers: tuple[int, ...], ladder: Path, as_json: bool) -> None:
    if numbers != (11,):
        raise UserError(rule("claims", "--ladder", "come with the number 11, the claim about sizes",
                             " ".join(map(str, numbers)) or "none", "Try nonlin claims 11 --ladder FOLDER."))
    from nonlin.claims.n11_size import by_ladder

    found = by_ladder(ladder)
    if as_json:
        print_json(found)
        return
    click.echo(f"{found['statement']}\n{found['verdict']}: {typeset(found['summary'])}")
    for part, answer in found["parts"].items():
        click.echo(f"  {part}: {answer}")
    if (aim := found["forecast"]) is not None and aim["mean"] is not None:
        reach = interval(aim["low"], aim["high"], "+.3f", " to ")
        click.echo(typeset(f"Forecast for {aim['target']:,.0f} parameters: SwiGLU {aim['verdict']}, {aim['mean']:+.3f} "
                           f"({reach}) bits per byte."))
