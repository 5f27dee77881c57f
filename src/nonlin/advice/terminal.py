"""An advice as text for a terminal."""

import io

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nonlin.advice.records import Advice, Source
from nonlin.advice.sizes import size_text

_SURENESS = {"likely": "bold green", "plausible": "bold yellow", "guess": "bold red"}
_WIDTH = 110  # where there is no terminal


def text(found: Advice) -> str:
    """Return the advice as plain text."""
    file = io.StringIO()
    print_advice(found, Console(file=file, width=max(_WIDTH, Console().width), highlight=False, force_terminal=False,
                                force_jupyter=False))
    return "\n".join(line.rstrip() for line in file.getvalue().strip("\n").splitlines())


def print_advice(found: Advice, console: Console | None = None) -> None:
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
        console.print(f"\n  {study['why']}:\n  {study['command']}", soft_wrap=True, markup=False)


def _part(console: Console, title: str, lines: list[str]) -> None:
    console.print(f"\n[bold]{title}[/]")
    for line in lines:
        if console.is_terminal:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
        else:
            console.print(f"  {line}", soft_wrap=True, markup=False)


def _evidence(console: Console, evidence: list[Source]) -> None:
    console.print("\n[bold]Evidence[/], the nearest decides")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("  source", "params", "tokens", "how far", "favours"):
        table.add_column(name, overflow="fold")
    for e in sorted(evidence, key=lambda e: e["distance"]):
        table.add_row(f"  {e['source']}", size_text(e["params"]), size_text(e["tokens"]),
                      f"{e['nearness']} (× {e['distance']:.2g})", ", ".join(e["favours"]) or "nothing")
    console.print(table)


def _options(console: Console, found: Advice) -> None:
    costs = found["costs"]
    where = (f"not measured: {found['not_measured']}" if costs is None else
             f"one block, {costs['tokens']} tokens, float32 on this {costs['device']}, {costs['threads']} threads"
             + (", scaled from a narrower block" if costs["scaled"] else ""))
    console.print(f"\n[bold]Options[/] at equal parameters; step and memory: {where}")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("  activation", no_wrap=True)
    for name in ("hidden", "params", "step,\nms", "saved,\nbytes per\ntoken"):
        table.add_column(name, justify="right")
    for e in found["evidence"]:
        what = "your study, against its baseline" if e["own"] else f"{e['source'].split(' (')[0]}, against gelu"
        table.add_column(f"{what}, {e['unit']}", min_width=15)
    table.add_column("Hugging\nFace")
    table.add_column("llama.cpp")
    for o in found["options"]:
        mark = "▸" if o["name"] == found["choice"] else " "
        table.add_row(
            f"{mark} {o['name']}", f"{o['hidden']:,}", size_text(o["parameters"]),
            "–" if o["step_ms"] is None else f"{o['step_ms']:.1f}",
            "–" if o["saved_bytes_per_token"] is None else f"{o['saved_bytes_per_token']:,}",
            *(o["found"].get(e["source"], "–") for e in found["evidence"]),
            "yes" if o["huggingface"]["exports"] else "no", "yes" if o["llama_cpp"]["exports"] else
            "other model" if o["llama_cpp"]["architectures"] else "no",
            style="bold" if o["name"] == found["choice"] else None)
    console.print(table)
