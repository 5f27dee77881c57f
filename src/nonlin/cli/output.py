"""Where things are printed: data on standard output, words on standard error."""

import json
from typing import Any

import click


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def say(text: str) -> None:
    """Print words on standard error."""
    click.echo(text, err=True)


def span(seconds: float) -> str:
    """Return a duration for people.

    >>> span(5), span(65), span(3700)
    ('5 s', '1 min 05 s', '1 h 01 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
