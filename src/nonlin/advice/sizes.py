"""Numbers of parameters and tokens, as people write them."""

import math
import re

from nonlin.errors import UserError, rule
from nonlin.numbers import number

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_SIZE = re.compile(r"(\d+(?:[._,]\d+)*(?:e\+?\d+)?)\s*([a-z]?)\Z")
_THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?(e\+?\d+)?")  # 2,5 is no 25


def parse_size(text: str, name: str = "size", call: str = "advise") -> int:
    """Return the number that a text like 125M, 2.5B or 1e9 stands for; raises UserError for anything else.

    >>> parse_size("125M"), parse_size("2.5B"), parse_size("1e9"), parse_size("1_000")
    (125000000, 2500000000, 1000000000, 1000)
    """
    found = _SIZE.match(text.strip().lower())
    if found and found[2] in _UNITS and ("," not in found[1] or _THOUSANDS.fullmatch(found[1])):
        try:
            value = float(found[1].replace("_", "").replace(",", "")) * _UNITS[found[2]]
        except ValueError:
            value = math.nan
        if 1 <= value < 1e18:
            return round(value)
    raise UserError(rule(call, f"--{name}", "be a number like 125M, 2.5B or 1e9", text,
                         "Write a positive number, with K, M, B or T behind it."))


def size_text(value: float) -> str:
    """Return a number in the form that people use.

    >>> size_text(125_000_000), size_text(2.5e9), size_text(999)
    ('125M', '2.5B', '999')
    """
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= scale * 0.9995:
            return f"{number(value / scale, '.3g')}{unit}"
    return f"{value:.3g}"
