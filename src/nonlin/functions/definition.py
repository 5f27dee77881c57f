"""What an activation is: one symbolic line, and everything that follows from it."""

import functools
import hashlib
from dataclasses import dataclass, field
from typing import Any

import sympy
from sympy.printing.latex import LatexPrinter

from nonlin.errors import UserError, rule
from nonlin.functions import grammar, ties
from nonlin.functions import primitives as p
from nonlin.functions.properties import compute

X, GATE, UP = (sympy.Symbol(name, real=True) for name in grammar.VARIABLES)

_LATEX = {"sigmoid": r"\sigma", "tanh": r"\tanh", "Phi": r"\Phi", "phi": r"\varphi", "erf": r"\operatorname{erf}",
          "exp": r"\exp", "expm1": r"\operatorname{expm1}", "log1p": r"\operatorname{log1p}",
          "softplus": r"\operatorname{softplus}", "sign": r"\operatorname{sign}",
          "step": r"\mathbf{1}_{>0}", "nonnegative": r"\mathbf{1}_{\geq 0}",
          "atan": r"\arctan", "cauchy": r"\operatorname{cauchy}",
          "max": r"\max", "min": r"\min", "abs": r"\operatorname{abs}"}


class _Latex(LatexPrinter):
    """SymPy's printer, but a number with an exponent in the formula's text has one here, too."""

    def _print_Rational(self, expr: sympy.Rational) -> str:
        number, e, exponent = grammar.write(expr).strip("()").partition("e")
        times = {"1": "", "-1": "-"}.get(number, rf"{number} \cdot ")
        return f"{times}10^{{{exponent}}}" if e else super()._print_Rational(expr)  # type: ignore[misc]


@dataclass(frozen=True)
class Parameter:
    """A learnable number of an activation: its symbol's name, its start, and what it does."""

    name: str
    initial: float
    meaning: str = ""


@dataclass(frozen=True, eq=False)
class Definition:
    """An activation: its formula and where it comes from; the rest is derived.

    ``kind`` is "pointwise" (of x), "gated" (of gate and up) or "tensor" (not pointwise: computed in plain torch,
    and ``expr`` is None).

    >>> from nonlin.functions import get
    >>> get("swish").formula
    'x*sigmoid(x)'
    >>> get("swiglu").derivative("up")
    gate*sigmoid(gate)
    """

    name: str
    kind: str
    expr: sympy.Expr | None
    source: str = ""
    used_by: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    note: str = ""
    user_defined: bool = False
    text: str = field(default="", repr=False)

    @property
    def variables(self) -> tuple[str, ...]:
        """The inputs' names: ("x",), or ("gate", "up")."""
        return ("gate", "up") if self.kind == "gated" else ("x",)

    @property
    def gated(self) -> bool:
        """Whether a feed-forward block of it has a gate."""
        return self.kind == "gated"

    @functools.cached_property
    def formula(self) -> str:
        """The formula in text; for pointwise and gated ones it reads back through the grammar."""
        return self.text if self.expr is None else grammar.write(self.expr)

    @functools.cached_property
    def latex(self) -> str:
        """The formula in LaTeX."""
        if self.expr is None:
            return r"\text{" + self.text + "}"
        functions = {p.NAMES[cls]: cls for cls in p.NAMES}
        plain = self.expr.replace(lambda e: e.func in p.NAMES, lambda e: sympy.Function(p.NAMES[e.func])(*e.args))
        printer = _Latex({"order": "none", "mul_symbol": r" \, "})
        out = printer.doprint(plain)
        for name in sorted(functions, key=len, reverse=True):
            shown = sympy.latex(sympy.Function(name))
            for after in "{^":  # a power stands between a function's name and its argument
                out = out.replace(shown + after, _LATEX[name] + after) if shown != _LATEX[name] else out
        return out

    @functools.cached_property
    def key(self) -> str:
        """A hash of what is computed: equal for equal formulas, whatever their names, in every process."""
        parameters = [(q.name, q.initial) for q in self.parameters]
        what = f"{self.kind}|{self.formula}|{parameters}"
        return hashlib.sha256(what.encode()).hexdigest()[:16]

    def derivative(self, variable: str | None = None, order: int = 1) -> sympy.Expr:
        """Return the derivative by a variable or a learnable parameter; by x when none is named.

        Raises UserError where the activation is not pointwise or has no such variable.
        """
        variable = variable or self.variables[0]
        names = (*self.variables, *(q.name for q in self.parameters))
        if self.expr is None or variable not in names:
            raise UserError(rule(f"{self.name}.derivative", "variable", f"be one of {', '.join(names)}", variable,
                                 "Name one of them." if self.expr is not None else "It has no pointwise formula."))
        return self.partial(*[variable] * order)

    @functools.cache  # noqa: B019 - definitions live as long as the process
    def partial(self, *variables: str) -> sympy.Expr:
        """Return the formula differentiated by each of these variables or parameters in turn."""
        if not variables:
            return self.expr
        return ties.derivative(self.partial(*variables[:-1]), sympy.Symbol(variables[-1], real=True))

    @functools.cached_property
    def properties(self) -> Any:
        """What follows from the formula (:class:`nonlin.functions.properties.Properties`); None if not pointwise."""
        return compute(self)

    def __repr__(self) -> str:
        return f"<{self.kind} activation {self.name}: {self.formula}>"


def pointwise(name: str, expr: Any, **about: Any) -> Definition:
    """Return the definition of an activation of x."""
    return Definition(name, "pointwise", sympy.sympify(expr), **about)


def gated(name: str, act: Definition, **about: Any) -> Definition:
    """Return act(gate) * up."""
    assert act.expr is not None
    return Definition(name, "gated", act.expr.xreplace({X: GATE}) * UP, parameters=act.parameters, **about)


def gated_formula(name: str, expr: Any, **about: Any) -> Definition:
    """Return the definition of a gated activation that is more than act(gate) * up."""
    return Definition(name, "gated", expr, **about)
