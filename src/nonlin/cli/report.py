"""``nonlin report``: a study's page, built again from its records."""

from pathlib import Path

import click

from nonlin.cli.calls import others
from nonlin.cli.numbers import number
from nonlin.cli.output import json_option, print_json, say, show
from nonlin.errors import UserError
from nonlin.kinds import CALIBRATION, LADDER, STUDY, kind_of, must_be
from nonlin.study import defaults


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--latex", is_flag=True, help="Write DIRECTORY/paper too: the verdicts as a table for LaTeX, the figures "
              "as PDF, sized for a paper.")
@number("--inches", defaults.COLUMN_INCHES[0], "With --latex: the width of a column.", whole=False,
        most=defaults.COLUMN_INCHES[1], default=3.25, show_default=True)
@json_option
@click.pass_context
def report(ctx: click.Context, directory: Path, latex: bool, inches: float, as_json: bool) -> None:
    """Build DIRECTORY/report.html and DIRECTORY/figures again from the records of a study, a ladder or A/A studies.

    The study may run or have been stopped: the page says how far it is. While it runs, it writes its page itself.
    """
    if not latex and "--inches" in others(ctx, ()):
        raise UserError("report: --inches must come with --latex; got --inches alone. Add --latex.")
    must_be(directory, STUDY, LADDER, CALIBRATION)
    kind = kind_of(directory)
    if latex and kind not in (None, STUDY):
        raise UserError(f"report: --latex must be given for a study; {directory} holds {kind}. Leave it out.")
    from nonlin.calls.looking import build_report
    from nonlin.calls.study import load_study

    study = load_study(directory) if kind in (None, STUDY) else None
    for note in study.folder.notes if study else ():
        say(f"Take care: {note}")
    page = build_report(directory)
    written = study.write_paper(inches) if study and latex else []
    figures = sorted(str(path) for path in (directory / "figures").glob("*.*"))
    if as_json:
        paper = {"paper": [str(path) for path in written]} if latex else {}
        print_json({"report": str(page), "figures": figures} | paper)
    else:
        show(page)
        for path in written:
            show(path)
