"""What an activation is: symbolic definitions, names, properties, references. Loads no torch.

The names load on first use: SymPy takes a second, and :mod:`.catalog_names` does without it.
"""

from typing import TYPE_CHECKING

from nonlin import _lazy

if TYPE_CHECKING:
    from nonlin.functions.definition import Definition, Parameter
    from nonlin.functions.describing import describe
    from nonlin.functions.registry import define, get, has_constants, names, parse_arms

__all__ = ["Definition", "Parameter", "define", "describe", "get", "has_constants", "names", "parse_arms"]

_HOMES = {"Definition": "definition", "Parameter": "definition", "describe": "describing", "define": "registry",
          "get": "registry", "has_constants": "registry", "names": "registry", "parse_arms": "registry"}

if not TYPE_CHECKING:
    __getattr__ = _lazy.attributes(__name__, {k: f"nonlin.functions.{v}" for k, v in _HOMES.items()})
    __dir__ = _lazy.listing(__all__)
