"""The options that say where a study's runs are computed; ``compare`` and ``claims`` share them."""

import functools
from collections.abc import Callable
from typing import Any

import click

from nonlin.cli.numbers import number
from nonlin.errors import UserError
from nonlin.study.engines.choice import ENGINES, PARALLEL, EngineChoice

#: Their names as parameters.
ENGINE_OPTIONS = ("engine", "workers", "trials_per_gpu", "devices_per_trial", "parallel", "address", "slurm")

_OPTIONS = (
    click.option("--engine", type=click.Choice(ENGINES), default="processes", show_default=True,
                 help="What runs the trials: processes on this machine, a Ray cluster, or SLURM."),
    number("--workers", 1, "Trials at once. Default: every core that may be used, as far as memory "
           "allows; on GPUs, as many as --trials-per-gpu says."),
    number("--trials-per-gpu", 1, "Trials that share a GPU. Default: as many as are measured to be faster together."),
    number("--devices-per-trial", 1, "GPUs, or processes of one core each, that train one model together.", default=1,
           show_default=True),
    click.option("--parallel", type=click.Choice(PARALLEL), default="ddp", show_default=True,
                 help="How they do: DDP, or FSDP2 for a model that is too large for one."),
    click.option("--address", default="auto", show_default=True, help="The Ray cluster."),
    click.option("--slurm", default="", metavar="KEY=VALUE,...", help="What each SLURM job asks for: "
                 "partition=gpu,gpus=1,time=60 (minutes), and any other option of sbatch."),
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options; it gets them as one argument, ``engine``, an EngineChoice."""

    @functools.wraps(command)
    def with_choice(*args: Any, engine: str, workers: int | None, trials_per_gpu: int | None, devices_per_trial: int,
                    parallel: str, address: str, slurm: str, **others: Any) -> Any:
        choice = EngineChoice(engine, workers, trials_per_gpu, devices_per_trial, parallel, address, parse_pairs(slurm))
        return command(*args, engine=choice, **others)

    for option in reversed(_OPTIONS):
        with_choice = option(with_choice)
    return with_choice


def parse_pairs(text: str) -> dict[str, str]:
    """Return the pairs of "KEY=VALUE,..."; UserError for anything else.

    >>> parse_pairs("partition=gpu,time=60")
    {'partition': 'gpu', 'time': '60'}
    """
    pairs = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not (key.strip() and equals):
            raise UserError(f"slurm: options must be KEY=VALUE, with commas between them; got {part!r}. "
                            "Write them as --slurm partition=gpu,gpus=1,time=60.")
        pairs[key.strip()] = value.strip()
    return pairs
