"""Definitions in float64 by numpy and SciPy: an independent reference for whole ranges of inputs.

Every number is a pair: its value, and the largest of the terms that are added in it, where cancellation begins.
"""

import numpy as np
import torch

from nonlin.functions.expression import fold
from nonlin.functions.numeric import TABLE


def _pairs():
    def function(name):
        def call(*args):
            value = TABLE[name](*(a[0] for a in args))
            return value, np.abs(value)
        return call

    def chosen(better):
        def call(a, b):
            first = better(a[0], b[0]) | np.isnan(a[0])
            return np.where(first, a[0], b[0]), np.where(first, a[1], b[1])
        return call

    def power(a, n):
        value = TABLE["pow"](a[0], n)
        return value, np.abs(value) if n.is_negative else TABLE["pow"](a[1], n)

    made = {name: function(name) for name in TABLE}
    made["number"] = lambda e: (np.float64(float(e)), np.abs(np.float64(float(e))))
    made |= {"add": lambda a, b: (a[0] + b[0], np.maximum(a[1], b[1])),
             "mul": lambda a, b: (a[0] * b[0], a[1] * b[1]),
             "div": lambda a, b: (a[0] / b[0], a[1] / np.abs(b[0])), "pow": power,
             "max": chosen(np.greater_equal), "min": chosen(np.less_equal)}
    return made


def compute(definition, expr, inputs):
    """Return (values, largest terms) of an expression at float64 inputs; 0 x infinity at finite inputs is 0."""
    leaves = {v: (x, np.abs(x)) for v, x in zip(definition.variables, inputs, strict=True)}
    leaves |= {q.name: (np.float64(q.initial), np.abs(q.initial)) for q in definition.parameters}
    with np.errstate(all="ignore"):
        value, largest = fold(expr, leaves, _pairs())
    value, largest = (np.broadcast_to(v, inputs[0].shape) for v in (value, largest))
    return np.where(np.isnan(value), 0.0, value), np.where(np.isnan(largest), 0.0, largest)


def spacing(values, dtype):
    """Return one unit in the last place of that dtype at each value, the subnormal ones' below the normal."""
    facts = torch.finfo(dtype)
    with np.errstate(all="ignore"):
        return np.exp2(np.floor(np.log2(np.maximum(np.abs(values), facts.tiny)))) * facts.eps


def off(got, exact, scale, dtype):
    """Return the distance in ulps of ``scale``; 0 where both round to the same number (infinity too)."""
    rounded = torch.from_numpy(exact).to(dtype).double().numpy()
    got = got.double().numpy()
    with np.errstate(all="ignore"):
        ulps = np.abs(got - exact) / spacing(scale, dtype)
    return np.where(got == rounded, np.minimum(np.nan_to_num(ulps, nan=0.0, posinf=0.0), 0.5), ulps)
