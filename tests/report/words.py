"""The words of a page, for tests of how its numbers are set."""

import re

_NOT_PROSE = re.compile(r"<(style|script|code|pre)\b.*?</\1>", re.DOTALL)


def not_set(page: str) -> list[str]:
    """Numbers of a page that are not set as others are: a hyphen for a minus, 95%, 1e-05. Commands may have them."""
    text = re.sub(r"<[^>]+>", " ", _NOT_PROSE.sub(" ", page))
    return re.findall(r"[^\n]{0,30}(?:(?<![\w.-])-\d|\d%|\de[-+]?\d\d?\b|\w - \w)[^\n]{0,20}", text)



def value(text: str) -> float:
    """A number as the pages set it: −1.4 × 10⁻⁶."""
    front, _, power = text.rpartition("10") if re.search("10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]", text) else (text, "", "0")
    plain = front.replace("−", "-").replace(" × ", "").replace(",", "") or "1"
    return float(f"{'-1' if plain == '-' else plain}e{power.translate(str.maketrans('⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '-0123456789'))}")
