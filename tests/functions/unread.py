"""Formulas as they are written, for what must be right without reading quotients as primitives."""

from unittest.mock import patch

from nonlin.functions import grammar


def unread(text):
    """Return the expression of a text as it is written."""
    with patch.object(grammar, "simplified", lambda expr: expr):
        return grammar.parse(text)
