"""``nonlin watch``: :func:`nonlin.watch` for the command line."""

from pathlib import Path
from typing import Any

import click

from nonlin.cli.numbers import number
from nonlin.cli.output import json_option, print_json, say
from nonlin.kinds import CALIBRATION, LADDER, STUDY, must_be


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@number("--seconds", 0.1, "Between two looks.", whole=False, default=2.0, show_default=True)
@json_option
def watch(directory: Path, seconds: float, as_json: bool) -> None:
    """Show how far the study in DIRECTORY is, and what is known, until it ends; of a ladder and A/A studies too.

    With --json, or where standard output is no terminal, it is shown once. Ctrl-C ends the watching, not the study.
    """
    must_be(directory, STUDY, LADDER, CALIBRATION)
    import nonlin

    if as_json:
        return print_json(next(nonlin.watch(directory)).as_dict())
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        from nonlin.report.terminal import snapshot_text

        return click.echo(snapshot_text(next(nonlin.watch(directory))))
    try:
        _show(directory, seconds, console)
    except KeyboardInterrupt:
        say(f"Stopped watching; the study goes on. Its page: {directory / 'report.html'}")
        raise click.exceptions.Exit(130) from None


def _show(directory: Path, seconds: float, console: Any) -> None:
    from rich.live import Live

    import nonlin
    from nonlin.report.terminal import print_table, snapshot_panel, words
    from nonlin.study.records import SeveralSnapshot

    now = None
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        for now in nonlin.watch(directory, seconds=seconds):
            live.update(snapshot_panel(now))
    assert now is not None
    console.print(snapshot_panel(now))
    if isinstance(now, SeveralSnapshot):
        return say(f"Its page: {directory / 'report.html'}")
    study = nonlin.load_study(directory)
    print_table(study.folder.results, console)
    for line in words(study.folder.results, str(directory)):
        say(line)
