"""The committed tables of high precision, and how far a computation may be from them."""

import json
from pathlib import Path

import numpy as np
import torch

TABLES = sorted((Path(__file__).parents[1] / "tables").glob("*.json"))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Allowances of the fallback alone; the compiled kernels need none. An argument that is itself rounded moves exp, or
# the normal tail, by its size in ulps: |u| for exp(u), |z|^2 for Phi(z). By activation: that size, in roundings.
ARGUMENT = {
    "quick_gelu": lambda x, *_: 2 * 1.702 * abs(x),
    "swiglu_oai": lambda x, *_: 2 * 1.702 * abs(x),
    "gelu_tanh": lambda x, *_: 4 * abs(1.5957691 * (x + 0.044715 * x**3)),
    "geglu_tanh": lambda x, *_: 4 * abs(1.5957691 * (x + 0.044715 * x**3)),
    "laplace": lambda x, *_: 3 * ((x - 0.707107) / 0.282095) ** 2 + 3 * abs(x * 0.707107) / 0.282095**2,
    "situ_glu": lambda g, u: abs(g) / 2 + abs(u) / 12.5,
    "powlu": lambda g, *_: np.where(g > 0, 4.0, 0.0),  # of exp: at most 1.7, rounded several times
}
# Where the exact value depends on which side of a kink the rounded argument falls (there for both), or a square leaves
# the range.
KINKS = {"gelu_10": lambda x: x == 10}
EXCLUDED = {
    "gelu_10": lambda x: 9.99 < abs(x) < 10.01,
    "softsign": lambda x: abs(x) > 1e15,
    "sqrtsoftplus": lambda x: x < -80,  # the root of a subnormal
}


def spacing(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Return one unit in the last place of that dtype at each value."""
    facts = torch.finfo(dtype)
    return np.exp2(np.floor(np.log2(np.maximum(np.abs(values), facts.tiny)))) * facts.eps


def read(path: Path, dtype: str, fallback: bool):
    """Return (points, [value, derivatives...] as (exact, largest term)) of a table, excluded points left out."""
    rows = json.loads(path.read_text())["dtypes"][dtype]
    excluded = (EXCLUDED if fallback else KINKS).get(path.stem, lambda x: False)
    rows = [row for row in rows if not excluded(row[0][0])]
    points = np.array([row[0] for row in rows])
    outs = [(np.array([row[1 + k][0] for row in rows]), np.array([row[1 + k][1] for row in rows]))
            for k in range(len(rows[0]) - 1)]
    return points, outs


def failures(name: str, dtype: str, points: np.ndarray, exact: np.ndarray, largest: np.ndarray,
             got: torch.Tensor, fallback: bool, subnormal: bool = False) -> list[str]:
    """Return a line for each point that is further from the exact value than it may be.

    Compiled: 4 ulp of the largest term that is added, in float32; 1 ulp in sixteen bits. The fallback: in float32, what
    rounded arguments cost (ARGUMENT) besides, and below the smallest normal number its spacing times the inputs'
    sizes; in sixteen bits that error and one rounding. ``subnormal``: compiled, but a subnormal number on the way costs
    its spacing times the inputs' sizes, as in the fallback.
    """
    torch_dtype, wide = DTYPES[dtype], torch.float32
    scale = np.maximum(np.abs(exact), largest)
    allowed = 4 * spacing(scale, wide) if torch_dtype == wide else spacing(scale, torch_dtype)
    if subnormal:
        allowed = allowed + 4 * 2.0**-149 * np.prod(1 + np.abs(points), axis=1)
    if fallback:
        argument = np.minimum(ARGUMENT.get(name, lambda x, *_: 0.0 * x)(*points.T), 1e6)
        allowed = (4 + argument) * spacing(scale, wide) + 4 * 2.0**-149 * np.prod(1 + np.abs(points), axis=1)
    if fallback and torch_dtype != wide:
        allowed += 0.5 * spacing(exact, torch_dtype) * (1 + 1e-6)
    got64 = got.double().numpy()
    rounded = torch.from_numpy(exact).to(torch_dtype).double().numpy()  # inf where the exact value is too large
    with np.errstate(invalid="ignore"):
        good = (got64 == rounded) | (np.abs(got64 - exact) <= allowed)
    # A value within an ulp of the largest number may round to infinity.
    good |= np.isinf(got64) & (np.abs(exact) > torch.finfo(torch_dtype).max * (1 - 1e-6))
    ulps = np.abs(got64 - exact) / spacing(scale, torch_dtype)
    return [f"{points[i].tolist()}: got {got64[i]:.9g}, exact {exact[i]:.9g}, off by {ulps[i]:.3g} ulp"
            for i in np.flatnonzero(~good)]
