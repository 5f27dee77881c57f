"""A ladder's results as tables of text, for a terminal and for its page."""

import io
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console

from nonlin.columns import Column, print_columns
from nonlin.numbers import counted, interval, number, percent, places
from nonlin.progress import span
from nonlin.report.ladder_figures import size_text
from nonlin.report.tables import Table
from nonlin.report.terminal import STYLES

_WIDTH = 120  # where there is no terminal


def print_ladder(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the forecast at the target and what it rests on, on standard output."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    console.print(f"\nDifferences to {results['baseline']} in bits per byte, forecast for "
                  f"{size_text(results['target'])} parameters; {percent(results['rule']['confidence'])} intervals:",
                  highlight=False)
    rows, form = results["verdicts"], _form(results["verdicts"])
    widest = {one["name"]: one for one in results["rungs"] if one["longer"] == 1}
    exact = _measured(results)
    measured = [Column(name, [_mean(one, row["arm"], exact) for row in rows], 3, right=True)
                for name, one in widest.items()]
    print_columns(console, [
        Column("activation", [row["arm"] for row in rows], style="bold"), *measured,
        Column("forecast", [number(row["mean"], form) for row in rows], right=True),
        Column("interval", [_interval(row, form) for row in rows], 1, right=True),
        Column("verdict", [f"[{STYLES[row['verdict']]}]{row['verdict']}[/]" for row in rows]),
        Column("best rate", [_rate(results, row["arm"]) for row in rows], 2, right=True)])


def _form(rows: Iterable[Mapping[str, Any] | None]) -> str:
    """Return the format of differences with intervals, with the digits that they mean."""
    known = [row for row in rows if row and row["low"] is not None]
    return f"+.{places((row['high'] - row['low']) / 2 for row in known)}f"


def _measured(results: Mapping[str, Any]) -> str:
    return _form(found["difference"] for one in results["rungs"] for found in one["arms"].values())


def _mean(one: Mapping[str, Any], arm: str, form: str) -> str:
    found = one["arms"].get(arm, {}).get("difference")
    return number(found and found["mean"], form)


def _interval(row: Mapping[str, Any], form: str) -> str:
    return interval(row["low"], row["high"], form)


def _rate(results: Mapping[str, Any], arm: str) -> str:
    row = next((row for row in results["rates"] if row["arm"] == arm), None)
    return "–" if row is None else f"{row['rate']:.3g} ({row['low']:.2g} … {row['high']:.2g})"


def words(results: Mapping[str, Any]) -> list[str]:
    """Return what is to be said below the table: reasons, the test of the forecast, notes, the advice."""
    lines = [f"{row['arm']}: {row['reason']}" for row in results["verdicts"] if row["reason"]]
    tested = [row for row in results["comparisons"] if row["before"] and row["covered"] is not None]
    if tested:
        held = sum(row["covered"] for row in tested)
        lines.append(f"Of {counted(len(tested), 'difference')} forecast for the held-out rung before it ran, "
                     f"{held or 'none'} {'lies' if len(tested) == 1 or held == 1 else 'lie'} in its interval.")
    lines += results["notes"]
    if results["narrowing"]:
        best = results["narrowing"][0]
        lines.append(f"The intervals at the target would narrow most for their time by {best['what']}: to "
                     f"{number(best['share'], '.0%')} of their width in about {span(60 * best['minutes'])} "
                     f"({best['option']}).")
    return [*lines, results["advice"]]


def text(results: Mapping[str, Any]) -> str:
    """Return the table without colours, and the words below it."""
    file = io.StringIO()
    print_ladder(results, Console(file=file, width=max(_WIDTH, Console().width), force_terminal=False,
                                  force_jupyter=False))
    return "\n".join(line.rstrip() for line in [*file.getvalue().strip("\n").splitlines(), *words(results)])


def verdicts(results: Mapping[str, Any]) -> Table:
    """The forecast at the target, each form's mean and interval beside it."""
    forms = [form["form"] for form in next((row["forms"] for row in results["verdicts"] if row["forms"]), [])]
    rows, form = [], _form(results["verdicts"])
    for row in results["verdicts"]:
        by = {form["form"]: form for form in row["forms"]}
        rows.append([row["arm"], row["verdict"], number(row["mean"], form), _interval(row, form),
                     *(f"{_interval(by[f], form)}{' (rejected)' if by[f]['rejected'] else ''}" if f in by else "–"
                       for f in forms), number(row["widening"], ".4f")])
    return ["activation", "verdict", "forecast", "interval", *forms, "for rates that moved"], rows


def rungs(results: Mapping[str, Any]) -> Table:
    """Every rung: its size, its length, its cost, each activation's difference."""
    arms = [arm["name"] for arm in results["plan"]["request"]["arms"] if arm["name"] != results["baseline"]]
    rows, exact = [], _measured(results)
    for one in results["rungs"]:
        spent = one["timing"]["trial_seconds"]
        rows.append([one["name"], f"{one['parameters']:,}", f"{one['parameters_with_embeddings']:,}",
                     f"{one['tokens']:,}", number(one["flops"], ".1e"), number(spent and spent / 60, ".1f"),
                     *(_difference(one, arm, exact) for arm in arms)])
    return ["rung", "parameters", "with embeddings", "tokens", "FLOPs per run", "minutes of all runs", *arms], rows


def _difference(one: Mapping[str, Any], arm: str, form: str) -> str:
    found = one["arms"].get(arm)
    if found is None:
        return "–"
    if found["diverged_runs"]:
        return "diverged"
    d = found["difference"]
    return "–" if d is None else f"{number(d['mean'], form)} ({_interval(d, form)})"


def rates(results: Mapping[str, Any]) -> Table:
    """Each activation's best rate with its interval at every rung that shows one, and how far it moved."""
    shown = [one["rung"] for one in next((row["at"] for row in results["rates"] if row["at"]), [])]
    rows = []
    for row in results["rates"]:
        at = {one["rung"]: f"{one['rate']:.3g} ({one['low']:.2g} … {one['high']:.2g})" for one in row["at"]}
        moved = "–" if row["moved"] is None else f"× {row['moved']:.2f}{' (surely)' if row['surely'] else ''}"
        rows.append([row["arm"], f"{row['rate']:.3g} ({row['low']:.2g} … {row['high']:.2g})",
                     *(at.get(name, "–") for name in shown), moved, number(row["cost_at_target"], ".4f")])
    return ["activation", "joined, at the smallest", *shown, "moved at the checked rung", "cost at the target"], rows


def tests(results: Mapping[str, Any]) -> Table:
    """Forecasts written down before the rung that tests them, then each rung forecast by the others."""
    told = [(row["forecast"] + ("" if row["before"] else " (not before it ran)"), row)
            for row in results["comparisons"]]
    told += [("from the other rungs", row) for row in results["leave_one_out"]]
    form = _form(row for _, row in told)
    rows = [[origin, row["arm"], size_text(row["parameters"]), number(row["mean"], form), _interval(row, form),
             number(row["measured"], form), _covered(row)] for origin, row in told]
    return ["origin", "activation", "size", "forecast", "interval", "measured", "inside"], rows


def _covered(row: Mapping[str, Any]) -> str:
    return "–" if row["covered"] is None else "yes" if row["covered"] else "no"


def narrowing(results: Mapping[str, Any]) -> Table:
    """More seeds and rungs that would narrow the intervals at the target, the most for its minutes first."""
    rows = [[option["what"], span(60 * option["minutes"]), number(option["share"], ".0%"), option["option"]]
            for option in results["narrowing"]]
    return ["more", "time, about", "width of the interval after it", "option"], rows


TABLES = {"verdicts": verdicts, "rungs": rungs, "rates": rates, "tests": tests, "narrowing": narrowing}
