"""Where things are printed: data on standard output, words on standard error."""

import json
import os
from pathlib import Path
from typing import Any

import click

from nonlin.files import no_page
from nonlin.letters import plain
from nonlin.paragraphs import wrapped


class PageFile(click.Path):
    """A file to write a page to; what cannot be one is said before the command runs."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)
        self.name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if why := no_page(value):
            self.fail(why, param, ctx)
        return super().convert(value, param, ctx)


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    # Bytes of a file's name that are not UTF-8 become JSON's own escape.
    click.echo(json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace"))


def show(text: object) -> None:
    """Print a path or a text on standard output, its bytes as they were given."""
    click.echo(str(text).encode("utf-8", "surrogateescape"))


def say(text: str) -> None:
    """Print words on standard error, broken between words where that is a terminal."""
    click.echo(fitted(plain(text)), err=True)


def fitted(text: str) -> str:
    """Return words in lines that fit the terminal which standard error is, or as they are."""
    try:
        return wrapped(text, os.get_terminal_size(2).columns)
    except (OSError, ValueError):  # no terminal
        return text


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
