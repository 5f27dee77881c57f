"""Numbers as text, alike on every page and in the terminal: a true minus sign, and a space before the per cent sign."""

import math
import re
from collections.abc import Iterable

_MINUS = re.compile(r"(?<![\w)\]^.−-])-(?=\d|\.\d|∞)|(?<=\w )-(?= \w)")
_EXPONENT = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)e([-+]?)0*(\d+)(?!\w)")
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_FEW, _WRITTEN_OUT = re.compile(r"[#,]*\.[1-4]g"), 1e7
_NOTHING = 1e-8  # of a difference in bits per byte: what rounding, and the floors of variances, leave
_PERCENT = re.compile(r"(?<=\d)%(?!\w)")


def typeset(text: str) -> str:
    """Return a sentence with its numbers' signs and units set: −1 for -1, 95 % for 95%, 10⁻⁵ for 1e-05.

    Not for formulas or commands, which are to be copied.

    >>> typeset("between -1.5 and +2 (95% of them); SHA-256, 1e-05, -2.5e+06, x-1")
    'between −1.5 and +2 (95 % of them); SHA-256, 10⁻⁵, −2.5 × 10⁶, x-1'
    """
    text = _EXPONENT.sub(_power, text)
    return _PERCENT.sub(" %", _MINUS.sub("−", text))


def _power(found: re.Match[str]) -> str:
    front, sign, power = found.groups()
    raised = "10" + (sign.replace("+", "") + power).translate(_RAISED)
    return raised if front == "1" else f"{front} × {raised}"


def number(value: float | None, form: str = "") -> str:
    """Return a number as text, a dash where there is none; one of up to four digits is in full below ten million.

    A difference that is exactly zero has no sign and no digits.

    >>> number(0.5, ".2f"), number(None), number(3065.4, ".3g"), number(-0.25, "+.1%"), number(2e-5, ".1e")
    ('0.50', '–', '3,070', '−25.0 %', '2.0 × 10⁻⁵')
    >>> number(0.0, "+.4f"), number(0.00001, "+.4f"), number(0.0, ".4f")
    ('0', '+0.0000', '0.0000')
    >>> number(0.7, "#.3g"), number(123.4, "#.3g"), number(3065.4, "#.3g")  # three digits each, zeros too
    ('0.700', '123', '3,070')
    >>> number(134.5, ".2g"), number(134515.0, ",.4g"), number(2.5e7, ".2g")  # no power of ten before it says more
    ('130', '134,500', '2.5 × 10⁷')
    """
    if value is None:
        return "–"
    if form.startswith("+") and form[-1:] in ("f", "%") and nothing(value):
        return "0 %" if form[-1] == "%" else "0"
    text = format(value, form)
    if _FEW.fullmatch(form) and "e+" in text and abs(value) < _WRITTEN_OUT:
        return typeset(f"{float(text):,.0f}")
    return typeset(text.removesuffix("."))


def nothing(*values: float | None) -> bool:
    """Return whether these differences are zero, but for rounding in double precision; None is not.

    >>> nothing(0.0, -2e-17), nothing(0.0, 1e-5), nothing(None)
    (True, False, False)
    """
    return all(value is not None and abs(value) < _NOTHING for value in values)


def interval(low: float | None, high: float | None, form: str, between: str = " … ") -> str:
    """Return an interval as text, a dash where there is none; that of equal runs, which has no width, as words.

    >>> interval(-0.01, 0.02, "+.3f"), interval(0.0, -1e-17, "+.3f"), interval(None, None, "+.3f")
    ('−0.010 … +0.020', 'exactly 0', '–')
    """
    if low is None or high is None:
        return "–"
    return "exactly 0" if nothing(low, high) else f"{number(low, form)}{between}{number(high, form)}"


def short(value: float) -> str:
    """Return a size in two digits, in three from 10 on.

    >>> short(0.2716), short(134.515), short(1540.0)
    ('0.27', '135', '1,540')
    """
    return number(value, ".3g" if value >= 10 else ".2g")


def counted(count: int, one: str, more: str = "") -> str:
    """Return a number of things in words, the thing in the singular where it is one.

    >>> counted(1, "run"), counted(1200, "run"), counted(2, "process", "processes")
    ('1 run', '1,200 runs', '2 processes')
    """
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def percent(share: float) -> str:
    """Return a share in per cent, with all of its digits.

    >>> percent(0.95), percent(0.995), percent(0.57)
    ('95 %', '99.5 %', '57 %')
    """
    return f"{100 * share:g} %"


def parts(share: float) -> str:
    """Return one part in how many a share is, to the two digits that such a figure means.

    >>> parts(1 / 479_221), parts(0.0)
    ('one part in 480,000', 'nothing')
    """
    return f"one part in {float(f'{1 / share:.2g}'):,.0f}" if share else "nothing"


def places(uncertainties: Iterable[float | None], default: int = 4) -> int:
    """Return how many decimals numbers mean that are known this well: two digits of the least uncertainty.

    >>> places([0.014, 0.032]), places([0.0004]), places([None, 0.0])
    (3, 5, 4)
    """
    known = [u for u in uncertainties if u and not nothing(u)]
    return min(6, max(0, 1 - math.floor(math.log10(min(known))))) if known else default


def alike(values: Iterable[float | None], share: float = 0.01) -> bool:
    """Return whether these are equal within a share of the greatest, so that a sentence says more than bars.

    >>> alike([100.0, 99.5]), alike([100.0, 90.0])
    (True, False)
    """
    known = [abs(v) for v in values if v is not None]
    return not known or max(known) - min(known) <= share * max(known)
