"""Sentences in a terminal: broken between words, and never inside a command that is to be copied."""

import re

from rich.cells import cell_len

_NARROWEST = 20  # columns; below them the terminal breaks lines by itself
_HANGING = "  "
_VALUE = r"""(?:'[^']*'|"[^"]*"|[^\s'"])+"""
# A command: its name, a folder or the like, and options with their values.
_COMMAND = re.compile(rf"\bnonlin [a-z][a-z-]*(?: (?!-)(?=\S*[/'\"~_\d]|\S+(?: --|\.?$)){_VALUE})?"
                      rf"(?: --[a-z][a-z-]*(?: (?!--){_VALUE})?)*")
_TABLE = re.compile(r"\S {2,}\S")


def wrapped(text: str, width: int) -> str:
    """Return a text whose lines are at most so many columns wide, as far as words and commands allow.

    What a line has too much goes on below, two columns further in. Lines with columns of their own stay.

    >>> print(wrapped("Judge: 8 fresh seeds each. To go on: nonlin compare --resume --out runs/a", 34))
    Judge: 8 fresh seeds each. To go
      on:
      nonlin compare --resume --out runs/a
    """
    return "\n".join(_wrapped(line, width) for line in text.split("\n"))


def _wrapped(line: str, width: int) -> str:
    if cell_len(line) <= width or width < _NARROWEST or _TABLE.search(line.strip()):
        return line
    body = line.lstrip(" ")
    indent = line[:len(line) - len(body)]
    lines, last = list[str](), indent
    for word in _words(body):
        joined = f"{last} {word}" if last.strip() else f"{last}{word}"
        if last.strip() and cell_len(joined) > width:
            lines.append(last)
            last = f"{indent}{_HANGING}{word}"
        else:
            last = joined
    return "\n".join([*lines, last])


def _words(text: str) -> list[str]:
    """Return the parts that stay whole: words, and commands with what stands at them without a space."""
    return re.findall(rf"(?:{_COMMAND.pattern}|\S)+", text)
