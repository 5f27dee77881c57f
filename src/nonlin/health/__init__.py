"""What is wrong inside a model: measures of its feed-forward blocks, findings, and what to do about them."""

from nonlin import _lazy

_HOMES = {
    "watch": "nonlin.health.watching",
    "Health": "nonlin.health.watching",
    "check": "nonlin.health.checking",
    "trainer_callback": "nonlin.health.callbacks",
    "lightning_callback": "nonlin.health.callbacks",
    "judge": "nonlin.health.findings",
}
__all__ = list(_HOMES)

__getattr__ = _lazy.attributes(__name__, _HOMES)
