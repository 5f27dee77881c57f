"""``nonlin doctor``: :func:`nonlin.doctor` for the command line."""

import click

from nonlin.cli.output import json_option, print_json


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is here for nonlin: compiler, instruction set, kernels, GPU, extras; and how to get what is missing.

    Exit status 1 if computing is slow here for want of something.
    """
    from nonlin.calls.doctor import doctor as look
    from nonlin.progress import listener

    listener().say("Looking, and compiling what is not compiled yet …")
    found = look()
    print_json(found.as_dict()) if as_json else click.echo(str(found))
    if found.grade == "serious":
        raise click.exceptions.Exit(1)
