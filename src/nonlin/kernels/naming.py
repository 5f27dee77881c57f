"""A definition as text, which is what a registered operation can take: its name, or its name and formula."""

from nonlin.errors import UserError
from nonlin.functions import Definition, get
from nonlin.functions.grammar import parse

_KNOWN: dict[str, Definition] = {}


def text_of(definition: Definition) -> str:
    """Return the text that :func:`definition_of` reads, in any process where the formula has no parameters.

    >>> from nonlin.functions import get
    >>> text_of(get("swish"))
    'silu'
    """
    if not definition.user_defined and _is_known(definition):
        return definition.name
    learned = ",".join(q.name for q in definition.parameters)
    text = f"{definition.name}({learned})={definition.formula}"
    _KNOWN[text] = definition
    return text


def _is_known(definition: Definition) -> bool:
    try:
        return get(definition.name) is definition
    except UserError:
        return False


def definition_of(text: str) -> Definition:
    """Return the definition of a text; a formula that this process never saw is read by the grammar.

    >>> definition_of("mine()=x*sigmoid(3*x)").variables
    ('x',)
    """
    name, equals, formula = text.partition("()=")
    if text not in _KNOWN and equals:
        expr = parse(formula)
        kind = "pointwise" if "x" in {str(s) for s in expr.free_symbols} else "gated"
        _KNOWN[text] = Definition(name, kind, expr, source="user", user_defined=True)
    return _KNOWN.get(text) or get(text)
