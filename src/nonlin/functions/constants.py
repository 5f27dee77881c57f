"""Activations of the catalog with other constants: ``leaky_relu(slope=0.5)``, ``swiglu_clamped(limit=7)``.

A name with constants is a name like any other: in Python, on the command line, in a study's plan. With the catalog's
own constants it is the catalog's activation.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy

from nonlin.errors import UserError, rule, unknown_name
from nonlin.functions.catalog import CATALOG, bounded_power
from nonlin.functions.catalog_names import CALLED, unknown_activation
from nonlin.functions.definition import GATE, UP, Definition, X
from nonlin.functions.primitives import Phi, Tanh, clip, expm1, maximum, minimum, sigmoid, step

_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*\Z", re.ASCII)


@dataclass(frozen=True)
class Family:
    """An activation's constants as the catalog has them, its formula by them, and which must be positive."""

    constants: Mapping[str, str]
    formula: Callable[..., Any]
    positive: tuple[str, ...] = ()


def _swiglu_clamped(limit: Any) -> Any:
    held = minimum(GATE, limit)
    return held * sigmoid(held) * clip(UP, -limit, limit)


def _swiglu_oai(alpha: Any, limit: Any) -> Any:
    held = minimum(GATE, limit)
    return held * sigmoid(alpha * held) * (clip(UP, -limit, limit) + 1)


def _situ_glu(gate_limit: Any, up_limit: Any) -> Any:
    return gate_limit * Tanh(GATE / gate_limit) * sigmoid(GATE) * up_limit * Tanh(UP / up_limit)


def _powlu(m: Any) -> Any:
    return minimum(GATE, 0) * sigmoid(GATE) * UP + bounded_power(GATE, m) * sigmoid(GATE) * UP


FAMILIES = {
    "leaky_relu": Family({"slope": "0.01"}, lambda slope: maximum(X, 0) + slope * minimum(X, 0)),
    "leaky_relu_squared": Family({"slope": "0.5"}, lambda slope: maximum(X, 0) ** 2 + slope**2 * minimum(X, 0) ** 2),
    "elu": Family({"alpha": "1"}, lambda alpha: maximum(X, 0) + alpha * expm1(minimum(X, 0))),
    "quick_gelu": Family({"alpha": "1.702"}, lambda alpha: X * sigmoid(alpha * X)),
    "relu6": Family({"limit": "6"}, lambda limit: clip(X, 0, limit), ("limit",)),
    "gelu_10": Family({"limit": "10"}, lambda limit: clip(X * Phi(X), -limit, limit), ("limit",)),
    "fatrelu": Family({"threshold": "0.01"}, lambda threshold: X * step(X - threshold), ("threshold",)),
    "swiglu_clamped": Family({"limit": "10"}, _swiglu_clamped, ("limit",)),
    "swiglu_oai": Family({"alpha": "1.702", "limit": "7"}, _swiglu_oai, ("limit",)),
    "situ_glu": Family({"gate_limit": "4", "up_limit": "25"}, _situ_glu, ("gate_limit", "up_limit")),
    "powlu": Family({"m": "3"}, _powlu, ("m",)),
}
"""The activations that take constants."""

_BY_NAME = {alias: d for d in CATALOG for alias in (d.name, *d.aliases)}


def with_constants(name: str | Definition, given: Mapping[str, Any]) -> Definition:
    """Return an activation of the catalog with these constants; UserError for one that takes none of them.

    >>> with_constants("leaky_relu", {"slope": 0.5}).formula
    'min(x, 0)/2 + max(x, 0)'
    >>> with_constants("swiglu_clamped", {"limit": 10}).name
    'swiglu_clamped'
    """
    if isinstance(name, str) and name not in _BY_NAME:
        raise unknown_activation(name, _BY_NAME)
    found = _BY_NAME[name] if isinstance(name, str) else name
    if (own := CALLED.match(found.name)) is not None:
        raise UserError(f"get: {found.name} has its constants already; got {', '.join(given)} too. Write "
                        f"get({own[1]!r}, ...) with all of them.")
    family = None if found.user_defined else FAMILIES.get(found.name)
    if family is None:
        raise UserError(f"get: {found.name} takes no constants; got {', '.join(given) or 'none'}. Those that do: "
                        f"{', '.join(FAMILIES)}. Write others as a formula: mine=x*sigmoid(2*x).")
    for key in given:
        if key not in family.constants:
            raise unknown_name(f"constant of {found.name}", key, list(family.constants))
    values = {key: _number(found.name, key, given.get(key, default), key in family.positive)
              for key, default in family.constants.items()}
    return _made(found.name, tuple(values.values()))


@functools.cache
def _made(name: str, values: tuple[sympy.Rational, ...]) -> Definition:
    """One object for one set of constants in a process: kernels are kept by it."""
    family, found = FAMILIES[name], _BY_NAME[name]
    defaults = dict(zip(family.constants, map(sympy.Rational, family.constants.values()), strict=True))
    chosen = dict(zip(family.constants, values, strict=True))
    if chosen == defaults:
        return found
    told = ",".join(f"{key}={_text(value)}" for key, value in chosen.items() if value != defaults[key])
    return replace(found, name=f"{name}({told})", expr=sympy.sympify(family.formula(**chosen)), aliases=(), used_by=(),
                   note=f"{found.name} with {told}")


def _number(name: str, key: str, value: Any, positive: bool) -> sympy.Rational:
    number = finite_number(value)
    ordinary = 1e-6 <= abs(number) <= 1e6 or (number == 0 and not positive)
    if not ordinary or (positive and number < 0):
        raise UserError(rule(name, key, f"be a {'positive ' if positive else ''}number of ordinary size", value,
                             f"Try {key}={FAMILIES[name].constants[key]}."))
    return sympy.Rational(f"{number:.9g}")


def finite_number(value: Any) -> float:
    """Return a number, or a text of ASCII digits, as a float; nan where it is neither, or not finite.

    >>> finite_number("1e-2"), finite_number("1_000"), finite_number(True)
    (0.01, nan, nan)
    """
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.match(value)):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several numbers
        return math.nan
    return number if math.isfinite(number) else math.nan


def _text(value: sympy.Rational) -> str:
    return f"{float(value):.9g}"


def called(text: str) -> Definition | None:
    """Return the activation of a name with constants in parentheses; None where the text is no such name.

    >>> called("leaky_relu(slope=0.5)").name, called("gelu") is None
    ('leaky_relu(slope=0.5)', True)
    """
    found = CALLED.match(text.strip())
    if found is None:
        return None
    given = {}
    for part in filter(None, (part.strip() for part in found[2].split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"activation: constants must be written with their names; got {text!r}. "
                            f"Write leaky_relu(slope=0.5); write a formula with a name: mine={text.strip()}.")
        if key.strip() in given:
            raise UserError(rule("activation", "constants", "be given once", text, f"Leave out one {key.strip()}."))
        given[key.strip()] = value.strip()
    return with_constants(found[1], given)
