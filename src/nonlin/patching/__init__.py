"""Models of others: loading, finding feed-forward blocks, identifying activations, replacing blocks with proof."""

from nonlin import _lazy

_HOMES = {
    "load": "nonlin.patching.loading",
    "Loaded": "nonlin.patching.loading",
    "Block": "nonlin.patching.blocks",
    "find_blocks": "nonlin.patching.blocks",
    "identify": "nonlin.patching.identification",
    "identify_all": "nonlin.patching.identification",
}
__all__ = [*_HOMES]

__getattr__ = _lazy.attributes(__name__, _HOMES)
