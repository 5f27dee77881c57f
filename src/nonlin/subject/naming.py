"""Names: of the layer that a block lies in, and of a tensor in its family and in an arm's model."""

from collections.abc import Mapping
from typing import Any


def moved(own: Mapping[str, Any]) -> dict[str, str]:
    """Return the beginnings of names that entered blocks change: the family's to ours.

    >>> moved({"blocks": [{"style": "entered", "names": ["layers.0"], "gate": None, "up": "fc1"}]})
    {'layers.0.fc1.': 'layers.0.fc1.up.'}
    """
    found = {}
    for group in own["blocks"]:
        for name in group["names"] if group["style"] == "entered" else ():
            at = f"{name}.{group['gate'] or group['up']}" if name else group["gate"] or group["up"]
            up = f"{name}.{group['up']}" if name else group["up"]
            found[f"{up}."] = f"{at}.up."
            if group["gate"]:
                found[f"{at}."] = f"{at}.gate."
    return found


def renamed(name: str, beginnings: Mapping[str, str]) -> str:
    """Return a name with its beginning changed."""
    for old, new in beginnings.items():
        if name.startswith(old):
            return new + name[len(old):]
    return name


def pattern(name: str) -> str:
    """Return the name that all layers' tensors of one place share.

    >>> pattern("model.layers.12.mlp.up_proj.weight")
    'model.layers.*.mlp.up_proj.weight'
    """
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def in_family(name: str, own: Mapping[str, Any]) -> str:
    """Return the family's name of a parameter of an arm's model.

    >>> in_family("inner.layers.0.fc1.up.weight", {"blocks": [{"style": "entered", "names": ["layers.0"],
    ...                                                        "gate": None, "up": "fc1"}]})
    'layers.0.fc1.weight'
    """
    return renamed(name.removeprefix("inner."), {new: old for old, new in moved(own).items()})


def layer_of(name: str) -> str:
    """Return the layer that a block lies in: its name up to the first number, or the whole of it.

    >>> layer_of("model.layers.3.mlp.experts.7"), layer_of("model.layers.3.mlp"), layer_of("transformer.h.0")
    ('model.layers.3', 'model.layers.3', 'transformer.h.0')
    """
    parts = name.split(".")
    first = next((i for i, p in enumerate(parts) if p.isdigit()), None)
    return name if first is None else ".".join(parts[:first + 1])
