"""The options that say how all arms are trained: a recipe in words, or a file of one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nonlin.cli.numbers import number
from nonlin.study import defaults
from nonlin.training.recipe import DEFAULTS, OPTIMIZERS, PRECISIONS, SCHEDULES
from nonlin.training.transfer import RULES


# An option that is not given is None: then a recipe's file may say it.
def _choice(name: str, kind: Any, text: str, default: Any, metavar: str | None = None) -> Any:
    return click.option(name, type=kind, metavar=metavar, help=f"{text} Default: {default}.".strip())


def _number(name: str, least: float, text: str, default: Any, whole: bool = False, **others: Any) -> Any:
    return number(name, least, f"{text} Default: {default}.".strip(), whole=whole, **others)


_OPTIONS = (
    click.option("--recipe", type=click.Path(path_type=Path), metavar="FILE",
                 help="JSON of transformers.TrainingArguments: it says what the options leave open."),
    _choice("--batch", str, "Sequences per step, or its tokens.", defaults.BATCH, "N|Ntokens"),
    _number("--accumulation", 1, "Parts that a batch is computed in.", DEFAULTS["accumulation"], whole=True),
    _number("--evaluation-tokens", 1, "Tokens of held-out text that give a run's loss.",
            f"{defaults.TRAINING['evaluation_tokens']:,}", whole=True),
    _choice("--optimizer", click.Choice(OPTIMIZERS), "", DEFAULTS["optimizer"]),
    _choice("--schedule", click.Choice(SCHEDULES), "How the learning rate falls; wsd is stable, then decays.",
            DEFAULTS["schedule"]),
    _number("--warmup", 0, "Steps in which the learning rate rises: a share below 1, or their number.",
            defaults.TRAINING["warmup_fraction"], metavar="SHARE|STEPS"),
    _number("--decay", 0, "Steps of wsd in which it falls.", DEFAULTS["decay_fraction"], metavar="SHARE|STEPS"),
    _number("--weight-decay", 0, "", defaults.TRAINING["weight_decay"]),
    _number("--clip", 0, "Largest norm of the gradient; 0 for none.", defaults.TRAINING["clip"]),
    _choice("--precision", click.Choice(PRECISIONS), "Of matrix products; auto is the faster one.",
            defaults.PRECISION),
    click.option("--transfer", type=click.Choice(RULES), help="Scale rates, initial values, epsilon and decay by "
                 "parameter group, from the default study's model to this one. Default: no transfer."),
)


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a recipe to a command; one that is not given is None."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
