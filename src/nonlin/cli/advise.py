"""``nonlin advise``: :func:`nonlin.advise` for the command line."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nonlin.cli.output import json_option, print_json
from nonlin.kinds import LADDER, STUDY, must_be

if TYPE_CHECKING:
    from nonlin.advice.records import Hardware


@click.command()
@click.option("--params", required=True, metavar="SIZE", help="The model's parameters: 125M, 7B.")
@click.option("--tokens", required=True, metavar="SIZE", help="The tokens it will be trained on: 2.5B.")
@click.option("--hardware", type=click.Choice(["cpu", "gpu"]), help="The training hardware; costs are "
              "measured if this machine is of that kind. Default: this machine's kind.")
@click.option("--inference", type=click.Choice(["cpu", "gpu"]), help="The hardware for inference.")
@click.option("--study", type=click.Path(path_type=Path), help="A study of yours, a folder of nonlin compare.")
@click.option("--ladder", type=click.Path(path_type=Path), help="A ladder of yours, a folder of nonlin ladder.")
@click.option("--measure/--no-measure", default=True, help="Measure each option's cost here, for seconds.")
@json_option
def advise(params: str, tokens: str, hardware: "Hardware | None", inference: "Hardware | None",
           study: Path | None, ladder: Path | None, measure: bool, as_json: bool) -> None:
    """Say which activation to use for a model of this size, with the reasons, and how sure that is.

    The evidence is what papers published and what your own study measured; the nearest in size and length decides.
    Where evidence is missing, it says which study to run.
    """
    from nonlin.advice import parse_size
    from nonlin.advice.shape import shape_for

    sizes = parse_size(params, "params"), parse_size(tokens, "tokens")
    shape_for(sizes[0], hardware or "cpu")
    for directory, kind in ((study, STUDY), (ladder, LADDER)):
        if directory is not None:
            must_be(directory, kind)
    from nonlin.advice import advise as decide  # what is wrong with the call has been said before SymPy is loaded
    from nonlin.advice.terminal import print_advice

    found = decide(*sizes, hardware, inference, study, measure, ladder)
    print_json(found.as_dict()) if as_json else print_advice(found)
