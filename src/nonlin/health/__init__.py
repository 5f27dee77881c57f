"""What is wrong inside a model: measures of its feed-forward blocks, findings, and what to do about them."""

from typing import TYPE_CHECKING

from nonlin import _lazy

if TYPE_CHECKING:
    from nonlin.health.callbacks import lightning_callback, trainer_callback
    from nonlin.health.checking import check
    from nonlin.health.findings import grade
    from nonlin.health.watching import Health, watch

__all__ = ["watch", "Health", "check", "trainer_callback", "lightning_callback", "grade"]

_HOMES = {
    "watch": "nonlin.health.watching",
    "Health": "nonlin.health.watching",
    "check": "nonlin.health.checking",
    "trainer_callback": "nonlin.health.callbacks",
    "lightning_callback": "nonlin.health.callbacks",
    "grade": "nonlin.health.findings",
}

if not TYPE_CHECKING:  # these load torch
    __getattr__, __dir__ = _lazy.attributes(__name__, _HOMES), _lazy.listing(__all__)
