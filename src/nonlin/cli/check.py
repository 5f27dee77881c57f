"""``nonlin check``: :func:`nonlin.check` for the command line."""

import sys
from pathlib import Path

import click

from nonlin.cli.numbers import number
from nonlin.cli.output import PageFile, json_option, print_json, say


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE",
              help="Text to run through the model, or token ids (.json, .npy). Default: Python's standard library.")
@number("--tokens", 2, "Tokens to run.", default=4096, show_default=True)
@number("--context", 2, "Tokens per sequence.", default=512, show_default=True)
@click.option("--gradients", is_flag=True, help="Also run one batch backward: gradients, attention logits.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--device", metavar="NAME", help="The device to run on, such as cuda. Default: the CPU.")
@click.option("--page", type=PageFile(), metavar="FILE",
              help="The page's file. Default: runs/check-MODEL.html.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the model's folder brings along.")
@json_option
def check(model: str, text: Path | None, tokens: int, context: int, gradients: bool, dtype: str, device: str | None,
          page: Path | None, trust_remote_code: bool, as_json: bool) -> None:
    """Look for dead units, saturation, outliers and a wrong activation in MODEL, layer by layer.

    MODEL is a Hugging Face folder, a GGUF file, or a folder that nonlin compare wrote. Nothing is fetched and nothing
    unpickled. Exit status 1 if a finding is serious.
    """
    from nonlin.calls.checkup import check as look

    found = look(model, text, tokens=tokens, context=context, gradients=gradients, dtype=dtype, device=device,
                 trust_remote_code=trust_remote_code)
    from nonlin.report.terminal import print_health  # after the check, which a mistake ends

    path = found.write_page(page)
    if as_json:
        print_json(dict(found.values))
        say(f"Page: {path}")
    else:
        print_health(found.values)
        click.echo(f"\nPage: {path}")
    if found.serious:
        sys.exit(1)
