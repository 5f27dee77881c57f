"""Describe an activation as JSON values."""

from dataclasses import asdict
from typing import Any

from nonlin.files import finite
from nonlin.functions import grammar
from nonlin.functions.definition import Definition


def describe(definition: Definition) -> dict[str, Any]:
    """Return formula, derivatives, source, users and computed properties as JSON values, with None for infinite ends.

    >>> from nonlin.functions import get
    >>> describe(get("relu"))["derivatives"]
    {'x': 'step(x)'}
    """
    names = (*definition.variables, *(q.name for q in definition.parameters)) if definition.expr is not None else ()
    return {
        "name": definition.name, "kind": definition.kind, "formula": definition.formula, "latex": definition.latex,
        "derivatives": {name: grammar.write(definition.derivative(name)) for name in names},
        "source": definition.source, "used_by": list(definition.used_by), "aliases": list(definition.aliases),
        "parameters": [asdict(q) for q in definition.parameters], "note": definition.note,
        "properties": None if definition.expr is None else finite(asdict(definition.properties))}
