"""The primitives of activation formulas, as SymPy functions with derivatives among themselves.

Each backend gives every primitive one stable implementation; a formula composed of them is stable where a naive
one overflows. ``step(0)`` is 0, so that the derivative of relu at 0 is 0, as everywhere else in the field.

The derivatives here are those of a tie that stands alone; ``ties.derivative`` is the derivative of a whole formula.
"""

from typing import Any

import sympy
from sympy import Expr, Integer


class Primitive(sympy.Function):
    """A function of one number, or of two, of which SymPy knows the derivative and nothing else."""

    def _eval_evalf(self, prec: int) -> Any:
        # SymPy would take mpmath's function of the same name: its phi is the golden ratio.
        return None


class sigmoid(Primitive):
    """1 / (1 + exp(-x))."""

    def fdiff(self, argindex: int = 1) -> Expr:
        x = self.args[0]
        return sigmoid(x) * sigmoid(-x)


class Tanh(Primitive):
    """The hyperbolic tangent."""

    def fdiff(self, argindex: int = 1) -> Expr:
        # 1 - tanh^2 loses every digit in the tails; this form does not.
        x = self.args[0]
        return 4 * sigmoid(2 * x) * sigmoid(-2 * x)


class Phi(Primitive):
    """The normal distribution function."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return phi(self.args[0])


class phi(Primitive):
    """The normal density."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return -self.args[0] * phi(self.args[0])


class erf(Primitive):
    """The error function."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return 2 / sympy.sqrt(sympy.pi) * exp(-(self.args[0] ** 2))


class exp(Primitive):
    """e to the power x."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return exp(self.args[0])


class expm1(Primitive):
    """exp(x) - 1, without cancellation near 0."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return exp(self.args[0])


class log1p(Primitive):
    """log(1 + x), without cancellation near 0."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return 1 / (1 + self.args[0])


class softplus(Primitive):
    """log(1 + exp(x)), without overflow."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return sigmoid(self.args[0])


class atan(Primitive):
    """The inverse tangent."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return 1 / (1 + self.args[0] ** 2)


class cauchy(Primitive):
    """1/2 + atan(x)/pi, the Cauchy distribution function."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return 1 / (sympy.pi * (1 + self.args[0] ** 2))


class step(Primitive):
    """1 where x > 0, else 0."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return Integer(0)


class nonnegative(Primitive):
    """1 where x >= 0, else 0: :class:`step` from the other side."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return Integer(0)


class sign(Primitive):
    """-1, 0 or 1."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return Integer(0)


class absolute(Primitive):
    """|x|."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return sign(self.args[0])


class maximum(Primitive):
    """The larger of two; at a tie the derivative is the second's."""

    def fdiff(self, argindex: int = 1) -> Expr:
        a, b = self.args
        return step(a - b) if argindex == 1 else 1 - step(a - b)


class minimum(Primitive):
    """The smaller of two; at a tie the derivative is the second's."""

    def fdiff(self, argindex: int = 1) -> Expr:
        a, b = self.args
        return step(b - a) if argindex == 1 else 1 - step(b - a)


def relu(x: Expr) -> Expr:
    """Return max(x, 0)."""
    return maximum(x, Integer(0))


def clip(x: Expr, low: Expr, high: Expr) -> Expr:
    """Return x held between low and high."""
    return minimum(maximum(x, low), high)


ONE_ARGUMENT = {
    "sigmoid": sigmoid, "tanh": Tanh, "Phi": Phi, "phi": phi, "erf": erf, "exp": exp, "expm1": expm1,
    "log1p": log1p, "softplus": softplus, "abs": absolute, "sign": sign, "step": step,
    "nonnegative": nonnegative, "atan": atan, "cauchy": cauchy,
}
"""The primitives of one argument by the names that formulas use."""

NAMES = {cls: name for name, cls in ONE_ARGUMENT.items()} | {maximum: "max", minimum: "min"}
"""The name of each primitive, as formulas and backends write it."""
