"""The exceptions of nonlin and the one form of their messages.

Every message a user can cause reads *call: argument must rule; got value. One action that fixes it.*
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

from nonlin.letters import printable

_VALUE = 300  # letters that are shown of a value
MOST_SHOWN = 3000
"""Letters of an error that are shown."""


def short(text: str, most: int = _VALUE) -> str:
    """Return a text on one line, its middle cut out where it is longer than ``most`` letters.

    >>> short("abcdefghij" * 100, 40)
    'abcdefghijabcde … (1,000 letters) … ghij'
    """
    count = len(text)
    if count > 8 * most:
        text = text[:4 * most] + text[-4 * most:]
    text = printable(text)
    if len(text) > most:
        cut = f" … ({count:,} letters) … "
        end = max(1, (most - len(cut)) // 4)
        text = text[:max(1, most - len(cut) - end)] + cut + text[-end:]
    return text


def told(error: BaseException, most: int = _VALUE) -> str:
    """Return the kind and the words of an error of other code, on one line.

    >>> told(ValueError("two\\nlines"))
    'ValueError: two lines'
    """
    return short(f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}", most)


class NonlinError(Exception):
    """Base of every exception that nonlin raises on purpose.

    Its text is one line of bounded length, whatever stands in the files whose names and values it repeats.
    """

    def __str__(self) -> str:  # not in __init__, which torch.compile could not trace
        return short(super().__str__(), MOST_SHOWN)


class UserError(NonlinError, ValueError):
    """A mistake the user can fix; its message says how. The command line prints it without a traceback."""


class UnknownName(UserError):
    """A name that no registry holds; the message lists near matches."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during work whose finished runs are kept; ``found`` is the study as far as it came."""

    def __init__(self, message: str, found: Any):
        super().__init__(message)
        self.found = found


def stopped_in(directory: object, found: Any) -> Interrupted:
    """Return the interruption of work whose finished runs lie in a folder; ``found`` is its result so far."""
    return Interrupted(f"Stopped; every finished run is kept in {directory}. The same call continues.", found)


def rule(call: str, argument: str, must: str, got: object, fix: str) -> str:
    """Return the one message form.

    >>> rule("FeedForward", "dim", "be positive", -3, "Pass the model's width.")
    "FeedForward: dim must be positive; got -3. Pass the model's width."
    """
    if isinstance(got, str) and len(got) > _VALUE:
        shown = f"{short(repr(got[:_VALUE]))} … ({len(got):,} letters)"
    else:
        shown = short(repr(got))
    return f"{call}: {argument} must {must}; got {shown}. {fix}"


def not_empty(call: str, **given: Any) -> None:
    """Raise UserError for an argument that is an empty text, or a list with one: as a path, it is the current folder.

    >>> not_empty("check", model="m", text=None)
    """
    for name, value in given.items():
        # Texts alone are asked: an array's comparison is an array.
        parts = cast(Sequence[Any], value) if isinstance(value, list | tuple) else [value]
        if any(isinstance(one, str) and not one for one in parts):
            raise UserError(rule(call, name, "not be empty", "", "Write its value, or leave it out if you can."))


_LONGEST = 100  # letters of a name that near ones are looked for


def near(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that a slip makes of ``name``, the nearest first; at most four.

    Near are names of one wrong, missing, added or swapped letter (two from five letters on, three from nine on), and
    names that begin with what was given, from three letters on.

    >>> near("swigul", ["swiglu", "gelu"]), near("learning", ["learning-rate", "layers"]), near("device", ["dim"])
    (['swiglu'], ['learning-rate'], [])
    """
    given = name[:_LONGEST + 1].lower()
    if len(given) > _LONGEST:
        return []  # a slip is near a name in length too, and comparing costs the product of both
    found: list[tuple[int, str]] = []
    for one in sorted(set(known)):
        slips = _slips(given, one.lower())
        length = min(len(given), len(one))
        if slips <= (1 if length < 5 else 2 if length < 9 else 3) and slips < length:
            found.append((slips, one))
        elif len(given) >= 3 and one.lower().startswith(given):
            found.append((4, one))
    return [one for _, one in sorted(found)][:4]


def _slips(a: str, b: str) -> int:
    """The letters to change, insert, remove or swap with their neighbour to make one text of the other."""
    rows = [list(range(len(b) + 1))]
    for i, letter in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            least = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                least = min(least, rows[-2][j - 2] + 1)
            row.append(least)
        rows.append(row)
    return rows[-1][-1]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """Return the exception for a name that is not known, with near matches.

    >>> str(unknown_name("activation", "swigul", ["swiglu", "gelu"]))
    "unknown activation 'swigul'. Did you mean swiglu?"
    """
    known = sorted(known)
    close = near(name, known)
    hint = f"Did you mean {', '.join(close)}?" if close else f"Known names: {', '.join(known)}."
    shown = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"
    return UnknownName(f"unknown {kind} {shown!r}. {hint}")
