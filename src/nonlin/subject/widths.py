"""Widths, parameters and operations of a subject's blocks for an arm, from its description alone; no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

_MULTIPLES, _ROUNDING = (64, 32, 16, 8, 4, 2), 0.004  # a rounder width computes faster; the arms' sizes must stay close


def matched_width(hidden: int, gated: bool, wanted_gated: bool, match: str) -> int:
    """Return the width at which a block of the wanted kind costs what the family's own costs.

    ``match`` "width" keeps the width. Parameters and operations of a block are both proportional to its matrices. A
    gated one has three and a plain one two. So "params", "flops" and "time" give the same width.

    >>> matched_width(1536, True, False, "params"), matched_width(3072, False, True, "params")
    (2304, 2048)
    >>> matched_width(3072, False, True, "width")
    3072
    """
    if match == "width" or gated == wanted_gated:
        return hidden
    exact = hidden * (3 if gated else 2) / (3 if wanted_gated else 2)
    for multiple in _MULTIPLES:
        width = max(1, round(exact / multiple)) * multiple
        if abs(width / exact - 1) <= _ROUNDING:
            return width
    return max(1, round(exact))


def arm_widths(own: Mapping[str, Any], gated: bool, match: str) -> list[int]:
    """Return an arm's width for each group of a subject's blocks."""
    if own.get("checkpoint"):
        return [group["hidden"] for group in own["blocks"]]  # the trained weights stay
    return [matched_width(group["hidden"], group["gated"], gated, match) for group in own["blocks"]]


def block_parameters(group: Mapping[str, Any], hidden: int, gated: bool) -> int:
    """Return the parameters of one block's matrices and biases at a width, all its experts' counted."""
    into = 2 if gated else 1
    each = (into + 1) * group["dim"] * hidden
    each += (into * hidden if "up" in group["biases"] else 0) + (group["dim"] if "down" in group["biases"] else 0)
    return each * max(1, group["experts"])


def block_flops(group: Mapping[str, Any], hidden: int, gated: bool) -> float:
    """Return the operations per token of a block's products, forward; of experts, those that a token goes through."""
    return 2.0 * (3 if gated else 2) * group["dim"] * hidden * group["uses"]


def flops_per_token(own: Mapping[str, Any], widths: Sequence[int], gated: bool) -> int | None:
    """Return the operations per token of a training step: three times the forward pass; None where not counted."""
    if own["outside"]["forward_flops"] is None:
        return None
    trained = bool(own.get("checkpoint"))  # there each block keeps its matrices
    blocks = sum(len(group["names"]) * block_flops(group, width, group["gated"] if trained else gated)
                 for group, width in zip(own["blocks"], widths, strict=True))
    return round(3 * (own["outside"]["forward_flops"] + blocks))


def main_group(own: Mapping[str, Any]) -> int:
    """Return the number of the group that holds most of the blocks' parameters: its width is an arm's width."""
    sizes = [len(g["names"]) * block_parameters(g, g["hidden"], g["gated"]) for g in own["blocks"]]
    return sizes.index(max(sizes))
