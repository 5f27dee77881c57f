"""``nonlin report``: a study's page, built again from its records."""

from pathlib import Path

import click

from nonlin.cli.output import json_option, print_json, say, show


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@json_option
def report(directory: Path, as_json: bool) -> None:
    """Build DIRECTORY/report.html and DIRECTORY/figures again from the study's records.

    The study may run or have been stopped: the page says how far it is. While it runs, it writes its page itself.
    """
    from nonlin.report import build
    from nonlin.study import load

    for note in load(directory).notes:
        say(f"Take care: {note}")
    page = build(directory)
    figures = sorted(str(path) for path in (directory / "figures").glob("*.*"))
    if as_json:
        print_json({"report": str(page), "figures": figures})
    else:
        show(page)
