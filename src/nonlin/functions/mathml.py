"""Formulas as MathML, which browsers draw without a font or a script of their own."""

from collections.abc import Callable

import sympy

from nonlin.functions import grammar
from nonlin.functions import primitives as p
from nonlin.functions.definition import Definition

_SYMBOLS = {"beta": "β", "alpha": "α", "alpha_p": "α<p>", "alpha_n": "α<n>"}  # <index>
_FUNCTIONS = {"sigmoid": "σ", "Phi": "Φ", "phi": "φ"}
_COMPARED = {"step": "&gt;", "nonnegative": "&#x2265;"}
_TIMES = '<mo>&#x2062;</mo><mspace width="0.25em"/>'
_LONGEST = 12  # characters of a number that is shown whole
_SUM, _PRODUCT, _POWER = 1, 2, 3  # how tightly a part holds together


def formula(definition: Definition) -> str:
    """Return a definition's formula as a MathML element; text where it is not pointwise.

    >>> from nonlin.functions import get
    >>> formula(get("relu_squared"))
    '<math display="block"><msup><mrow><mi>max</mi><mo>&#x2061;</mo>...<mn>2</mn></msup></math>'
    """
    if definition.expr is None:
        return f'<math display="block"><mtext>{_escaped(definition.text)}</mtext></math>'
    return f'<math display="block">{write(definition.expr)}</math>'


def write(expr: sympy.Expr) -> str:
    """Return an expression's presentation MathML, without the element around it."""
    return _write(expr, 0)


def _write(e: sympy.Expr, outer: int) -> str:
    for test, inner, make in _KINDS:
        if test(e):
            made = make(e)
            return _fenced(made) if inner < outer else made
    return _call(e)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fenced(inner: str) -> str:
    grows = "" if "<mfrac>" in inner else ' stretchy="false"'
    return f"<mrow><mo{grows}>(</mo>{inner}<mo{grows}>)</mo></mrow>"


def _symbol(e: sympy.Expr) -> str:
    name = _SYMBOLS.get(str(e), str(e))
    base, _, index = name.partition("<")
    return f"<msub><mi>{base}</mi><mi>{index[:-1]}</mi></msub>" if index else f"<mi>{base}</mi>"


def _number(e: sympy.Expr) -> str:
    text = grammar.write(e)
    if text.startswith("(") and "/" in text:
        return f"<mfrac><mn>{e.p}</mn><mn>{e.q}</mn></mfrac>"
    shown = text.strip("()") if len(text) < _LONGEST else f"{float(e):.7g}"  # the text beside it has every digit
    return f"<mn>{shown.replace('-', '−')}</mn>"


def _decimal(e: sympy.Expr) -> bool:
    return e.is_Rational and not e.is_Integer and "/" not in grammar.write(e)


def _constant(e: sympy.Expr) -> str:
    return "<mi>π</mi>" if e == sympy.pi else f"<mi>{_escaped(str(e))}</mi>"


def _sum(e: sympy.Expr) -> str:
    parts = []
    for i, term in enumerate(sorted(e.args, key=_late_in_sum)):
        negative = term.could_extract_minus_sign()
        sign = "<mo>−</mo>" if negative else "<mo>+</mo>" if i else ""
        parts.append(sign + _write(-term if negative else term, _PRODUCT if negative else _SUM))
    return f"<mrow>{''.join(parts)}</mrow>"


def _late_in_sum(term: sympy.Expr) -> tuple[bool, bool]:
    return bool(term.is_number), term.could_extract_minus_sign()


def _late_in_product(factor: sympy.Expr) -> int:
    """Numbers, then the inputs and parameters, then functions; what gates (up) comes last."""
    if factor.is_number:
        return 0
    if {str(s) for s in factor.free_symbols} == {"up"}:
        return 3
    return 1 if factor.is_Symbol else 2


def _product(e: sympy.Expr) -> str:
    if e.could_extract_minus_sign():
        return f"<mrow><mo>−</mo>{_write(-e, _PRODUCT)}</mrow>"
    number, rest = e.as_coeff_Mul()
    if _decimal(number):  # a decimal stays one, not a fraction over a power of ten
        return f"<mrow>{_number(number)}{_TIMES}{_write(rest, _PRODUCT)}</mrow>"
    above, below = sympy.fraction(e)
    if below != 1:
        return f"<mfrac>{_row(above)}{_row(below)}</mfrac>"
    factors = sorted(e.args, key=_late_in_product)
    return f"<mrow>{_TIMES.join(_write(f, _PRODUCT) for f in factors)}</mrow>"


def _row(e: sympy.Expr) -> str:
    return f"<mrow>{_write(e, 0)}</mrow>"


def _power(e: sympy.Expr) -> str:
    if e.exp.is_negative:
        return f"<mfrac><mn>1</mn>{_row(e.base ** -e.exp)}</mfrac>"
    if e.exp == sympy.Rational(1, 2):
        return f"<msqrt>{_write(e.base, 0)}</msqrt>"
    return f"<msup>{_write(e.base, _POWER)}{_write(e.exp, _POWER)}</msup>"


def _call(e: sympy.Expr) -> str:
    name, parts = p.NAMES[e.func], e.args
    if name == "min" and e.args[0].func is p.maximum:
        name, parts = "clip", (*e.args[0].args, e.args[1])
    args = [_write(a, 0) for a in parts]
    if name == "abs":
        return f"<mrow><mo>|</mo>{args[0]}<mo>|</mo></mrow>"
    if name == "exp":
        return f"<msup><mi>e</mi>{args[0]}</msup>"
    if name in _COMPARED:
        return f"<msub><mn>1</mn><mrow>{args[0]}<mo>{_COMPARED[name]}</mo><mn>0</mn></mrow></msub>"
    inside = "<mo>,</mo>".join(args)
    return f"<mrow><mi>{_FUNCTIONS.get(name, name)}</mi><mo>&#x2061;</mo>{_fenced(inside)}</mrow>"


_KINDS: tuple[tuple[Callable[..., bool], int, Callable[..., str]], ...] = (
    (lambda e: e.is_Symbol, _POWER, _symbol),
    (lambda e: e.is_Rational and e.is_negative, _SUM, _number),
    (lambda e: e.is_Rational, _POWER, _number),
    (lambda e: e.is_NumberSymbol, _POWER, _constant),
    (lambda e: e.is_Add, _SUM, _sum),
    (lambda e: e.is_Mul, _PRODUCT, _product),
    (lambda e: e.is_Pow, _PRODUCT, _power),
)
