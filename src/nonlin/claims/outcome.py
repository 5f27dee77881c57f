"""Claims put to the test, as an object: what ``nonlin.claims(...)`` returns."""

import io
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape as escape_markup

from nonlin.claims.definition import OPEN
from nonlin.claims.lessons import budget, lesson
from nonlin.claims.records import ClaimResult, ClaimsResults
from nonlin.columns import Column, print_columns
from nonlin.numbers import typeset

_MARKS = {"holds": "green", "does not hold here": "red", "depends": "cyan", "not settled": "yellow"}
_WIDTH = 140  # where there is no terminal
_COLUMNS = ("claim", "verdict", "finding")


@dataclass(frozen=True, repr=False)
class Claims:
    """Statements of articles, each with the verdict of the experiment behind it.

    Shown in a terminal or a notebook, it is the table of those asked for (``numbers``). ``values`` are those of
    results.json, where every claim stands.
    """

    directory: Path
    numbers: tuple[int, ...]
    values: Mapping[str, Any]

    @cached_property
    def results(self) -> ClaimsResults:
        """The values of results.json, typed."""
        return ClaimsResults.from_dict(self.values, str(self.directory / "results.json"))

    @property
    def status(self) -> str:
        """Return "complete" where every claim has a verdict, else "partial" or "interrupted"."""
        return self.results.status

    @property
    def verdicts(self) -> dict[int, ClaimResult]:
        """The claims asked for, by their numbers."""
        return {claim.number: claim for claim in self.results.claims if claim.number in self.numbers}

    @property
    def report(self) -> Path:
        """The page: one HTML file that needs nothing else."""
        return self.directory / "claims.html"

    def open_report(self) -> Path:
        """Open the page in the browser, and return its path."""
        webbrowser.open(self.report.resolve().as_uri())
        return self.report

    def __repr__(self) -> str:
        file = io.StringIO()
        print_table(self.values, self.numbers, Console(
            file=file, width=max(_WIDTH, Console().width), force_terminal=False, force_jupyter=False))
        lines = [line.rstrip() for line in file.getvalue().strip("\n").splitlines()]
        return "\n".join([*lines, f"Claims in {self.directory} ({self.status})"])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("", *_COLUMNS))
        body = "".join(
            f"<tr><td>{claim.number}</td><td>{escape(claim.statement)}</td><td>{claim.verdict or 'not run'}</td>"
            f"<td>{escape(typeset(claim.summary))}</td></tr>" for claim in self.verdicts.values())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def print_table(values: Mapping[str, Any], numbers: Sequence[int], console: Console | None = None) -> None:
    """Print these claims of results.json, on standard output."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    rows = [row for row in values["claims"] if row["number"] in numbers]
    verdicts = [row["verdict"] or "not run" for row in rows]
    print_columns(console, [
        Column("", [str(row["number"]) for row in rows], right=True),
        Column(_COLUMNS[0], [escape_markup(row["statement"]) for row in rows], fold=18),
        Column(_COLUMNS[1], [f"[{_MARKS.get(verdict, 'dim')}]{verdict}[/]" for verdict in verdicts]),
        Column(_COLUMNS[2], [escape_markup(" ".join(filter(None, (
            lesson(row), typeset(row["summary"]), budget(row) if row["verdict"] == OPEN else ""))))
                             for row in rows], fold=30)])
