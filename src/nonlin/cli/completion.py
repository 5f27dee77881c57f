"""Names of activations for a shell that completes words; docs/how-to/terminal.md says how to switch it on."""

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from nonlin.functions.catalog_names import canonical_names


def activation(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the activations that begin with what is written."""
    return [CompletionItem(name) for name in canonical_names() if name.startswith(incomplete)]


def activations(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return a list "gelu,sw" with its last name completed; names that stand in it already are not offered."""
    *first, last = incomplete.split(",")
    return [CompletionItem(",".join([*first, name])) for name in canonical_names()
            if name.startswith(last) and name not in first]


def arm(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the arms of the study that the command names."""
    from nonlin.errors import UserError
    from nonlin.files import Unreadable, read_json

    # With an option whose value is being written, click leaves the arguments where they are.
    directory = ctx.params.get("directory") or next(iter(ctx.args), None)
    try:
        arms = [one["name"] for one in read_json(Path(directory) / "plan.json")["arms"]] if directory else []
    except (Unreadable, UserError, KeyError, TypeError):
        arms = []
    return [CompletionItem(name) for name in arms if name.startswith(incomplete)]
