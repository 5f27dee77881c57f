"""Models of others: loading, finding feed-forward blocks, identifying activations, replacing blocks with proof."""

from typing import TYPE_CHECKING

from nonlin import _lazy

if TYPE_CHECKING:
    from nonlin.patching.blocks import Block
    from nonlin.patching.described import Described, describe_blocks
    from nonlin.patching.finding import find_blocks
    from nonlin.patching.identification import identify, identify_all
    from nonlin.patching.loading import Loaded, load

__all__ = ["load", "Loaded", "Block", "find_blocks", "Described", "describe_blocks", "identify", "identify_all"]

_HOMES = {
    "load": "nonlin.patching.loading",
    "Loaded": "nonlin.patching.loading",
    "Block": "nonlin.patching.blocks",
    "find_blocks": "nonlin.patching.finding",
    "Described": "nonlin.patching.described",
    "describe_blocks": "nonlin.patching.described",
    "identify": "nonlin.patching.identification",
    "identify_all": "nonlin.patching.identification",
}

if not TYPE_CHECKING:  # these load torch
    __getattr__, __dir__ = _lazy.attributes(__name__, _HOMES), _lazy.listing(__all__)
