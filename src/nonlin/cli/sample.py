"""``nonlin sample``: text from a study's models."""

from pathlib import Path

import click

from nonlin.cli import completion
from nonlin.cli.numbers import number
from nonlin.cli.output import json_option, print_json, show
from nonlin.kinds import STUDY, must_be


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--prompt", default="", help="The text to continue.")
@click.option("--arm", metavar="NAME", shell_complete=completion.arm, help="Whose model writes. Default: the winner's.")
@number("--length", 1, "Tokens to write.", default=200, show_default=True)
@number("--temperature", 0, "0 always takes the likeliest token.", whole=False, default=0.8, show_default=True)
@number("--seed", 0, "Another one writes another text.", most=2**63 - 1, default=0, show_default=True)
@json_option
def sample(directory: Path, prompt: str, arm: str | None, length: int, temperature: float, seed: int,
           as_json: bool) -> None:
    """Continue a prompt with a model that the study in DIRECTORY trained."""
    must_be(directory, STUDY)
    from nonlin.calls.study import load_study

    study = load_study(directory)
    chosen = arm or study.winner
    text = study.sample(prompt, chosen, length=length, temperature=temperature, seed=seed)
    if as_json:
        print_json({"arm": chosen, "trial": study.best_trial(chosen), "prompt": prompt, "text": text})
    else:
        show(text)
