"""A ladder of model sizes: its rungs, the forecast of paired differences, and simulations of both. Loads no torch.

The package can be called: ``nonlin.ladder(125e6)`` runs a ladder.
"""

import sys

from nonlin.ladder.call import LadderPackage

# A function of this name would be replaced by the package at the first import of a module in it.
sys.modules[__name__].__class__ = LadderPackage
