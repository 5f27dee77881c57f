"""The configuration that a block lies in: which one it is, and what activation it says the block has."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from nonlin.functions import Definition, get
from nonlin.functions.catalog import CATALOG, R
from nonlin.functions.definition import GATE, UP, gated, gated_formula
from nonlin.functions.primitives import clip, minimum, sigmoid
from nonlin.patching.blocks import Block

# The fields by which transformers names a feed-forward activation, those that mean nothing else first.
FIELDS = ("dense_act_fn", "mlp_hidden_act", "hidden_activation", "hidden_act", "activation_function", "activation",
          "act_fn", "afn", "ff_activation", "encoder_activation_function", "decoder_activation_function",
          "projector_hidden_act", "projection_hidden_act")


def is_configuration(value: Any) -> bool:
    """Return whether a value is a configuration as ``transformers`` has them."""
    return hasattr(value, "to_dict") and hasattr(type(value), "from_dict") and hasattr(value, "model_type")


def configuration_of(model: nn.Module, name: str) -> Any:
    """Return the configuration of the sub-model that the module ``name`` lies in; None where there is none.

    Of all modules around it, the innermost that has a configuration says which. In a vision-language model
    that is the text model's for its text blocks, the whole model's for the parts that join both.

    >>> configuration_of(nn.Sequential(nn.Linear(2, 2)), "0")
    """
    module, found = model, None
    for part in ("", *name.split(".")):
        module = getattr(module, part, None) if part else module
        if module is None:
            break
        if is_configuration(config := getattr(module, "config", None)):
            found = config
    return found


def tree(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, configuration) of a configuration and all within it; the path of the outermost is ""."""
    yield prefix, config
    for name in getattr(type(config), "sub_configs", None) or {}:
        inner = getattr(config, name, None)
        if is_configuration(inner):
            yield from tree(inner, f"{prefix}{name}.")


def claimed(model: nn.Module, block: Block) -> Definition | None:
    """Return the activation that the block's configuration names, or None where it names none that we know.

    gpt-oss writes "silu" and means its own clamped form, with the constants beside it.
    """
    definition = getattr(model, "definition", None)
    if isinstance(definition, Definition):
        return definition  # nonlin's own model
    config = configuration_of(model, block.name)
    name = next((v for f in FIELDS if isinstance(v := field(config, f), str)), None)
    act = None
    with contextlib.suppress(ValueError):
        act = get(name) if name else None
    if act is None or act.expr is None or not block.gated or act.gated:
        return act
    limit, alpha = field(config, "swiglu_limit"), field(config, "swiglu_alpha")
    if _number(limit) and _number(alpha):
        return _clamped_oai(float(alpha), float(limit))
    if _number(limit) and act.name == "silu":
        c: Any = minimum(GATE, R(repr(float(limit))))
        return _named(c * sigmoid(c) * clip(UP, -R(repr(float(limit))), R(repr(float(limit)))),
                      f"swiglu_clamped({limit:g})")
    return _named(gated("", act).expr, f"{act.name}_glu")


def field(config: Any, name: str) -> Any:
    """Return a configuration's field; None where it has none, or refuses to say (a field that differs by layer)."""
    try:
        return getattr(config, name, None)
    except Exception:
        return None


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _clamped_oai(alpha: float, limit: float) -> Definition:
    m: Any = minimum(GATE, R(repr(limit)))
    return _named(m * sigmoid(R(repr(alpha)) * m) * (clip(UP, -R(repr(limit)), R(repr(limit))) + 1),
                  f"swiglu_oai({alpha:g}, {limit:g})")


def _named(expr: Any, otherwise: str) -> Definition:
    """Return the definition of the catalog with that formula, or one of another name."""
    known = next((d for d in CATALOG if d.kind == "gated" and d.expr == expr), None)
    return known or gated_formula(otherwise, expr)
