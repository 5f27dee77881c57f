"""Engines: where a study's runs are computed. One protocol, and a module for each kind.

The names load on first use: the command line's help reads :mod:`nonlin.study.engines.choice` alone.
"""

from typing import TYPE_CHECKING

from nonlin import _lazy

if TYPE_CHECKING:
    from nonlin.study.engines.asking import ask, ask_all, measure
    from nonlin.study.engines.choice import EngineChoice
    from nonlin.study.engines.processes import ProcessEngine
    from nonlin.study.engines.protocol import Engine, Event, Request, Slot

__all__ = ["Engine", "EngineChoice", "Event", "ProcessEngine", "Request", "Slot", "ask", "ask_all", "measure"]

_HOMES = {"ask": "asking", "ask_all": "asking", "measure": "asking", "EngineChoice": "choice",
          "ProcessEngine": "processes", "Engine": "protocol", "Event": "protocol", "Request": "protocol",
          "Slot": "protocol"}

if not TYPE_CHECKING:
    __getattr__ = _lazy.attributes(__name__, {k: f"nonlin.study.engines.{v}" for k, v in _HOMES.items()})
