"""A subject in words: what of it is replaced, what stays and why, what each arm costs; no torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nonlin.numbers import number

_NEARLY_LINEAR = 0.25  # pre-activations of a norm's output, of 1; Qwen3's begin with 0.64 at its width of 1,024


def headline(own: Mapping[str, Any]) -> str:
    """Return the model in a few words."""
    sizes = ", ".join(f"{words} {own[key]}" for key, words in (("layers", "layers"), ("dim", "width")) if own.get(key))
    start = f", trained, from {own['checkpoint']['folder']}" if own.get("checkpoint") else ""
    return f"{own['name']}{start}{f' ({sizes})' if sizes else ''}"


def own_lines(own: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the plan's lines on the blocks and the arms."""
    lines = []
    for group in own["blocks"]:
        kind = f"{group['experts']} experts each, " if group["experts"] else ""
        lines.append(f"Replaced: {len(group['names'])} × {group['class']} ({_span(group['names'])}), {kind}"
                     f"{group['computes']}, {group['layout']}, {group['dim']} to {group['hidden']}.")
    if unused := own.get("checkpoint", {}).get("unused"):
        lines.append(f"Not used of the weights, which the configuration has no place for: {', '.join(unused[:3])}"
                     f"{f' and {len(unused) - 3} more' if len(unused) > 3 else ''}.")
    for one in own["left"]:
        lines.append(f"Left alone: {len(one['names'])} × {one['class']} ({_span(one['names'])}): {one['reason']}.")
    lines.append(packing_line(own.get("packing", {"rule": "stream", "end": None})))
    if own["router_loss"]:
        lines.append(f"The router's loss counts {own['router_loss']:g} in training, as the configuration says.")
    for arm in arms:
        widths = ", ".join(f"{width:,}" for width in arm["own"]["widths"])
        flops = arm["own"]["flops_per_token"]
        cost = f", {number(flops / 1e6, ',.4g')} MFLOPs per token" if flops else ""
        lines.append(f"  {arm['name']}: hidden {widths}, {arm['parameters']:,} parameters{cost}.")
    lines.append("Outside the blocks all arms begin with the same tensors, ties included: proved.")
    return lines


def small_first_weights(own: Mapping[str, Any]) -> list[str]:
    """Return a line where blocks begin nearly linear: a family's standard deviation belongs to its own width."""
    if own.get("checkpoint"):
        return []
    activated = [(group["std"].get("gate", group["std"].get("up")), group["dim"]) for group in own["blocks"]]
    drawn = [one for one in activated if one[0]]
    std, dim = min(drawn, key=lambda one: one[0] * math.sqrt(one[1]), default=(math.inf, 1))
    if std * math.sqrt(dim) >= _NEARLY_LINEAR:
        return []
    return [f"Take care: first weights of standard deviation {std:.2g} at width {dim} give pre-activations of "
            f"{std * math.sqrt(dim):.2g}, where GELU and SiLU are nearly linear. That alone can turn verdicts; "
            f"{1 / math.sqrt(dim):.2g} suits this width (initializer_range in most configurations)."]


def packing_line(packing: Mapping[str, Any]) -> str:
    """Return how documents follow each other.

    >>> packing_line({"rule": "stream", "end": None})
    'Packing: documents follow each other, a blank line between them; attention and positions cross documents.'
    """
    opened = "a blank line between them" if packing["end"] is None else f"token {packing['end']} opens each"
    across = ("a token attends to its own document alone and positions begin anew in each: proved"
              if packing["rule"] == "documents" else "attention and positions cross documents")
    return f"Packing: documents follow each other, {opened}; {across}."


def _span(names: Sequence[str]) -> str:
    return names[0] or "the model itself" if len(names) == 1 else f"{names[0]} … {names[-1]}"
