"""The registration of our activations in ``transformers``' table ACT2FN."""

from typing import Any

from nonlin.errors import UserError
from nonlin.functions import Definition, get, names
from nonlin.model.act2fn_names import HELD


def _table() -> Any:
    try:
        from transformers.activations import ACT2FN
    except ImportError as error:
        raise UserError("register_with_transformers: the package 'transformers' must be installed; it is not. "
                        "Install it: pip install 'nonlin[hf]'.") from error
    return ACT2FN


def held_name(definition: Definition) -> str | None:
    """Return ``transformers``' name for a pointwise activation, or None if it has none.

    Names that :func:`register_with_transformers` added in this process count.

    >>> held_name(get("relu2")), held_name(get("softsign"))
    ('relu2', None)
    """
    if definition.parameters or definition.kind == "gated":
        return None  # a learned value has another name in its checkpoints
    known = HELD.get(definition.name)
    if known is None and definition.user_defined:  # a user's name for a known formula
        known = next((HELD[n] for n in HELD if get(n).expr == definition.expr), None)
    if known is None and _ours(_table(), definition.name):
        known = definition.name
    return known


def _ours(table: Any, name: str) -> bool:
    content = dict.get(table, name)
    return isinstance(content, tuple) and content[1].get("name") == name and content[0].__module__.startswith("nonlin.")


def register_with_transformers() -> list[str]:
    """Add nonlin's activations of one input to ``transformers``' ``ACT2FN`` and return the added names.

    Then ``hidden_act="softsign"`` works in any configuration, for a gate too; your own (:func:`nonlin.define`) are
    added as well. A name that ``transformers`` has keeps its meaning. A second call adds new names.

    The table belongs to this process. A checkpoint whose configuration names one of these activations loads only after
    this call. Otherwise it fails with an error that names the activation. Its weights are ordinary safetensors. An
    activation that ``transformers`` has (relu, gelu, silu, relu2, ...) needs no registration and loads everywhere.

    Raises UserError if ``transformers`` is not installed.

    >>> "softsign" in register_with_transformers() or _ours(_table(), "softsign")
    True
    """
    from nonlin.nn import Activation

    table, added = _table(), []
    for name in names():
        definition = get(name)
        aliases = (name, *definition.aliases)
        for key in aliases if definition.kind != "gated" else ():
            if key not in table:
                table[key] = (Activation, {"name": name})
                added.append(key)
    return added
