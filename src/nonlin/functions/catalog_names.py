"""The catalog's names, read from the text of its file: SymPy, which takes a second to load, is not loaded for them.

Mistakes in names are said, and a shell completes names, by this alone. The catalog itself is :mod:`.catalog`.
"""

import ast
import functools
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from nonlin.errors import UnknownName, short, unknown_name

_MAKERS = ("pointwise", "gated", "gated_formula", "Definition")
_FORMULA = re.compile(r"[-+*/^(),. ]")  # what stands in a formula and in no name
_PLUS = re.compile(r"(^|,)\s*\+\s*(?=[A-Za-z_])")
CALLED = re.compile(r"([A-Za-z]\w*)\s*\(([^()]*)\)\s*\Z", re.ASCII)
"""A name with constants in parentheses."""


@functools.cache
def catalog_names() -> dict[str, str]:
    """Return the canonical name of every name and alias, in the catalog's order, an activation's own name first.

    >>> found = catalog_names()
    >>> found["swish"], list(found)[:2]
    ('silu', ['identity', 'linear'])
    """
    found: dict[str, str] = {}
    for line in ast.parse(Path(__file__).with_name("catalog.py").read_text(encoding="utf-8")).body:
        made = line.value if isinstance(line, ast.Assign) else None
        if isinstance(made, ast.Call) and isinstance(made.func, ast.Name) and made.func.id in _MAKERS:
            name = ast.literal_eval(made.args[0])
            aliases = next((ast.literal_eval(k.value) for k in made.keywords if k.arg == "aliases"), ())
            found |= dict.fromkeys((name, *aliases), name)
    return found


def canonical_names() -> list[str]:
    """Return the catalog's names without their aliases.

    >>> canonical_names()[:3]
    ['identity', 'sigmoid', 'tanh']
    """
    return list(dict.fromkeys(catalog_names().values()))


def split(text: str) -> list[str]:
    """Return the parts of a list of activations; commas in parentheses do not split.

    >>> split("gelu, other=max(x, 0),")
    ['gelu', 'other=max(x, 0)']
    """
    parts: list[str] = []
    depth, start = 0, 0
    for i, char in enumerate(text + ","):
        depth += (char == "(") - (char == ")")
        if char == "," and (depth <= 0 or i == len(text)):
            parts.append(text[start:i].strip())
            start = i + 1
    return [part for part in parts if part]


def without_pluses(text: str) -> str:
    """Return a list of activations without the + that may stand before a name that is added.

    >>> without_pluses("+mish, +mine=x*sigmoid(2*x)+x")
    'mish,mine=x*sigmoid(2*x)+x'
    """
    return _PLUS.sub(r"\1", text)


def must_be_known(activations: str, baseline: str | None = None) -> None:
    """Raise UnknownName where a list, or its baseline, has a name that the catalog has not; formulas are not read.

    It says nothing once the registry is loaded, which knows the user's own activations and says it itself.

    >>> must_be_known("gelu,mine=x*sigmoid(2*x),leaky_relu(slope=0.5)", "mine")
    """
    if "nonlin.functions.registry" in sys.modules:
        return
    known = set(catalog_names())
    for part in [*split(activations), *([] if baseline is None else [baseline])]:
        called = CALLED.match(part)
        if "=" in part and not called:
            known.add(part.partition("=")[0].strip())
        elif (called[1] if called else part) not in known:
            raise unknown_activation(called[1] if called and "=" in part else part, known)


def unknown_activation(name: str, known: Iterable[str]) -> UnknownName:
    """Return the exception for a name that no activation has, with near matches; a formula is told to need a name.

    >>> str(unknown_activation("x*silu(x)", ["silu"]))
    "unknown activation 'x*silu(x)'. Write a formula with a name: mine=x*silu(x)."
    """
    error = unknown_name("activation", name, known)
    if _FORMULA.search(name) and "Did you mean" not in str(error):
        shown = short(name)
        return UnknownName(f"unknown activation {shown!r}. Write a formula with a name: mine={shown}.")
    return error
