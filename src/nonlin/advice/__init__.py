"""Which activation to use for a model that is not yet trained: evidence in, a choice with its reasons out.

The rules are in :mod:`nonlin.advice.evidence`; ``docs/advise.md`` says how to read the answer.
"""

from typing import TYPE_CHECKING

from nonlin import _lazy
from nonlin.advice.sizes import parse_size, size_text

if TYPE_CHECKING:
    from nonlin.advice.advising import advise
    from nonlin.advice.records import Advice

__all__ = ["Advice", "advise", "parse_size", "size_text"]

_HOMES = {
    "Advice": "nonlin.advice.records",
    "advise": "nonlin.advice.advising",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = _lazy.attributes(__name__, _HOMES), _lazy.listing(__all__)
