"""A study's page and figures: records in, one HTML file out. No torch, no statistics.

The names load on first use: drawing takes a library that a study need not wait for.
"""

from typing import TYPE_CHECKING

from nonlin import _lazy

if TYPE_CHECKING:
    from nonlin.report.live import LivePage, LivePages
    from nonlin.report.page import build

__all__ = ["build", "LivePage", "LivePages"]

_HOMES = {"build": "nonlin.report.page", "LivePage": "nonlin.report.live",
          "LivePages": "nonlin.report.live"}

if not TYPE_CHECKING:
    __getattr__ = _lazy.attributes(__name__, _HOMES)
    __dir__ = _lazy.listing(__all__)
