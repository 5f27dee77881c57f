"""``nonlin sample``: text from a study's models."""

from pathlib import Path

import click

from nonlin.cli.output import json_option, print_json


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
    from nonlin.cli.finish import best_trial
    from nonlin.errors import UserError, unknown_name
    from nonlin.study import ProcessEngine, load

    results = load(directory).results
    if results is None:
        raise UserError(f"sample: {directory} must hold a study with judged runs; it has none yet. "
                        f"Continue it: nonlin compare --resume --out {directory}")
    names = [a["name"] for a in results["arms"]]
    chosen: str = arm or results["winner"]
    if chosen not in names:
        raise unknown_name("arm", chosen, names)
    key = best_trial(results, chosen)
    if key is None:
        raise UserError(f"sample: {chosen} must have a finished judged run; it has none. "
                        f"Take one of {', '.join(names)}.")
    with ProcessEngine(directory / "data", 1) as engine:
        text = engine.call({"do": "sample", "trial": str(directory / "trials" / key), "prompt": prompt,
                            "length": length, "temperature": temperature, "seed": seed})
    if as_json:
        print_json({"arm": chosen, "trial": key, "prompt": prompt, "text": text})
    else:
        click.echo(text)
