"""Finding activations by name, and adding one's own."""

# Names and texts come from files too, whose values have any type.
# pyright: reportUnnecessaryIsInstance=false

import copyreg
import functools
import re

from nonlin.errors import UserError, rule
from nonlin.functions.catalog import CATALOG
from nonlin.functions.catalog_names import split, unknown_activation
from nonlin.functions.constants import called, finite_number, with_constants
from nonlin.functions.definition import Definition, Parameter, gated
from nonlin.functions.grammar import parse, reserved, visible

_CANONICAL = {d.name: d for d in CATALOG}
_BY_NAME = _CANONICAL | {alias: d for d in CATALOG for alias in d.aliases}
_USER: dict[str, Definition] = {}
_SERIALIZED: dict[str, Definition] = {}
_BY_SERIALIZE = "Make the text with serialize, or load the model from a file that nonlin wrote."
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}\Z")
# As serialize writes it: a name, perhaps of constants in parentheses; learnable parameters with their start; a formula.
_WRITTEN = re.compile(r"([A-Za-z]\w{0,39}(?:\([^()\[\]]{0,200}\))?\w{0,40})(?:\[([^\[\]=]{1,1000})\])?=(.*)",
                      re.ASCII | re.DOTALL)
_MOST = 3.4028234663852886e38  # of float32
_LEARNABLE = re.compile(r"[A-Za-z]\w{0,39}\Z", re.ASCII)


def names() -> list[str]:
    """Return the canonical names, the user's own last.

    >>> names()[:3]
    ['identity', 'sigmoid', 'tanh']
    """
    return [*_CANONICAL, *_USER]


def get(name: str | Definition, **constants: float) -> Definition:
    """Return the activation of that name or alias; raises UnknownName with near matches.

    ``constants`` replace those of the catalog (:mod:`nonlin.functions.constants`); a name may bring its own.

    >>> get("swish").name
    'silu'
    >>> get("leaky_relu", slope=0.5) is get("leaky_relu(slope=0.5)")
    True
    """
    if constants:
        return with_constants(get(name), constants)
    if isinstance(name, Definition):
        return name
    if not isinstance(name, str):
        raise UserError(rule("get", "name", "be a name or a definition", name, 'Write it as "gelu".'))
    found = _BY_NAME.get(name) or _USER.get(name) or called(name)
    if found is None:
        raise unknown_activation(name, [*_BY_NAME, *_USER])
    return found


def define(name: str, formula: str) -> Definition:
    """Add an activation of your own from a formula of x, or of gate and up; usable wherever a name is.

    The formula is read by nonlin's own grammar and never evaluated. Defining the same name with the same formula
    again changes nothing. Raises UserError where the name is taken or the formula cannot be read.

    >>> define("steep", "x*sigmoid(3*x)").derivative()
    3*x*sigmoid(-3*x)*sigmoid(3*x) + sigmoid(3*x)
    """
    if not isinstance(name, str) or not _NAME.match(name):
        raise UserError(rule("define", "name", "be letters, digits and _ (at most 40)", name, "Choose another name."))
    if name in _BY_NAME:
        raise UserError(rule("define", "name", "not be a built-in activation's", name, "Choose another name."))
    expr = parse(formula)
    kind = "pointwise" if "x" in {str(s) for s in expr.free_symbols} else "gated"
    made = Definition(name, kind, expr, source="user", user_defined=True)
    known = _USER.get(name)
    if known is not None and known.key != made.key:
        raise UserError(f"define: {name!r} must keep its formula {known.formula!r}; got {formula!r}. "
                        "Choose another name.")
    return _USER.setdefault(name, made)


def has_constants(definition: Definition) -> bool:
    """Whether this is a catalog's activation with other constants, which its name finds in any process."""
    return "(" in definition.name and called(definition.name) is definition


@functools.cache
def gated_by(act: Definition) -> Definition:
    """Return act(gate) * up: the catalog's where it has a name, else one named after ``act``.

    >>> gated_by(get("silu")).name, gated_by(get("mish")).name
    ('swiglu', 'mish_glu')
    """
    made = gated(f"{act.name}_glu", act)
    return next((d for d in CATALOG if d.gated and d.expr == made.expr), made)


def gate_of(definition: Definition) -> Definition | None:
    """Return the pointwise activation whose :func:`gated_by` this is, or None where it is more than act(gate) * up.

    >>> gate_of(get("geglu")).name, gate_of(get("swiglu_oai"))
    ('gelu', None)
    """
    if not definition.gated:
        return None
    pointwise = (get(n) for n in names())
    return next((d for d in pointwise if d.kind == "pointwise" and gated_by(d).expr == definition.expr), None)


def serialize(definition: Definition) -> str:
    """Return a text from which :func:`deserialize` finds the definition, in another process too.

    >>> serialize(get("swish")), serialize(define("doubled", "2*x"))
    ('silu', 'doubled=2*x')
    """
    if _CANONICAL.get(definition.name) is definition or has_constants(definition):
        return definition.name
    start = ",".join(f"{q.name}:{q.initial!r}" for q in definition.parameters)
    text = f"{definition.name}{f'[{start}]' if start else ''}={definition.formula}"
    _SERIALIZED.setdefault(text, definition)
    return text


def deserialize(text: str) -> Definition:
    """Return the definition that a text of :func:`serialize` names; UserError for any other text.

    >>> deserialize("prelu").formula, deserialize("mine[a:0.5]=a*x").parameters[0].initial
    ('slope*min(x, 0) + max(x, 0)', 0.5)
    """
    if not isinstance(text, str):
        raise UserError(rule("deserialize", "text", "be a text", text, _BY_SERIALIZE))
    found = _SERIALIZED.get(text) or called(text)
    if found is None:
        if "=" not in text:
            return get(text)
        written = _WRITTEN.fullmatch(text)
        if written is None:
            raise UserError(rule("deserialize", "text", "be name=formula or name[parameter:start]=formula",
                                 visible(text), _BY_SERIALIZE))
        name, start, formula = written.groups()
        parameters = _parameters(start or "")
        expr = parse(formula, tuple(q.name for q in parameters))
        kind = "pointwise" if "x" in {str(s) for s in expr.free_symbols} else "gated"
        found = _SERIALIZED[text] = Definition(name, kind, expr, source="user", parameters=parameters,
                                               user_defined=True)
    return found


def _parameters(text: str) -> tuple[Parameter, ...]:
    """Return the learnable parameters of ``a:0.5,b:1``."""
    made: dict[str, Parameter] = {}
    for part in text.split(",") if text else ():
        name, _, value = part.partition(":")
        number = finite_number(value)
        if not _LEARNABLE.match(name) or name in reserved() or name in made or not abs(number) <= _MOST:
            raise UserError(rule("deserialize", "parameters", "be names of their own, each with a start that 32 bits "
                                 "hold", visible(text), _BY_SERIALIZE))
        made[name] = Parameter(name, number)
    return tuple(made.values())


# Copied and pickled by its text: a definition is one object in a process, which kernels are kept by.
copyreg.pickle(Definition, lambda definition: (deserialize, (serialize(definition),)))  # type: ignore[arg-type]


def parse_arms(text: str) -> list[Definition]:
    """Return the activations of a list like ``"gelu,mine=x*sigmoid(2*x)"``; commas in parentheses do not split.

    >>> [d.name for d in parse_arms("gelu, other=max(x, 0), swiglu_oai(alpha=1, limit=5)")]
    ['gelu', 'other', 'swiglu_oai(alpha=1,limit=5)']
    """
    found: list[Definition] = []
    for part in split(text):
        name, equals, formula = part.partition("=")
        arm = called(part) or (define(name.strip(), formula) if equals else get(part))
        if arm.name in {a.name for a in found}:
            raise UserError(rule("activations", "names", "differ", part, "Name each activation once."))
        found.append(arm)
    if not found:
        raise UserError(rule("activations", "list", "name at least one", text, "Try gelu,swiglu."))
    return found
