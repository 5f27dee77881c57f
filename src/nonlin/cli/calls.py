"""Checks of options that several commands share, made before anything is loaded."""

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from nonlin.errors import UserError, rule


def guarded(command: click.Command) -> click.Command:
    """Return the command; of its options and arguments, none takes an empty text that is not its default."""
    for parameter in command.params:  # a type would see it too late: as a path, it is the current folder
        setattr(parameter, "type_cast_value", functools.partial(_cast, parameter))  # noqa: B010  a method of click's
    return command


def _cast(parameter: click.Parameter, ctx: click.Context, value: Any) -> Any:
    empty = "" in value if isinstance(value, (list, tuple)) else value == "" and parameter.default != ""
    if empty and not ctx.resilient_parsing:
        option = isinstance(parameter, click.Option)
        name = parameter.opts[0] if option else parameter.make_metavar(ctx).strip("[].")
        raise UserError(rule(str(ctx.info_name), name, "not be empty", "",
                             "Write its value, or leave it out." if option else "Write its value."))
    return type(parameter).type_cast_value(parameter, ctx, value)


def only_out(ctx: click.Context, out: Path | None, free: Collection[str]) -> Path:
    """Return --out; UserError for a --resume without it, or with an option that is not among the ``free`` ones."""
    call, given = ctx.command.name, others(ctx, free)
    if out is None:
        raise UserError(f"{call}: --resume must come with --out; got none. Add --out and the folder to continue.")
    if given:
        raise UserError(f"{call}: --resume must stand with --out alone, since the plan is fixed; got "
                        f"{', '.join(given)}. Leave {'it' if len(given) == 1 else 'them'} out, or begin anew in "
                        "another folder.")
    return out


def others(ctx: click.Context, free: Collection[str]) -> list[str]:
    """Return the options that the command line gives, less the ``free`` ones."""
    return [p.opts[0] for p in ctx.command.params if p.name not in free and p.name is not None
            and ctx.get_parameter_source(p.name) is click.core.ParameterSource.COMMANDLINE]


def must_stand_alone(ctx: click.Context, option: str, free: Collection[str]) -> None:
    """Raise UserError for an option beside others than the ``free`` ones, which it would ignore."""
    if given := others(ctx, free):
        raise UserError(f"{ctx.command.name}: {option} must stand without {', '.join(given)}, which would change "
                        f"nothing. Leave {'it' if len(given) == 1 else 'them'} out.")


def must_be_texts(data: Collection[str], validation: Collection[str] = ()) -> None:
    """Raise UserError for a --data or --validation that is not there, before what takes a second to load."""
    from nonlin.data import Sources

    Sources(list(data), validation=list(validation)).check()


def must_be_names(activations: str | None, baseline: str | None = None) -> None:
    """Raise UserError for a name that no activation has, before SymPy is loaded, which takes a second."""
    from nonlin.functions.catalog_names import must_be_known

    must_be_known(activations or "", baseline)


def shares(call: str, text: str | None) -> list[float] | None:
    """Return the numbers of --weights, "3,1"; UserError for anything else."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{call}: weights must be numbers with commas between them; got {text!r}. "
                        "Try --weights 3,1.") from None
