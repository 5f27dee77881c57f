"""One run: its configuration, recipe, loop, evaluation, probes and machine settings."""

from typing import TYPE_CHECKING

from nonlin import _lazy

if TYPE_CHECKING:
    from nonlin.training.config import config_hash, definition_of
    from nonlin.training.measuring import measure
    from nonlin.training.trained import export_winner, load_trained, sample
    from nonlin.training.trial import Run, build_model, run_trial

__all__ = [
    "config_hash", "definition_of", "run_trial", "measure", "sample", "export_winner", "load_trained",
    "build_model", "Run",
]

_HOMES = {
    "config_hash": "nonlin.training.config",
    "definition_of": "nonlin.training.config",
    "run_trial": "nonlin.training.trial",
    "measure": "nonlin.training.measuring",
    "sample": "nonlin.training.trained",
    "export_winner": "nonlin.training.trained",
    "load_trained": "nonlin.training.trained",
    "build_model": "nonlin.training.trial",
    "Run": "nonlin.training.trial",
}

if not TYPE_CHECKING:  # most of these load torch, and the command line's help reads a recipe's words alone
    __getattr__, __dir__ = _lazy.attributes(__name__, _HOMES), _lazy.listing(__all__)
