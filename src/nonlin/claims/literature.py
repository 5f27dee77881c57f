"""Published results beside ours; numbers only from the papers named, in held-out nats per token."""

from collections.abc import Mapping
from typing import Any

from nonlin.claims.definition import Table
from nonlin.numbers import number

#: T5-base on C4, hidden widths matched by 2/3: by Shazeer (arXiv:2002.05202) after 65,536 and 524,288 steps, with the
#: standard deviation of four runs at the first; the same by Narang et al. (arXiv:2102.11972), five runs.
T5_BASE = {
    "relu": ((1.997, 0.005), 1.677, (2.182, 0.005), 1.838), "gelu": ((1.983, 0.005), 1.679, (2.179, 0.003), 1.838),
    "silu": ((1.994, 0.003), 1.683, (2.186, 0.003), 1.847), "glu": ((1.982, 0.006), 1.663, (2.174, 0.003), 1.814),
    "bilinear": ((1.960, 0.005), 1.648, (2.149, 0.005), 1.798),
    "geglu": ((1.942, 0.004), 1.633, (2.130, 0.006), 1.792), "swiglu": ((1.944, 0.010), 1.636, (2.127, 0.003), 1.789),
    "reglu": ((1.953, 0.003), 1.645, (2.145, 0.004), 1.803)}


def beside(ours: Mapping[str, float | None]) -> tuple[str, Table]:
    """Return a title and a table: published losses and our bits per byte, each also as a difference to GELU's."""
    base = T5_BASE["gelu"]
    rows: list[list[Any]] = []
    for name, (first, late, second, second_late) in T5_BASE.items():
        mine = ours.get(name)
        own = "–" if mine is None else f"{mine:.4f}"
        less = "–" if mine is None or ours.get("gelu") is None else _less(mine, ours["gelu"], 4)
        rows.append([name, f"{first[0]:.3f} ± {first[1]:.3f}", _less(first[0], base[0][0]), _less(late, base[1]),
                     _less(second[0], base[2][0]), _less(second_late, base[3]), own, less])
    title = ("T5-base on C4, nats per token: Shazeer (arXiv:2002.05202) and Narang et al. (arXiv:2102.11972), as "
             "differences to GELU after 65,536 and 524,288 steps; ours in bits per byte")
    return title, (["activation", "Shazeer, 65,536", "less GELU", "less GELU at 524,288", "Narang, less GELU",
                    "less GELU at 524,288", "ours", "less GELU"], rows)


def _less(value: float, base: float | None, digits: int = 3) -> str:
    """A difference with its sign; nothing for the base itself."""
    return "–" if base is None or value == base else number(value - base, f"+.{digits}f")
