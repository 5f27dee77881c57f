"""Which activation to use for a model that is not yet trained: evidence in, a choice with its reasons out.

The rules are in :mod:`nonlin.advice.evidence`; ``docs/advise.md`` says how to read the answer.
"""

from nonlin.advice.advise import advise
from nonlin.advice.records import Advice
from nonlin.advice.sizes import parse_size, size_text

__all__ = ["Advice", "advise", "parse_size", "size_text"]
