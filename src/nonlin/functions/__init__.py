"""What an activation is: symbolic definitions, names, properties, references. Loads no torch."""

from nonlin.functions.definition import Definition, Parameter
from nonlin.functions.describe import describe
from nonlin.functions.registry import define, get, has_constants, names, parse_arms

__all__ = ["Definition", "Parameter", "define", "describe", "get", "has_constants", "names", "parse_arms"]
