"""Statements of articles about activation functions, each put to the test by an experiment.

Every claim is a module of its own, ``nNN_title``; the small language model's part runs as studies do. The
package can be called: ``nonlin.claims([1, 6])`` tests two of them.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from nonlin.claims.call import ClaimsPackage

if TYPE_CHECKING:
    from nonlin.claims.definition import Claim

_MODULES = ("n01_linear", "n02_approximation", "n03_essential", "n04_vanishing", "n05_dying",
            "n06_gelu", "n07_silu", "n08_gating", "n09_stability", "n10_convergence",
            "n11_size", "n12_tandem", "n13_models")

__all__ = ["all_claims"]


def count() -> int:
    """Return how many claims there are; loads none of them."""
    return len(_MODULES)


def all_claims() -> "list[Claim]":
    """Return the claims in their order.

    >>> [claim.number for claim in all_claims()] == list(range(1, 14))
    True
    """
    return [importlib.import_module(f"nonlin.claims.{name}").CLAIM for name in _MODULES]


# A function of this name would be replaced by the package at the first import of a module in it.
sys.modules[__name__].__class__ = ClaimsPackage
