"""The letters of a text that is shown: none that a terminal obeys, and none that cannot be written."""

import codecs
import shlex

_IN_ASCII = {"−": "-", "–": "-", "…": "...", "×": "x", "±": "+/-", "“": '"', "”": '"', "→": "->", "²": "2"}
NEAREST = "nonlin.nearest"
"""The name by which a stream writes letters that its encoding has not: the nearest of ASCII, or their numbers."""


def _nearest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start:error.end]
    return "".join(_IN_ASCII.get(c) or _escaped(c) for c in letters), error.end


codecs.register_error(NEAREST, _nearest)


def printable(name: str) -> str:
    r"""Return a file's name as text that can be written anywhere: bytes that are no UTF-8 become \xNN.

    So do the characters that a terminal acts on, ends of lines among them.

    >>> printable("caf\udce9.txt"), printable("red\x1b[31m.txt")
    ('caf\\xe9.txt', 'red\\x1b[31m.txt')
    """
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else _escaped(c) for c in name)


def quoted(path: object) -> str:
    """Return a path as a command takes it that is to be copied into a shell.

    >>> print(quoted("runs/mine"), quoted("my study"))
    runs/mine 'my study'
    """
    return shlex.quote(printable(str(path)))


def plain(text: object) -> str:
    r"""Return words as lines of characters that a terminal shows: names in them may hold some that it obeys.

    >>> plain("a study\nof \x1b[31mred\ud800")
    'a study\nof \\x1b[31mred\\ud800'
    """
    return "\n".join(map(printable, str(text).split("\n")))


def _escaped(letter: str) -> str:
    return f"\\x{ord(letter) - 0xDC00:02x}" if "\udc80" <= letter <= "\udcff" else ascii(letter)[1:-1]
