"""All claims, by number. Each is a module of its own, loaded when asked for."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nonlin.claims.definition import Claim

_MODULES = ("n01_linear", "n02_approximation", "n03_essential", "n04_vanishing", "n05_dying",
            "n06_gelu", "n07_silu", "n08_gating", "n09_stability", "n10_convergence",
            "n11_size", "n12_tandem", "n13_models")


def count() -> int:
    """Return how many claims there are; loads none of them."""
    return len(_MODULES)


def all_claims() -> "list[Claim]":
    """Return the claims in their order.

    >>> [claim.number for claim in all_claims()] == list(range(1, 14))
    True
    """
    return [importlib.import_module(f"nonlin.claims.{name}").CLAIM for name in _MODULES]
