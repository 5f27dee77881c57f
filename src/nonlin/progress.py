"""Progress of long work: a bar with time left on a terminal, another in a notebook, plain lines elsewhere."""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol, Self

import rich.progress
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nonlin.letters import plain
from nonlin.paragraphs import wrapped

#: The stages of long work, in words.
STAGES = {"tune": "Tuning learning rates", "judge": "Judging on fresh seeds",
           "claims": "Running experiments"}
_QUIET_SECONDS = 20.0  # between two plain lines of one stage
_QUIET_BYTES_SECONDS = 5.0  # before the first line of reading or writing, and between two
_DAYS_SECONDS = 3 * 86400  # from which on a duration is told in days
_SHORT_SECONDS = 0.1  # between two looks at bytes: text may come in millions of pieces


def span(seconds: float) -> str:
    """Return a duration for people.

    >>> span(5), span(65), span(3700), span(1e6)
    ('5 s', '1 min 05 s', '1 h 01 min', '12 days')
    """
    if seconds >= _DAYS_SECONDS:
        days = seconds / 86400
        return f"{days:,.0f} days" if days < 1e6 else f"{days:.0e} days"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def ranking_text(ranking: Sequence[Mapping[str, Any]]) -> str:
    """Return the ranking so far in one line, the best first; empty while nothing is judged.

    >>> ranking_text([{"name": "gelu", "bits_per_byte": 2.0, "seeds": 1}])
    'so far: gelu 2.0000 (1)'
    """
    known = [row for row in ranking if row["bits_per_byte"] is not None]
    rows = [f"{r['name']} {r['bits_per_byte']:.4f} ({r['seeds']})" for r in known]
    return "so far: " + ", ".join(rows) if rows else ""


class Progress(Protocol):
    """A listener of long work: ``say`` prints words, a call takes an event; open while the work runs."""

    def say(self, text: str) -> None:
        """Print words."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def __call__(self, event: Mapping[str, Any]) -> None: ...


def listener(shown: bool = True) -> Progress:
    """Return the progress that fits this program: a notebook's, a terminal's, lines; none where not ``shown``."""
    if not shown:
        return Silent()
    if in_notebook():
        return Notebook()
    console = Console(stderr=True)
    return Terminal(console) if console.is_terminal else Lines(console)


def in_notebook() -> bool:
    """Return whether this process is a notebook's kernel."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


class Silent:
    """Progress that tells nothing."""

    def say(self, text: str) -> None:
        """Print nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, event: Mapping[str, Any]) -> None: ...


class Lines:
    """Plain lines: at each stage's beginning and end, and every 20 seconds between."""

    def __init__(self, console: Console):
        self.console = console
        self.told, self.stage, self.done = 0.0, "", -1

    def say(self, text: str) -> None:
        """Print words."""
        self.console.print(plain(text), highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["message"]:
            self.say(event["message"])
        done, self.done = self.done, event["done"]
        ended = event["done"] == event["total"] and event["done"] != done
        if event["stage"] == self.stage and not ended and time.monotonic() - self.told < _QUIET_SECONDS:
            return
        self.told, self.stage = time.monotonic(), event["stage"]
        parts = [f"{STAGES[event['stage']]}: {event['done']}/{event['total']}",
                 f"{span(event['seconds_left'])} left", ranking_text(event["ranking"])]
        self.say("  ".join(filter(None, parts)))


class Terminal:
    """A panel that is drawn over: the stage's bar, time left, the ranking so far and the runs in flight."""

    def __init__(self, console: Console):
        self.console = console
        self.live: Live | None = None

    def say(self, text: str) -> None:
        """Print words, broken between them."""
        self._print(text)

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(wrapped(plain(text), self.console.width), style=style, highlight=False, markup=False,
                           soft_wrap=True)

    def __enter__(self) -> Self:
        # Another each time: one that begins again would erase as many lines above as it had when it ended.
        self.live = Live(console=self.console, refresh_per_second=4, transient=True)
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["message"]:
            self._print(event["message"], "yellow")
        if self.live is not None:
            self.live.update(self._panel(event))

    def _panel(self, event: Mapping[str, Any]) -> Group:
        running = ", ".join(f"{r['name']} {r['step']}/{r['steps']}" for r in event["running"])
        row = Table.grid(padding=(0, 1))
        row.add_row(
            Text(STAGES[event["stage"]], style="bold"),
            ProgressBar(total=max(1, event["total"]), completed=_done(event), width=28),
            Text(f"{event['done']}/{event['total']}"), Text(f"{span(event['seconds_left'])} left", style="cyan"))
        return Group(row, Text(ranking_text(event["ranking"])), Text(running, style="dim"))


class Notebook:
    """A bar of tqdm's for each stage, drawn by the notebook where ipywidgets is installed, as text elsewhere."""

    def __init__(self):
        self.bar: Any = None
        self.stage = ""

    def say(self, text: str) -> None:
        """Print words."""
        print(plain(text), file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["message"]:
            self.say(event["message"])
        if event["stage"] != self.stage:
            self.__exit__()
            self.stage = event["stage"]
            self.bar = _tqdm()(
                desc=STAGES[self.stage], total=event["total"],
                bar_format="{l_bar}{bar}| {n:.1f}/{total_fmt} {postfix}")
        bar = self.bar
        bar.total, bar.n = event["total"], _done(event)
        bar.set_postfix_str("  ".join(filter(None, (f"{span(event['seconds_left'])} left",
                                                    ranking_text(event["ranking"])))))


class Bytes:
    """Progress of reading or writing bytes, told (stage, done, in all or 0); silent where the words are.

    A bar with time left on a terminal; else a line now and then, and none for what is done at once.
    """

    def __init__(self, words: Progress):
        self.words = words
        self.stage, self.began, self.told, self.seen = "", 0.0, 0.0, 0.0
        self.bar: Any = None

    def __enter__(self) -> Self:
        if isinstance(self.words, Terminal):
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
                           console=self.words.console, transient=True)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, stage: str, done: int, whole: int) -> None:
        now = time.monotonic()
        if stage == self.stage and now - self.seen < _SHORT_SECONDS:
            return
        self.seen = now
        if stage != self.stage:
            self.stage, self.began, self.told = stage, now, now
            if self.bar is not None:
                for task in list(self.bar.task_ids):
                    self.bar.remove_task(task)
                self.bar.add_task(stage, total=None)
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done, total=whole or None)
        elif now - self.told > _QUIET_BYTES_SECONDS and done:
            self.told = now
            left = f", {span((now - self.began) * (whole - done) / done)} left" if whole >= done else ""
            self.words.say(f"{stage}: {done / 1e6:,.0f} MB{f' of {whole / 1e6:,.0f}' if whole else ''}{left}")


def _told_in_lines(lines: Lines, title: str) -> Callable[[int, int], None]:
    began = told = time.monotonic()

    def tell(done: int, of: int) -> None:
        nonlocal told
        now = time.monotonic()
        if done < of and now - told < (_QUIET_SECONDS if told > began else _QUIET_BYTES_SECONDS):
            return
        told = now
        left = f", {span((now - began) * (of - done) / done)} left" if done < of else ""
        lines.say(f"{title}: {done} of {of} batches{left}")

    return tell


def _tqdm() -> Any:
    if importlib.util.find_spec("ipywidgets"):
        from tqdm.notebook import tqdm
    else:
        from tqdm.std import tqdm
    return tqdm


def _done(event: Mapping[str, Any]) -> float:
    """Finished runs of the stage, and of those in flight the part that is done."""
    return event["done"] + sum(r["step"] / max(1, r["steps"]) for r in event["running"]
                               if r["purpose"] == event["stage"])


@contextlib.contextmanager
def batches(before: str, title: str, shown: bool = True) -> Generator[Callable[[int, int], None]]:
    """Show a bar while something runs in batches; yields the function that is told (batches done, all).

    Elsewhere than in a notebook or on a terminal, lines stand for it: at the beginning, at the end, and every 20
    seconds between. ``before`` says what is done before the first batch.
    """
    console = Console(stderr=True)
    if shown and in_notebook():
        with _tqdm()(desc=title, total=None) as bar:
            def told(done: int, of: int) -> None:
                bar.total, bar.n = of, done
                bar.refresh()
            yield told
    elif shown and console.is_terminal:
        with rich.progress.Progress(console=console, transient=True) as panel:
            task = panel.add_task(before, total=None)
            yield lambda done, of: panel.update(task, description=title, completed=done, total=of)
    elif shown:
        lines = Lines(console)
        lines.say(f"{before} …")
        yield _told_in_lines(lines, title)
    else:
        yield lambda done, of: None
