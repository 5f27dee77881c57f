"""``nonlin advise``: which activation for a model of this size, with the reasons."""

from pathlib import Path
from typing import Any

import click

from nonlin.cli.output import json_option, print_json

_SURENESS = {"likely": "bold green", "plausible": "bold yellow", "guess": "bold red"}


@click.command()
@click.option("--params", required=True, metavar="SIZE", help="The model's parameters: 125M, 7B.")
@click.option("--tokens", required=True, metavar="SIZE", help="The tokens it will be trained on: 2.5B.")
@click.option("--hardware", type=click.Choice(["cpu", "gpu"]), help="The training hardware; costs are "
              "measured if this machine is of that kind. Default: this machine's kind.")
@click.option("--inference", type=click.Choice(["cpu", "gpu"]), help="The hardware for inference.")
@click.option("--study", type=click.Path(path_type=Path), help="A study of yours, a folder of nonlin compare.")
@click.option("--measure/--no-measure", default=True, help="Measure each option's cost here, for seconds.")
@json_option
def advise(params: str, tokens: str, hardware: str | None, inference: str | None, study: Path | None, measure: bool,
           as_json: bool) -> None:
    """Say which activation to use for a model of this size, with the reasons, and how sure that is.

    The evidence is what papers published and what your own study measured; the nearest in size and length decides.
    Where evidence is missing, it says which study to run.
    """
    from nonlin.advice import advise as decide
    from nonlin.advice import parse_size

    found = decide(parse_size(params, "params"), parse_size(tokens, "tokens"), hardware, inference, study, measure)
    print_json(found) if as_json else _print(found)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console

    from nonlin.advice import size_text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 110)
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


def _part(console: Any, title: str, lines: list[str]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console.print(f"\n[bold]{title}[/]")
    for line in lines:
        if console.is_terminal:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
        else:
            console.print(f"  {line}", soft_wrap=True, markup=False)


def _evidence(console: Any, evidence: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from nonlin.advice import size_text

    console.print("\n[bold]Evidence[/], the nearest decides")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("  source", "params", "tokens", "how far", "favours"):
        table.add_column(name, overflow="fold")
    for e in sorted(evidence, key=lambda e: e["distance"]):
        table.add_row(f"  {e['source']}", size_text(e["params"]), size_text(e["tokens"]),
                      f"{e['nearness']} (× {e['distance']:.2g})", ", ".join(e["favours"]) or "nothing")
    console.print(table)


def _options(console: Any, found: dict[str, Any]) -> None:
    from rich.table import Table

    from nonlin.advice import size_text

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
