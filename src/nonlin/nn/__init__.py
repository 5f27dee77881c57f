"""Modules, and the hidden width at equal parameters (which needs no torch)."""

from typing import TYPE_CHECKING

from nonlin import _lazy
from nonlin.nn.widths import matched_hidden

if TYPE_CHECKING:
    from nonlin.nn.modules import Activation, FeedForward

__all__ = ["matched_hidden", "Activation", "FeedForward"]

_HOMES = {
    "Activation": "nonlin.nn.modules",
    "FeedForward": "nonlin.nn.modules",
}

if not TYPE_CHECKING:  # these load torch
    __getattr__, __dir__ = _lazy.attributes(__name__, _HOMES), _lazy.listing(__all__)
