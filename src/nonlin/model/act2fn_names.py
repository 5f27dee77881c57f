"""The names of our activations in the table ACT2FN of ``transformers``, and in its checkpoints."""

import functools

from nonlin.functions import Definition, get
from nonlin.functions.catalog import CATALOG
from nonlin.functions.registry import gated_by

HELD = {"identity": "linear", "gelu_tanh": "gelu_pytorch_tanh", "relu_squared": "relu2"} | {name: name for name in (
    "relu", "gelu", "silu", "mish", "quick_gelu", "tanh", "sigmoid", "relu6", "laplace", "gelu_10", "hardswish",
    "leaky_relu", "sqrtsoftplus")}
"""Its name for each of our activations without learnable parameters (one of several for some)."""
LEARNED = {"xielu": {"alpha_p": "alpha_p", "alpha_n": "alpha_n"}, "prelu": {"slope": "weight"}}
"""Activations that learn, under the same names there; and its name for each learned value."""
CONSTANTS = {"xielu": {"beta": 0.5, "eps": -1e-6}}
"""Constants that its checkpoints hold beside learned values."""


@functools.cache
def _gated() -> dict[str, str]:
    """Return its name of the gate's activation, for each gated activation of the catalog that is act(gate) * up."""
    made = {gated_by(get(ours)): theirs for ours, theirs in HELD.items()}
    return {definition.name: theirs for definition, theirs in made.items() if definition in CATALOG}


def hidden_act(definition: Definition) -> str | None:
    """Return the name under which ACT2FN holds the (gate's) activation, or None where it has none.

    >>> hidden_act(get("swiglu")), hidden_act(get("relu_squared")), hidden_act(get("swiglu_oai"))
    ('silu', 'relu2', None)
    """
    if definition.parameters and definition.name not in LEARNED:
        return None
    names = _gated() if definition.kind == "gated" else HELD | {name: name for name in LEARNED}
    for ours, theirs in names.items():
        # A user's own name for a known formula is that formula.
        if definition.name == ours or (definition.user_defined and definition.expr == get(ours).expr):
            return theirs
    return None
