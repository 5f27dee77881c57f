"""``nonlin report``: a study's page, built again from its records."""

from pathlib import Path

import click

from nonlin.cli.numbers import number
from nonlin.cli.output import json_option, print_json, say, show


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--latex", is_flag=True, help="Write DIRECTORY/paper too: the verdicts as a table for LaTeX, the figures "
              "as PDF, sized for a paper.")
@number("--inches", 1, "With --latex: the width of a column.", whole=False, default=3.25, show_default=True)
@json_option
def report(directory: Path, latex: bool, inches: float, as_json: bool) -> None:
    """Build DIRECTORY/report.html and DIRECTORY/figures again from the study's records.

    The study may run or have been stopped: the page says how far it is. While it runs, it writes its page itself.
    """
    from nonlin.calls.study import load_study
    from nonlin.report import build

    study = load_study(directory)
    for note in study.folder.notes:
        say(f"Take care: {note}")
    page = build(study.folder)
    study.write_runs()
    written = study.write_paper(inches) if latex else []
    figures = sorted(str(path) for path in (directory / "figures").glob("*.*"))
    if as_json:
        paper = {"paper": [str(path) for path in written]} if latex else {}
        print_json({"report": str(page), "figures": figures} | paper)
    else:
        show(page)
        for path in written:
            show(path)
