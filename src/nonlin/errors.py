"""The exceptions of nonlin and the one form of their messages.

Every message a user can cause reads *call: argument must rule; got value. One action that fixes it.*
"""

import difflib
from collections.abc import Iterable
from typing import Any


class NonlinError(Exception):
    """Base of every exception that nonlin raises on purpose."""


class UserError(NonlinError, ValueError):
    """A mistake the user can fix; its message says how. The command line prints it without a traceback."""


class UnknownName(UserError):
    """A name that no registry holds; the message lists near matches."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during work whose finished runs are kept; ``found`` is the study as far as it came."""

    def __init__(self, message: str, found: Any):
        super().__init__(message)
        self.found = found


def rule(call: str, argument: str, must: str, got: object, fix: str) -> str:
    """Return the one message form.

    >>> rule("FeedForward", "dim", "be positive", -3, "Pass the model's width.")
    "FeedForward: dim must be positive; got -3. Pass the model's width."
    """
    return f"{call}: {argument} must {must}; got {got!r}. {fix}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """Return the exception for a name that is not known, with near matches.

    >>> str(unknown_name("activation", "swigul", ["swiglu", "gelu"]))
    "unknown activation 'swigul'. Did you mean swiglu?"
    """
    known = sorted(known)
    near = difflib.get_close_matches(name.lower(), known, n=4, cutoff=0.55)
    hint = f"Did you mean {', '.join(near)}?" if near else f"Known names: {', '.join(known)}."
    return UnknownName(f"unknown {kind} {name!r}. {hint}")
