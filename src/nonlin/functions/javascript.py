"""Print definitions as JavaScript: values and derivatives as functions of numbers, in double precision.

The formula is folded with a table that emits JavaScript; common subexpressions are computed once. The primitives are in
primitives.js.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mpmath
import sympy

from nonlin.functions.definition import Definition
from nonlin.functions.expression import fold, terms
from nonlin.functions.primitives import NAMES

_COEFFICIENTS = 30  # of log erfcx: all beyond them are below 1e-17


class _Writer:
    """Collects statements; each distinct subexpression becomes one constant."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.known: dict[str, str] = {}

    def emit(self, text: str) -> str:
        if text not in self.known:
            self.known[text] = f"t{len(self.known)}"
            self.lines.append(f"const {self.known[text]} = {text};")
        return self.known[text]

    def table(self) -> dict[str, Any]:
        made: dict[str, Any] = {name: lambda *args, name=name: self.emit(f"{name}({', '.join(args)})")
                                for name in NAMES.values()}
        made |= {"add": lambda a, b: self.emit(f"{a} + {b}"), "mul": lambda a, b: self.emit(f"{a} * {b}")}
        made["number"] = lambda e: f"({float(e)!r})"
        made["pow"] = self.power
        return made

    def power(self, base: str, exponent: sympy.Expr) -> str:
        if exponent == 2:
            return self.emit(f"{base} * {base}")
        if exponent == -1:
            return self.emit(f"1 / {base}")
        if exponent == sympy.Rational(1, 2):
            return self.emit(f"sqrt({base})")
        return self.emit(f"pow({base}, {float(exponent)!r})")


def function(expr: sympy.Expr, arguments: Iterable[str]) -> str:
    """Return an expression as a JavaScript function of those arguments; it needs :func:`primitives` beside it.

    Each term of a sum is NaN-guarded (0 x infinity is 0), as in the other backends.

    >>> from nonlin.functions import get
    >>> function(get("silu").expr, ["x"])
    '(x) => { const t0 = sigmoid(x); const t1 = x * t0; return mended(t1, x); }'
    """
    names = list(arguments)
    writer = _Writer()
    parts = [fold(term, {name: name for name in names}, writer.table()) for term in terms(sympy.sympify(expr))]
    whole = ", ".join(names)
    body = "".join(f"{line} " for line in writer.lines)
    return f"({whole}) => {{ {body}return {' + '.join(f'mended({part}, {whole})' for part in parts)}; }}"


def activation(definition: Definition) -> str:
    """Return a pointwise or gated definition as a JavaScript object of functions.

    ``value``, ``slope`` and ``curvature`` are by x, or by gate; all take the inputs, then the learnable parameters
    in the definition's order. Gated ones have ``slope_up`` too.
    """
    assert definition.expr is not None
    arguments = [*definition.variables, *(q.name for q in definition.parameters)]
    made = {"value": definition.expr, "slope": definition.derivative(),
            "curvature": definition.derivative(None, 2)}
    if definition.gated:
        made["slope_up"] = definition.derivative("up")
    return "{" + ",\n  ".join(f"{name}: {function(expr, arguments)}" for name, expr in made.items()) + "}"


def activations(definitions: Iterable[Definition]) -> str:
    """Return the JavaScript object of several definitions by name; those that are not pointwise are left out."""
    rows = (f'"{d.name}": {activation(d)}' for d in definitions if d.expr is not None)
    return "{\n" + ",\n".join(rows) + "\n}"


def primitives() -> str:
    """Return the JavaScript that the functions need."""
    text = Path(__file__).with_name("primitives.js").read_text(encoding="utf-8")
    return f"const LOG_ERFCX = [{', '.join(map(repr, _log_erfcx()))}];\n{text}"


@functools.cache
def _log_erfcx() -> list[float]:
    """Chebyshev coefficients of log(erfcx(x) / t) in t = 2 / (2 + x), for all x >= 0; the first is twice the mean."""
    with mpmath.workdps(40):
        count = 2 * _COEFFICIENTS
        angles = [mpmath.pi * (mpmath.mpf(k) + 0.5) / count for k in range(count)]
        values = []
        for angle in angles:
            t = (mpmath.cos(angle) + 1) / 2
            x = 2 / t - 2
            values.append(mpmath.log(_erfcx(x) / t))
        return [float(2 * mpmath.fsum(v * mpmath.cos(j * a) for v, a in zip(values, angles, strict=True)) / count)
                for j in range(_COEFFICIENTS)]


def _erfcx(x: Any) -> Any:
    if x < 50:
        return mpmath.exp(x * x) * mpmath.erfc(x)
    total, term = mpmath.mpf(1), mpmath.mpf(1)  # the asymptotic series, exact to 40 digits from here on
    for n in range(1, 15):
        term *= -(2 * n - 1) / (2 * x * x)
        total += term
    return total / (x * mpmath.sqrt(mpmath.pi))
