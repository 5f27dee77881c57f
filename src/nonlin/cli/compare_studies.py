"""``nonlin compare-studies``: :func:`nonlin.compare_studies` for the command line."""

from pathlib import Path

import click

from nonlin.cli import completion
from nonlin.cli.output import PageFile, json_option, print_json, say
from nonlin.kinds import STUDY, must_be

_PAGE = "studies.html"


@click.command()
@click.argument("directories", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--baseline", metavar="NAME", shell_complete=completion.activation,
              help="The activation that the others are compared with. Default: the first study's.")
@click.option("--out", type=PageFile(), default=_PAGE, show_default=True,
              help="The page's file.")
@json_option
def compare_studies(directories: tuple[Path, ...], baseline: str | None, out: Path, as_json: bool) -> None:
    """Show studies together: what agrees, what turned, what differed in their set-ups.

    DIRECTORIES are the folders of two studies or more, which may differ in size, text, recipe or machine.
    """
    for directory in directories:
        must_be(directory, STUDY)
    import nonlin

    found = nonlin.compare_studies(directories, baseline=baseline, out=out)
    from nonlin.report.across import print_across, words

    print_json(found.as_dict()) if as_json else print_across(found)
    for line in words(found):
        say(line)
    say(f"Page: {out}")
