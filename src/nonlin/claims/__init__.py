"""Statements of articles about activation functions, each put to the test by an experiment.

Every claim is a module of its own, ``nNN_title``; the small language model's part runs as studies do. The
package can be called: ``nonlin.claims([1, 6])`` tests two of them.
"""

import sys

from nonlin.claims.call import ClaimsPackage
from nonlin.claims.everything import all_claims

__all__ = ["all_claims"]

# A function of this name would be replaced by the package at the first import of a module in it.
sys.modules[__name__].__class__ = ClaimsPackage
