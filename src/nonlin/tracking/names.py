"""The trackers' names; loads nothing else, since the command line's help reads it."""

import importlib.util
from collections.abc import Sequence

from nonlin.errors import UserError, unknown_name

#: By name: the modules that it needs, and what installs them.
TRACKERS = {
    "wandb": (("wandb",), "pip install 'nonlin[wandb]'"),
    "mlflow": (("mlflow", "sqlalchemy", "alembic"), "pip install 'nonlin[mlflow]'"),
    "tensorboard": (("tensorboard",), "pip install 'nonlin[tensorboard]'"),
    "trackio": (("trackio",), "pip install 'nonlin[trackio]'"),
}


def chosen_trackers(track: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of trackers asked for, each once; UserError for an unknown one, or one that is not installed.

    >>> chosen_trackers(None), chosen_trackers(["tensorboard", "tensorboard"])
    ((), ('tensorboard',))
    """
    names = (track,) if isinstance(track, str) else tuple(dict.fromkeys(track or ()))
    for name in names:
        if name not in TRACKERS:
            raise unknown_name("tracker", name, TRACKERS)
        missing = [module for module in TRACKERS[name][0] if importlib.util.find_spec(module) is None]
        if missing:
            raise UserError(f"compare: track={name!r} must have the package {missing[0]}; it is not installed. "
                            f"Install it: {TRACKERS[name][1]}.")
    return names
