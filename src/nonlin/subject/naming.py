"""The layer that a block lies in, by its name."""


def layer_of(name: str) -> str:
    """Return the layer that a block lies in: its name up to the last number, but for the numbers of experts.

    >>> layer_of("model.layers.3.mlp.experts.7"), layer_of("model.layers.3.mlp"), layer_of("transformer.h.0")
    ('model.layers.3', 'model.layers.3', 'transformer.h.0')
    """
    parts = name.split(".")
    first = next((i for i, p in enumerate(parts) if p.isdigit()), None)
    return name if first is None else ".".join(parts[:first + 1])
