"""``nonlin extend``: :func:`nonlin.extend_study` for the command line."""

from pathlib import Path

import click

from nonlin.cli import completion
from nonlin.cli.calls import must_be_names
from nonlin.cli.compare import print_study
from nonlin.cli.engine_options import EngineChoice, engine_options
from nonlin.cli.numbers import number
from nonlin.cli.output import json_option
from nonlin.functions.catalog_names import without_pluses
from nonlin.kinds import STUDY, must_be
from nonlin.study import defaults


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@number("--seeds", defaults.MINIMUM_SEEDS + 1, "Judged seeds of each activation, in all.",
        most=defaults.FIRST_TUNE_SEED - 1)
@click.option("--activations", metavar="LIST", shell_complete=completion.activations,
              help='New activations: names, and formulas of your own: "mish,mine=x*sigmoid(2*x)". '
              'A + before a name may stand.')
@number("--minutes", 0, "Add as many seeds as fit in so many more minutes: 20, or +20.", above=True, whole=False)
@engine_options
@json_option
def extend(directory: Path, seeds: int | None, activations: str | None, minutes: float | None, engine: EngineChoice,
           as_json: bool) -> None:
    """Add seeds or activations to the study in DIRECTORY; finished runs are kept and counted.

    Seeds that are added after a look are a further stage. Its tests have a level of their own, so that looking again
    finds no winners where there are none. New activations join the others in Holm's correction.
    """
    must_be(directory, STUDY)
    must_be_names(None if activations is None else without_pluses(activations))
    from nonlin.calls.extension import extend_study
    from nonlin.errors import Interrupted

    try:
        study = extend_study(directory, seeds=seeds, activations=activations, minutes=minutes, engine=engine)
    except Interrupted as stopped:
        print_study(stopped.found, as_json, stopped=True)
        raise click.exceptions.Exit(130) from None
    print_study(study, as_json)
