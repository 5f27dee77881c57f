"""The user's own model as the subject of a study: its configuration, its feed-forward blocks, and their replacement.

A subject is described once, in JSON, when a study is planned. The description names its class, its configuration, the
places of its blocks and the way each is replaced. A run builds its model from that description, the activation and the
seed alone. A description is proved when it is made.
"""

from typing import TYPE_CHECKING

from nonlin import _lazy

if TYPE_CHECKING:
    from nonlin.subject.asking import Wanted, wanted
    from nonlin.subject.building import build
    from nonlin.subject.describing import describe
    from nonlin.subject.model import OwnModel

__all__ = ["Wanted", "wanted", "describe", "build", "OwnModel"]

_HOMES = {
    "Wanted": "nonlin.subject.asking",
    "wanted": "nonlin.subject.asking",
    "describe": "nonlin.subject.describing",
    "build": "nonlin.subject.building",
    "OwnModel": "nonlin.subject.model",
}

if not TYPE_CHECKING:  # most of these load torch
    __getattr__, __dir__ = _lazy.attributes(__name__, _HOMES), _lazy.listing(__all__)
