"""``nonlin check``: what is wrong inside a model."""

import re
import sys
from pathlib import Path
from typing import Any

import click

from nonlin.cli.output import json_option, print_json, say

_STYLES = {"serious": "bold red", "warning": "yellow", "info": "cyan"}


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE",
              help="Text to run through the model, or token ids (.json, .npy). Default: Python's standard library.")
@click.option("--tokens", type=click.IntRange(2), default=4096, show_default=True, help="Tokens to run.")
@click.option("--context", type=click.IntRange(2), default=512, show_default=True, help="Tokens a sequence.")
@click.option("--gradients", is_flag=True, help="Also run one batch backward: gradients, attention logits.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--device", metavar="NAME", help="The device to run on, such as cuda. Default: the CPU.")
@click.option("--page", type=click.Path(path_type=Path), metavar="FILE",
              help="The page's file. Default: runs/check-MODEL.html.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the model's folder brings along.")
@json_option
def check(model: str, text: Path | None, tokens: int, context: int, gradients: bool, dtype: str, device: str | None,
          page: Path | None, trust_remote_code: bool, as_json: bool) -> None:
    """Look for dead units, saturation, outliers and a wrong activation in MODEL, layer by layer.

    MODEL is a Hugging Face folder, a GGUF file, or a folder that nonlin compare wrote. Nothing is fetched and nothing
    unpickled. Exit status 1 if a finding is serious.
    """
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from nonlin import health
    from nonlin.report import health as pages

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Reading the model", total=None)
        record = health.check(model, text, tokens=tokens, context=context, gradients=gradients,
                              dtype=getattr(torch, dtype), device=device, trust_remote_code=trust_remote_code,
                              progress=lambda done, of: bar.update(task, description="Running text", completed=done,
                                                                   total=of))
    path = pages.write(record, page or Path("runs") / f"check-{_name(model)}.html")
    if as_json:
        print_json(record)
        say(f"Page: {path}")
    else:
        _show(record)
        click.echo(f"\nPage: {path}")
    if any(f["grade"] == "serious" for f in record["findings"]):
        sys.exit(1)


def _name(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", Path(model).resolve().name.removesuffix(".gguf"))


def _show(record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from nonlin.report.health import summary
    from nonlin.report.tables import number

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 140)
    console.print(f"{record['source']}: {record['parameters']:,} parameters, {record['tokens']:,} tokens of "
                  f"{record['text']}", highlight=False)
    for note in record["notes"]:
        console.print(f"Note: {note}.", style="yellow", highlight=False)
    with_gradients = any(b["gradients"] for b in record["blocks"])
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("block", style="bold", overflow="fold")
    table.add_column("activation", overflow="fold")
    for name in ("dead", "satu-\nrated", "always\non", "spar-\nsity", "hidden\nrms", "hidden\nlargest",
                 "kurto-\nsis", "channel\n/median", *(["gradient\nrms"] if with_gradients else [])):
        table.add_column(name, justify="right")
    for b in record["blocks"]:
        hidden = b["streams"]["hidden"]
        ratio = b["outliers"]["channels"][0]["ratio"] if b["outliers"] else None
        cells = [b["name"] or "(all)", b["activation"]["computed"], *(f"{b[k]['share']:.1%}" for k in (
            "dead", "saturated", "always_on")), number(b["sparsity"], ".1%"), number(hidden["rms"], ".3g"),
            number(hidden["largest"], ".3g"), number(hidden["kurtosis"], ".3g"), number(ratio, ".3g")]
        if with_gradients:
            cells.append(number((b["gradients"] or {}).get("rms"), ".2e"))
        table.add_row(*cells)
    console.print(table)
    console.print(f"\n{summary(record)}", style="bold", highlight=False)
    for f in record["findings"]:
        console.print(f"[{_STYLES[f['grade']]}]{f['grade']:<8}[/]", end=" ")
        console.print(f"{f['text']} {f['action']}", highlight=False, markup=False, soft_wrap=True)
