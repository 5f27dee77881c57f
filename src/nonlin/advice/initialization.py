"""Initialization: each weight's standard deviation that keeps a block's output at unit size, from the definition."""

import math
from typing import Any

import numpy as np

from nonlin.functions import Definition
from nonlin.functions.expression import fold
from nonlin.functions.numeric import TABLE

_REACH, _POINTS = 9.0, 721  # of the unit normal: beyond it lies less than 1e-18; the step error is below 1e-4


def second_moment(definition: Definition) -> float:
    """Return the mean square of the activation's output where its inputs are independent unit normals.

    >>> from nonlin.functions import get
    >>> round(second_moment(get("relu")), 3), round(second_moment(get("bilinear")), 3)
    (0.5, 1.0)
    """
    assert definition.expr is not None
    if not definition.gated:
        return definition.properties.second_moment
    z = np.linspace(-_REACH, _REACH, _POINTS)
    weight = np.exp(-z * z / 2)
    weight /= weight.sum()
    leaves: dict[str, Any] = {q.name: q.initial for q in definition.parameters} | {"gate": z[:, None], "up": z[None, :]}
    with np.errstate(all="ignore"):
        out = np.broadcast_to(fold(definition.expr, leaves, TABLE), (_POINTS, _POINTS))
    return float(weight @ (out * out) @ weight)


def initialization(definition: Definition, dim: int, hidden: int, layers: int) -> dict[str, Any]:
    """Return the standard deviations of gate, up and down, for inputs of unit size (after a normalization).

    The down projection is divided by sqrt(2 layers), as GPT-2 does, so that the residual stream does not grow with
    depth. ``gain`` is what the activation's own size calls for.
    """
    moment = second_moment(definition)
    gain = 1 / math.sqrt(moment)
    inward = 1 / math.sqrt(dim)
    parts = {"gate": inward} if definition.gated else {}
    outward = gain / math.sqrt(hidden * 2 * layers)
    return {**parts, "up": inward, "down": outward, "gain": gain, "second_moment": moment,
            "text": f"normal weights: std {inward:.4g} into the block, {outward:.4g} out of it (the "
                    f"activation's mean square is {moment:.4g}, so its gain is {gain:.4g}; divided by "
                    f"√(2 × {layers} layers))"}
