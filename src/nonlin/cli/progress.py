"""Progress of a study: a bar with time left and the ranking on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nonlin.cli.output import span

_TITLES = {"tune": "Tuning learning rates", "judge": "Judging on fresh seeds",
           "claims": "Running experiments"}
_QUIET_SECONDS = 20.0  # between two plain lines of one stage


def ranking_text(ranking: Sequence[Mapping[str, Any]]) -> str:
    """Return the ranking so far in one line, the best first; empty while nothing is judged.

    >>> ranking_text([{"name": "gelu", "bits_per_byte": 2.0, "seeds": 1}])
    'so far: gelu 2.0000 (1)'
    """
    known = [row for row in ranking if row["bits_per_byte"] is not None]
    rows = [f"{r['name']} {r['bits_per_byte']:.4f} ({r['seeds']})" for r in known]
    return "so far: " + ", ".join(rows) if rows else ""


class Progress:
    """A study's listener; use as a context manager."""

    def __init__(self, console: Console):
        self.console = console
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self.last: dict[str, Any] = {}
        self.told, self.stage = 0.0, ""

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["message"]:
            self.console.print(event["message"], style="yellow", highlight=False)
        if self.live:
            self.live.update(self._panel(event))
        else:
            self._line(event)
        self.last = event

    def _panel(self, event: Mapping[str, Any]) -> Group:
        running = ", ".join(f"{r['name']} {r['step']}/{r['steps']}" for r in event["running"])
        inside = sum(r["step"] / max(1, r["steps"]) for r in event["running"] if r["purpose"] == event["stage"])
        row = Table.grid(padding=(0, 1))
        row.add_row(
            Text(_TITLES[event["stage"]], style="bold"),
            ProgressBar(total=max(1, event["total"]), completed=event["done"] + inside, width=28),
            Text(f"{event['done']}/{event['total']}"), Text(f"{span(event['seconds_left'])} left", style="cyan"))
        return Group(row, Text(ranking_text(event["ranking"])), Text(running, style="dim"))

    def _line(self, event: Mapping[str, Any]) -> None:
        changed = event["stage"] != self.stage or (event["done"] == event["total"] and
                                                   event["done"] != self.last.get("done"))
        if not changed and time.monotonic() - self.told < _QUIET_SECONDS:
            return
        self.told, self.stage = time.monotonic(), event["stage"]
        parts = [f"{_TITLES[event['stage']]}: {event['done']}/{event['total']}",
                 f"{span(event['seconds_left'])} left", ranking_text(event["ranking"])]
        self.console.print("  ".join(filter(None, parts)), highlight=False, soft_wrap=True)
