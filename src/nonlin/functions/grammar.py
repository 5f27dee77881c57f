"""Parse and write formulas: a small grammar over our primitives. Text is never evaluated as Python.

    sum     := product (("+" | "-") product)*
    product := unary (("*" | "/") unary)*
    unary   := ("-" | "+") unary | power
    power   := atom (("**" | "^") unary)?
    atom    := number | variable | constant | name "(" sum ("," sum)* ")" | "(" sum ")"
"""

import operator
import re
from collections.abc import Callable
from typing import Any

import sympy

from nonlin.errors import UserError, printable, rule, unknown_name
from nonlin.functions import limits
from nonlin.functions import primitives as p
from nonlin.functions.quotients import simplified

# ASCII: digits of other scripts are no numbers.
_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|(\*\*|[-+*/^(),]))",
                    re.ASCII)
_SPACE = " \t\n\r\f\v"
_LONGEST, _DEEPEST, _SHOWN, _REWRITES = 2000, 60, 80, 4
_ZEROS = 12  # of a power of ten that is written out

_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    **{name: (1, cls) for name, cls in p.ONE_ARGUMENT.items()},
    "relu": (1, p.relu), "silu": (1, lambda x: x * p.sigmoid(x)), "gelu": (1, lambda x: x * p.Phi(x)),
    "square": (1, lambda x: _power(x, sympy.Integer(2))),
    "sqrt": (1, lambda x: _power(x, sympy.Rational(1, 2))),
    "max": (2, p.maximum), "min": (2, p.minimum), "clip": (3, p.clip),
}
_CONSTANTS = {"pi": sympy.pi}


class _Refused(Exception):
    """A step that would cost too much, or has no real value; its text says why."""


def _power(base: Any, exponent: Any) -> Any:
    if refused := limits.power_problem(base, exponent):
        raise _Refused(refused)
    return base**exponent


VARIABLES = ("x", "gate", "up")


def reserved() -> set[str]:
    """Return the names that no learnable parameter may have.

    >>> sorted(reserved())[:3]
    ['Phi', 'abs', 'atan']
    """
    return {*_FUNCTIONS, *_CONSTANTS, *VARIABLES}


def parse(text: str, parameters: tuple[str, ...] = ()) -> sympy.Expr:
    """Return the expression of ``text``, over x, or over gate and up, and these learnable parameters.

    Raises UserError, with the position, if the text is not a formula of the grammar or has a constant that is no real
    number. It does so too beyond a limit of :mod:`nonlin.functions.limits`: the cost is counted before anything is
    computed.

    >>> parse("x*sigmoid(2*x)")
    x*sigmoid(2*x)
    >>> parse("__import__('os')")
    Traceback (most recent call last):
    nonlin.errors.UserError: formula: cannot read "'" at position 12 of "__import__('os')". Use numbers, ...
    """
    if not isinstance(text, str):
        raise UserError(rule("formula", "text", "be a text", text, 'Write it as "x*sigmoid(2*x)".'))
    if len(text) > _LONGEST:
        raise UserError(f"formula: must have at most {_LONGEST} characters; got {len(text)}. Write it shorter.")
    parser = _Parser(text, parameters)
    expr = parser.formula()
    # Studies and model files keep the formula as it is written out, and find it again by that.
    for _ in range(_REWRITES):
        try:
            again = _Parser(write(expr), parameters).formula()
        except UserError:
            break
        if again == expr:
            return expr
        expr = again
    raise parser.error("a formula that cannot be read again once it is written out", 0)


class _Parser:
    def __init__(self, text: str, parameters: tuple[str, ...] = ()):
        self.text, self.index, self.depth, self.parameters = text, 0, 0, parameters
        self.shown = visible(text)
        self.tokens = self._split(text)

    def _split(self, text: str) -> list[tuple[str, str, int]]:
        tokens, position = [], 0
        end = len(text.rstrip(_SPACE))
        while position < end:
            match = _TOKEN.match(text, position)
            if not match:
                at = position + len(text[position:]) - len(text[position:].lstrip(_SPACE))
                raise self.error(f'cannot read "{visible(text[at])}"', at)
            kind = ("number", "name", "sign")[match.lastindex - 1]  # type: ignore[operator]
            tokens.append((kind, match.group(match.lastindex), match.start(match.lastindex)))  # type: ignore[arg-type]
            position = match.end()
        return [*tokens, ("end", "the end", end)]

    def error(self, problem: str, position: int) -> UserError:
        return UserError(f'formula: {problem} at position {position + 1} of "{self.shown}". Use numbers, x (or gate '
                         f"and up), + - * / **, and {', '.join(sorted(_FUNCTIONS))}.")

    def _take(self, *signs: str) -> str | None:
        kind, value, _ = self.tokens[self.index]
        if kind == "sign" and value in signs:
            self.index += 1
            return value
        return None

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            _, value, at = self.tokens[self.index]
            raise self.error(f'expected "{sign}", found {value}', at)

    def formula(self) -> sympy.Expr:
        expr = self.sum()
        kind, value, at = self.tokens[self.index]
        if kind != "end":
            raise self.error(f'unexpected "{value}"', at)
        simple = simplified(expr)
        if simple.free_symbols == expr.free_symbols and not limits.problem(simple):
            expr = simple
        names = {s.name for s in expr.free_symbols} - set(self.parameters)
        if "x" in names and names != {"x"}:
            raise self.error("x stands beside gate or up", 0)
        if not names:
            raise self.error("no variable", 0)
        if refused := limits.whole_problem(expr, tuple(sorted(s.name for s in expr.free_symbols))):
            raise self.error(refused, 0)
        return expr

    def _checked(self, at: int, make: Callable[..., Any], *args: Any) -> Any:
        """Return what ``make`` puts together, within the limits."""
        try:
            made = make(*args)
        except _Refused as refused:
            raise self.error(str(refused), at) from None
        if made.has(sympy.Abs):  # SymPy's root of a square
            made = made.replace(sympy.Abs, p.absolute)
        if refused := limits.problem(made):
            raise self.error(refused, at)
        return made

    @property
    def _at(self) -> int:
        return self.tokens[self.index][2]

    def sum(self) -> Any:
        value, at = self.product(), self._at
        while sign := self._take("+", "-"):
            value = self._checked(at, operator.add if sign == "+" else operator.sub, value, self.product())
            at = self._at
        return value

    def product(self) -> Any:
        value, at = self.unary(), self._at
        while sign := self._take("*", "/"):
            value = self._checked(at, operator.mul if sign == "*" else operator.truediv, value, self.unary())
            at = self._at
        return value

    def unary(self) -> Any:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self.error("nested too deeply", self.tokens[self.index][2])
        sign = self._take("-", "+")
        value = self.unary() if sign else self.power()
        self.depth -= 1
        return -value if sign == "-" else value

    def power(self) -> Any:
        base, at = self.atom(), self.tokens[self.index][2]
        if not self._take("**", "^"):
            return base
        return self._checked(at, _power, base, self.unary())

    def atom(self) -> Any:
        kind, value, at = self.tokens[self.index]
        self.index += 1
        if kind == "number":
            return self._number(value, at)
        if kind == "name":
            return self._name(value, at)
        if value == "(":
            inner = self.sum()
            self._expect(")")
            return inner
        raise self.error(f"expected a number, a variable or a function, found {value}", at)

    def _number(self, text: str, at: int) -> Any:
        mantissa, _, exponent = text.lower().partition("e")
        if len(mantissa.replace(".", "")) > limits.DIGITS:
            raise self.error(f"a number of more than {limits.DIGITS} digits", at)
        if len(exponent) > 12 or abs(int(exponent or 0)) > limits.EXPONENT:
            raise self.error(f"a number of an exponent beyond {limits.EXPONENT}", at)
        return self._checked(at, sympy.Rational, text)

    def _name(self, name: str, at: int) -> Any:
        if name in VARIABLES or name in self.parameters:
            return sympy.Symbol(name, real=True)
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name not in _FUNCTIONS:
            raise unknown_name(f"function or variable at position {at + 1} of the formula {self.shown!r}:",
                               visible(name), [*_FUNCTIONS, *VARIABLES, *_CONSTANTS])
        count, make = _FUNCTIONS[name]
        self._expect("(")
        args = [self.sum()]
        while self._take(","):
            args.append(self.sum())
        self._expect(")")
        if len(args) != count:
            raise self.error(f"{name} takes {count} argument{'s' * (count > 1)}, got {len(args)},", at)
        return self._checked(at, make, *args)


def visible(text: str) -> str:
    r"""Return the text, cut short, with an escape in place of each character that is not printed or moves others.

    >>> visible("x" + chr(27) + "[2J")
    'x\\x1b[2J'
    """
    short = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return printable(short)


class _Writer(sympy.StrPrinter):
    """SymPy's printer, but a fraction of a power of ten is printed as a decimal."""

    def _print_Integer(self, expr: Any) -> str:
        zeros = len(str(expr)) - len(str(expr).rstrip("0"))
        return f"{expr.p // 10**zeros}e{zeros}" if zeros > _ZEROS else super()._print_Integer(expr)

    def _print_Rational(self, expr: Any) -> str:
        if expr.p in (1, -1) and 10**(zeros := len(str(expr.q)) - 1) == expr.q and zeros > _ZEROS:
            return f"{expr.p}e-{zeros}" if expr.p > 0 else f"({expr.p}e-{zeros})"
        for places in range(1, 41):
            if 10**places % expr.q == 0:
                digits = str(abs(expr.p) * (10**places // expr.q)).rjust(places + 1, "0")
                if len(digits) > limits.DIGITS:
                    break
                text = f"{digits[:-places]}.{digits[-places:]}"
                return text if expr.p >= 0 else f"(-{text})"
        return f"({expr.p}/{expr.q})"

    def _print_Mul(self, expr: Any) -> str:
        number, rest = expr.as_coeff_Mul()
        decimal = number.is_Rational and not number.is_Integer and abs(number.p) != 1
        # Print a leading fraction as one number, not split over the division.
        return f"{self._print(number)}*{self.parenthesize(rest, 50)}" if decimal else super()._print_Mul(expr)


def write(expr: sympy.Expr) -> str:
    """Return the expression as text of this grammar; ``parse(write(e)) == e``.

    >>> write(parse("max(x, 0)^2 - x/2"))
    'max(x, 0)**2 - x/2'
    """
    return _Writer({"order": "none"}).doprint(expr.replace(
        lambda e: e.func in p.NAMES, lambda e: sympy.Function(p.NAMES[e.func])(*e.args)))
