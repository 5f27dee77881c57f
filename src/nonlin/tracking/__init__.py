"""Where people log: a study's runs in Weights & Biases, MLflow, TensorBoard or Trackio, one run per trial.

A tracker is a module of its own, made from the study's records alone: it never decides what runs.
"""

from typing import TYPE_CHECKING

from nonlin import _lazy
from nonlin.tracking.names import TRACKERS, chosen_trackers

if TYPE_CHECKING:
    from nonlin.tracking.following import Following

__all__ = ["TRACKERS", "Following", "chosen_trackers"]

_HOMES = {"Following": "nonlin.tracking.following"}

if not TYPE_CHECKING:
    __getattr__, __dir__ = _lazy.attributes(__name__, _HOMES), _lazy.listing(__all__)
