"""``nonlin sample``: text from a study's models."""

from pathlib import Path

import click

from nonlin.cli.output import json_option, print_json, show


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--prompt", default="", help="The text to continue.")
@click.option("--arm", metavar="NAME", help="Whose model writes. Default: the winner's.")
@click.option("--length", type=click.IntRange(1), default=200, show_default=True, help="Tokens to write.")
@click.option("--temperature", type=click.FloatRange(0), default=0.8, show_default=True,
              help="0 always takes the likeliest token.")
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
def sample(directory: Path, prompt: str, arm: str | None, length: int, temperature: float, seed: int,
           as_json: bool) -> None:
    """Continue a prompt with a model that the study in DIRECTORY trained."""
    from nonlin.outcome import load_study

    study = load_study(directory)
    chosen = arm or study.winner
    text = study.sample(prompt, chosen, length=length, temperature=temperature, seed=seed)
    if as_json:
        print_json({"arm": chosen, "trial": study.best_trial(chosen), "prompt": prompt, "text": text})
    else:
        show(text)
