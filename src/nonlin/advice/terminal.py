"""An advice as text for a terminal."""

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from nonlin.advice.sizes import size_text
from nonlin.columns import Column, print_columns
from nonlin.numbers import number
from nonlin.paragraphs import wrapped

if TYPE_CHECKING:
    from nonlin.advice.records import Advice, Report, Source

_SURENESS = {"likely": "bold green", "plausible": "bold yellow", "guess": "bold red"}
_WIDTH = 110  # where there is no terminal


def text(found: "Advice") -> str:
    """Return the advice as plain text."""
    file = io.StringIO()
    print_advice(found, Console(file=file, width=max(_WIDTH, Console().width), highlight=False, force_terminal=False,
                                force_jupyter=False))
    return "\n".join(line.rstrip() for line in file.getvalue().strip("\n").splitlines())


def print_advice(found: "Advice", console: Console | None = None) -> None:
    """Print an advice, on standard output; as wide as it needs where that is no terminal."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    asked = found["asked"]
    console.print(f"\n[bold]{found['choice']}[/]  {found['formula']}   [{_SURENESS[found['sureness']]}]"
                  f"{found['sureness']}[/]", soft_wrap=True)
    console.print(f"for {size_text(asked['params'])} parameters and {size_text(asked['tokens'])} tokens", style="dim")
    _part(console, "Why", found["reasons"])
    _evidence(console, found["evidence"])
    _reports(console, found["reports"])
    _options(console, found)
    model, start = found["model"], found["initialization"]
    goes = found["inference"]
    _part(console, "How", [
        f"Shape: {model['text']}; {model['why']}.", f"Start: {start['text']}.",
        f"Hugging Face: {goes['huggingface']['text']}.", f"llama.cpp: {goes['llama_cpp']['text']}.", *goes["text"]])
    if found["missing"]:
        _part(console, "Open questions", found["missing"])
    if found["commands"]:
        _part(console, "What would tell more", [])
    for study in found["commands"]:
        why = f"  {study['why']}:"
        console.print(f"\n{wrapped(why, console.width) if console.is_terminal else why}\n  {study['command']}",
                      soft_wrap=True, markup=False)


def _part(console: Console, title: str, lines: list[str]) -> None:
    console.print(f"\n[bold]{title}[/]")
    for line in lines:
        if console.is_terminal:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
        else:
            console.print(f"  {line}", soft_wrap=True, markup=False)


def _evidence(console: Console, evidence: "list[Source]") -> None:
    console.print("\n[bold]Evidence[/], the nearest decides")
    shown = sorted(evidence, key=lambda e: e["distance"])
    print_columns(console, [
        Column("source", [e["source"] for e in shown], fold=20),
        Column("params", [size_text(e["params"]) for e in shown], 1),
        Column("tokens", [size_text(e["tokens"]) for e in shown], 1),
        Column("how far", [f"{e['nearness']} (× {number(e['distance'], '.2g')})" for e in shown]),
        Column("favours", [", ".join(e["favours"]) or "nothing" for e in shown], fold=18)], header="dim", indent=2)


def _reports(console: Console, reports: "list[Report]") -> None:
    console.print("\n[bold]Reported[/], without seeds of its own: it decides nothing")
    print_columns(console, [
        Column("source", [r["source"] for r in reports], fold=20),
        Column("compared", [r["compared"] for r in reports], fold=22),
        Column("found", [r["found"] or "–" for r in reports], fold=22),
        Column("size", [r["size"] or "–" for r in reports], 1, fold=14),
        Column("tokens", [r["tokens"] or "–" for r in reports], 2),
        Column("seeds", [r["seeds"] or "–" for r in reports], 1, fold=12)], header="dim", indent=2)


def _options(console: Console, found: "Advice") -> None:
    costs = found["costs"]
    where = (f"step and memory are not measured ({found['not_measured']})" if costs is None else
             f"step and memory: one block, {costs['tokens']} tokens, float32 on this {costs['device']}, "
             f"{costs['threads']} threads" + (", scaled from a narrower block" if costs["scaled"] else ""))
    console.print(f"\n[bold]Options[/] at equal parameters; {where}")
    options, evidence = found["options"], found["evidence"]
    columns = [
        Column("  activation", [f"{'▸' if o['name'] == found['choice'] else ' '} {o['name']}" for o in options]),
        Column("hidden", [f"{o['hidden']:,}" for o in options], 2, right=True),
        Column("params", [size_text(o["parameters"]) for o in options], 5, right=True),
        Column("step,\nms", ["–" if o["step_ms"] is None else f"{o['step_ms']:.1f}" for o in options], 1, right=True),
        Column("saved,\nbytes per\ntoken", ["–" if o["saved_bytes_per_token"] is None else
                                            f"{o['saved_bytes_per_token']:,}" for o in options], 3, right=True)]
    for i, e in enumerate(sorted(evidence, key=lambda e: e["distance"])):
        what = "your study, against its baseline" if e["own"] else f"{e['source'].split(' (')[0]}, against gelu"
        columns.append(Column(f"{what}, {e['unit']}", [o["found"].get(e["source"], "–") for o in options],
                              6 + i if i else 0, fold=15))
    columns += [
        Column("Hugging\nFace", ["yes" if o["huggingface"]["exports"] else "no" for o in options], 4),
        Column("llama.cpp", ["yes" if o["llama_cpp"]["exports"] else "other model" if o["llama_cpp"]["architectures"]
                             else "no" for o in options], 4)]
    print_columns(console, columns, header="dim",
                  rows=["bold" if o["name"] == found["choice"] else "" for o in options])
