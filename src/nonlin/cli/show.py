"""``nonlin show``: the catalog, or one activation."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nonlin.cli import completion
from nonlin.cli.calls import must_be_names
from nonlin.cli.output import PageFile, json_option, print_json
from nonlin.cli.output import show as print_text
from nonlin.errors import UserError

if TYPE_CHECKING:
    from nonlin.functions import Definition

_PAGE, _FIRST = "activations.html", "silu"


@click.command()
@click.argument("name", required=False, shell_complete=completion.activation)
@click.option("--html", "as_page", is_flag=True, help="Write a page to look at every activation, and print its path.")
@click.option("--out", type=PageFile(), help="The page's file, with --html. "
              f"Default: {_PAGE} here.")
@json_option
def show(name: str | None, as_page: bool, out: Path | None, as_json: bool) -> None:
    """Show the catalog, or the activation NAME: formula, derivative, properties, source, users, a plot.

    NAME may be a formula of your own: mine=x*sigmoid(2*x). With --html it is selected on the page.
    """
    if out is not None and not as_page:
        raise UserError("show: --out must come with --html; got --out alone. Add --html.")
    must_be_names(name)
    from nonlin.functions import describe, get, names, parse_arms

    definition = None if name is None else parse_arms(name)[0] if "=" in name else get(name)
    if as_page:
        _page(definition, out or Path(_PAGE), as_json)
    elif definition is None:
        found = [describe(get(n)) for n in names()] if as_json else [get(n) for n in names()]
        print_json(found) if as_json else _catalog(found)
    elif as_json:
        print_json(describe(definition))
    else:
        _one(definition)


def _page(selected: "Definition | None", out: Path, as_json: bool) -> None:
    from nonlin.functions import get, names
    from nonlin.report import explorer

    shown = [get(n) for n in names()]  # the user's own are among them
    path = explorer.write(shown, out, selected.name if selected else _FIRST)
    if as_json:
        print_json({"page": str(path), "activations": [d.name for d in shown],
                    "selected": selected.name if selected else _FIRST})
    else:
        print_text(path)


def _catalog(found: list) -> None:
    from rich.console import Console
    from rich.markup import escape

    from nonlin.columns import Column, print_columns

    print_columns(Console(), [
        Column("activation", [d.name for d in found]), Column("kind", [d.kind for d in found], 2),
        Column("formula", [escape(d.formula) for d in found], fold=24),
        Column("used by", [escape(", ".join(d.used_by)) for d in found], 1, fold=16)])


def _one(definition) -> None:
    from nonlin.cli.plot import plot
    from nonlin.functions import describe

    facts = describe(definition)
    for key in ("name", "kind", "formula", "note", "source"):
        if facts[key]:
            click.echo(f"{key + ':':<12} {facts[key]}")
    for key in ("aliases", "used_by"):
        if facts[key]:
            click.echo(f"{key.replace('_', ' ') + ':':<12} {', '.join(facts[key])}")
    for variable, text in facts["derivatives"].items():
        click.echo(f"{'d/d' + variable + ':':<12} {text}")
    for parameter in facts["parameters"]:
        click.echo(f"parameter:   {parameter['name']}, starts at {parameter['initial']:g}; {parameter['meaning']}")
    if facts["properties"]:
        _properties(facts["properties"])
        click.echo(plot(definition))


def _properties(p: dict) -> None:
    from nonlin.numbers import number

    zero = ", ".join(map(_interval, p["zero_gradient"])) or "nowhere on an interval"
    lowest = "none" if p["minimum"] is None else " at ".join(number(p["minimum"][i], ".6g") for i in (1, 0))
    of_normal = (f"output: mean {number(p['mean'], '.4g')}, mean square {number(p['second_moment'], '.4g')}; "
                 f"derivative: mean {number(p['derivative_mean'], '.4g')}, mean square "
                 f"{number(p['derivative_second_moment'], '.4g')}")
    for label, text in (
            ("smoothness", _smoothness(p["smoothness"])), ("monotonic", "yes" if p["monotonic"] else "no"),
            ("minimum", lowest), ("range", _interval(p["range"])), ("no gradient", zero), ("unit normal", of_normal)):
        click.echo(f"{label + ':':<12} {text}")


def _smoothness(kind: str) -> str:
    """Say in the page's words how smooth a function is.

    >>> _smoothness("C0"), _smoothness("discontinuous")
    ('C0: its first derivative is not continuous', 'it jumps')
    """
    said = {"smooth": "smooth: every derivative exists", "discontinuous": "it jumps",
            "undefined": "it has no finite value at some x"}
    which = ("first", "second", "third", "fourth")
    return said.get(kind) or f"{kind}: its {which[int(kind[1:])]} derivative is not continuous"


def _interval(ends: Sequence[float | None]) -> str:
    """The words of an interval, whose missing ends are infinite.

    >>> _interval([None, -0.0]), _interval([-0.25, None])
    ('−∞ to 0', '−0.25 to ∞')
    """
    from nonlin.numbers import number

    low, high = ends
    return f"{'−∞' if low is None else number(low + 0.0, 'g')} to {'∞' if high is None else number(high + 0.0, 'g')}"
