"""A study's results, and a check's, as tables of text."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nonlin.columns import Column, print_columns
from nonlin.numbers import interval, number, percent, places, typeset
from nonlin.paragraphs import wrapped
from nonlin.progress import STAGES, ranking_text, span
from nonlin.report.palette import middle, paint
from nonlin.report.tables import PAIR_WORDS
from nonlin.study.advice import next_steps
from nonlin.study.records import Count, SeveralSnapshot, Snapshot

STYLES = {"better": "bold green", "worse": "red", "tie": "cyan", "undecided": "yellow", "baseline": "bold"}
_GRADES = {"serious": "bold red", "warning": "yellow", "info": "cyan"}
_WIDTH, _HEALTH_WIDTH = 120, 140  # where there is no terminal


def print_table(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print results.json's arms, the best first, on standard output; as wide as it needs where that is no terminal."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    console.print(f"\nBits per byte on held-out text; differences to {results['baseline']}, "
                  f"{percent(results['rule']['confidence'])} intervals:", highlight=False)
    print_columns(console, _columns(results, console.is_terminal))
    if results.get("pairs"):
        console.print("\nThe better ones with each other:", highlight=False)
        print_columns(console, _pairs(results["pairs"]))


def text(results: Mapping[str, Any], directory: str | None = None) -> str:
    """Return the table without colours, the reasons and the advice below it."""
    file = io.StringIO()
    print_table(results, _plain(file, _WIDTH))
    lines = [file.getvalue().strip("\n"), *words(results, directory)]
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines())


def words(results: Mapping[str, Any], directory: str | None = None) -> list[str]:
    """Return what is said below the table: reasons, the finding, the advice, and what to do next in this folder."""
    finding = [results["headline"]] if results.get("headline") else []
    following = [] if directory is None else [f"{said}: {command}" for said, command in next_steps(results, directory)]
    return [*reasons(results), *finding, results["advice"], *results["remarks"], *following]


def _plain(file: io.StringIO, width: int) -> Console:
    return Console(file=file, width=max(width, Console().width), force_terminal=False, force_jupyter=False)


def _columns(results: Mapping[str, Any], dots: bool) -> list[Column]:
    order = {name: i for i, name in enumerate(results["ranking"])}
    arms = sorted(results["arms"], key=lambda a: order[a["name"]])
    differences = [arm["difference"] for arm in arms]
    memory = [arm["timing"]["peak_memory_bytes"] for arm in arms]
    decimals = places((d["high"] - d["low"]) / 2 for d in differences if d)
    paints = paint([arm["name"] for arm in results["arms"]])  # the plan's order, as on the page

    def numbers(header: str, values: list[Any], form: str, rank: int) -> Column:
        return Column(header, [number(value, form) for value in values], rank, right=True)

    return [
        Column("activation", [(f"[{middle(paints[arm['name']])}]●[/] " if dots else "") + arm["name"] for arm in arms],
               style="bold"),
        numbers("bits/byte", [arm["bits_per_byte"] for arm in arms], f".{decimals}f", 0),
        numbers("difference", [d and d["mean"] for d in differences], f"+.{decimals}f", 0),
        Column("interval", [interval(d["low"], d["high"], f"+.{decimals}f") if d else "–" for d in differences], 1,
               right=True),
        Column("verdict", [f"[{STYLES[arm['verdict']]}]{_shown(results, arm)}[/]" for arm in arms]),
        numbers("learning\nrate", [arm["learning_rate"] for arm in arms], ".3g", 3),
        numbers("sensi-\ntivity", [arm["learning_rate_sensitivity"] for arm in arms], ".3f", 5),
        numbers("dead", [arm["dead_share"] for arm in arms], ".1%", 4),
        numbers("tokens/s", [arm["timing"]["tokens_per_second"] for arm in arms], ",.0f", 2),
        Column("memory", [f"{m / 2**20:,.0f} MB" if m else "–" for m in memory], 6, right=True)]


def _shown(results: Mapping[str, Any], arm: Mapping[str, Any]) -> str:
    """The verdict in the table: a study that is not finished has none."""
    return "not yet" if results["status"] != "complete" and arm["verdict"] != "baseline" else arm["verdict"]


def in_flight(now: Snapshot) -> str:
    """Return the runs in flight in one line: "swiglu 120/500, gelu 80/500"."""
    return ", ".join(f"{run.name} {run.step:,}/{run.steps:,}" for run in now.running)


def snapshot_panel(now: Snapshot | SeveralSnapshot) -> Group:
    """Return how far a study is, to draw in a terminal: its bars, the ranking so far, the runs in flight.

    Of several studies it is how many are complete, and the one that runs.
    """
    if isinstance(now, SeveralSnapshot):
        current = [snapshot_panel(now.current)] if now.current else []
        return Group(Text(_state_of_several(now), style="bold"), *current)
    bars = Table.grid(padding=(0, 1))
    for stage, count in _counts(now):
        bars.add_row(STAGES[stage], ProgressBar(total=max(1, count.total), completed=count.done, width=28),
                     f"{count.done}/{count.total}")
    words = [_state(now), ranking_text([row.as_dict() for row in now.ranking])]
    return Group(Text(words[0], style="bold"), bars, *(Text(word) for word in words[1:] if word),
                 *([Text(in_flight(now), style="dim")] if now.running else []))


def snapshot_text(now: Snapshot | SeveralSnapshot) -> str:
    """Return how far a study is, or several are, as lines of text."""
    if isinstance(now, SeveralSnapshot):
        return "\n".join([_state_of_several(now), *([snapshot_text(now.current)] if now.current else [])])
    lines = [_state(now), *(f"{STAGES[stage]}: {count.done}/{count.total}" for stage, count in _counts(now))]
    lines += filter(None, (ranking_text([row.as_dict() for row in now.ranking]),
                           f"in flight: {in_flight(now)}" if now.running else ""))
    return "\n".join(lines)


def _counts(now: Snapshot) -> list[tuple[str, Count]]:
    """How many runs of each stage are done; a rung whose rates are carried has none to tune."""
    return [(stage, count) for stage, count in (("tune", now.tuning), ("judge", now.judging)) if count.total]


def _state_of_several(now: SeveralSnapshot) -> str:
    what = "Ladder" if now.kind == "a ladder" else now.kind
    done = f"{now.studies.done} of {now.studies.total} {'rungs' if now.kind == 'a ladder' else 'studies'}"
    if now.state == "complete":
        return f"{what} {now.name}: complete, {done}."
    left = span(now.seconds_left)
    return f"{what} {now.name}: {done}, " + (f"running, about {left} left." if now.state == "running"
                                             else f"stopped, about {left} of work missing.")


def _state(now: Snapshot) -> str:
    if now.state == "complete":
        return f"Study {now.name}: complete."
    left = span(now.seconds_left or 0.0)
    return f"Study {now.name}: " + (f"running, about {left} left." if now.state == "running"
                                    else f"stopped, about {left} of work missing.")


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> list[Column]:
    differences = [pair["difference"] for pair in pairs]
    return [
        Column("first", [pair["first"] for pair in pairs], style="bold"),
        Column("second", [pair["second"] for pair in pairs]),
        Column("difference", [number(d["mean"], "+.4f") for d in differences], right=True),
        Column("interval", [interval(d["low"], d["high"], "+.4f") for d in differences], 1, right=True),
        Column("verdict", [f"[{STYLES[pair['verdict']]}]{PAIR_WORDS[pair['verdict']]}[/]" for pair in pairs])]


def reasons(results: Mapping[str, Any]) -> list[str]:
    """Return what is to be said beside the table: why undecided, which rates lie on an edge."""
    early = results["status"] != "complete"
    lines = [f"{arm['name']}: {arm['reason']}" for arm in results["arms"] if arm["reason"] and not early]
    return [*lines, *edges(results)]


def edges(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield which arms' best rates lie on an edge of what was tried, and what to call to look beyond it."""
    arms = [arm for arm in results["arms"] if arm["learning_rate_at_edge"] and arm["learning_rate"] is not None]
    upper = [arm for arm in arms if arm["learning_rate"] >= max(run["learning_rate"] for run in arm["tuning"])]
    for found, furthest, further in ((upper, max, "higher"), ([a for a in arms if a not in upper], min, "lower")):
        if found:
            rates = sorted({arm["learning_rate"] for arm in found})
            yield (f"{', '.join(arm['name'] for arm in found)}: the best learning rate, "
                   f"{' or '.join(f'{rate:g}' for rate in rates)}, lies on the edge of what was tried. A study in "
                   f"another folder with --learning-rate {furthest(rates):g} tries {further} ones.")


def health_text(record: Mapping[str, Any]) -> str:
    """Return the record of a check as plain text."""
    file = io.StringIO()
    print_health(record, _plain(file, _HEALTH_WIDTH))
    return "\n".join(line.rstrip() for line in file.getvalue().strip("\n").splitlines())


def print_health(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the record of a check, on standard output: its blocks as a table, then its findings."""
    from nonlin.report.health import sample, summary

    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _HEALTH_WIDTH)
    console.print(f"{record['source']}: {record['parameters']:,} parameters, {sample(record)}", highlight=False)
    for note in record["notes"]:
        console.print(f"Note: {note}.", style="yellow", highlight=False)
    print_columns(console, _blocks(record["blocks"]))
    console.print(f"\n{summary(record)}", style="bold", highlight=False)
    for f in record["findings"]:
        grade = f"{f['grade']:<8}"
        told = typeset(f"{f['text']} {f['action']}")
        if console.is_terminal:
            told = wrapped(f"{grade} {told}", console.width).removeprefix(f"{grade} ")
        console.print(f"[{_GRADES[f['grade']]}]{grade}[/]", end=" ")
        console.print(told, highlight=False, markup=False, soft_wrap=True)


def _blocks(blocks: list[dict[str, Any]]) -> list[Column]:
    hidden = [b["streams"]["hidden"] for b in blocks]

    def numbers(header: str, values: Iterable[float | None], form: str, rank: int) -> Column:
        return Column(header, [number(value, form) for value in values], rank, right=True)

    columns = [
        Column("block", [b["name"] or "(all)" for b in blocks], fold=12, style="bold"),
        Column("activation", [b["activation"]["computed"] for b in blocks], fold=10),
        numbers("dead", (b["dead"]["share"] for b in blocks), ".1%", 0),
        numbers("satu-\nrated", (b["saturated"]["share"] for b in blocks), ".1%", 1),
        numbers("always\non", (b["always_on"]["share"] for b in blocks), ".1%", 5),
        numbers("spar-\nsity", (b["sparsity"] for b in blocks), ".1%", 4),
        numbers("hidden\nrms", (h["rms"] for h in hidden), "#.3g", 3),
        numbers("hidden\nlargest", (h["largest"] for h in hidden), "#.3g", 2),
        numbers("kurto-\nsis", (h["kurtosis"] for h in hidden), "#.3g", 6),
        numbers("channel\n/median", (b["outliers"]["channels"][0]["ratio"] if b["outliers"] else None
                                     for b in blocks), "#.3g", 7)]
    if any(b["gradients"] for b in blocks):
        columns.append(numbers("gradient\nrms", ((b["gradients"] or {}).get("rms") for b in blocks), "#.3g", 2))
    return columns
