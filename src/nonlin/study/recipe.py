"""From the words that ask for a recipe to the values of a request."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonlin.errors import UserError, rule
from nonlin.study import defaults
from nonlin.training.arguments import read_training_arguments
from nonlin.training.recipe import without_defaults
from nonlin.training.transfer import transfer_of

#: The words of a recipe: options of ``nonlin compare`` and arguments of :func:`nonlin.compare`.
WORDS = ("learning_rate", "batch", "steps", "optimizer", "schedule", "weight_decay", "warmup", "decay", "clip",
         "precision", "accumulation", "evaluation_tokens", "transfer")
_TRAINING = ("optimizer", "schedule", "weight_decay", "clip", "accumulation", "evaluation_tokens",
             "final_fraction", "beta1", "beta2", "epsilon")
#: The model whose learning rates a transfer carries over: that of the default study.
_BASE = {"layers": defaults.LAYERS, "dim": defaults.DIM, "heads": defaults.HEADS, "kv_heads": defaults.KV_HEADS,
         "tokens": defaults.STEPS * defaults.BATCH * defaults.CONTEXT}
_TOKENS = re.compile(r"(\d{1,15})\s*tokens\Z")


def recipe_values(asked: Mapping[str, Any], file: str | Path | None, context: int | None,
                  learning_rate: float = defaults.LEARNING_RATE) -> dict[str, Any]:
    """Return the request's fields that a recipe decides.

    ``asked`` holds a value, or None, for each of :data:`WORDS`. A value that is there counts; the others are the
    file's, and where it says none, the defaults; ``learning_rate`` is the model's. ``context`` is None where it is not
    known yet. Raises UserError for values that make no recipe.
    """
    said = {word: value for word, value in asked.items() if value is not None}
    read, left_out = ({}, []) if file is None else read_training_arguments(Path(file), said)
    words = read | said
    training = {name: words[name] for name in _TRAINING if name in words}
    for word in ("warmup", "decay"):
        if word in words:
            training |= _length(word, words[word])
    if "decay" in said and words.get("schedule") != "wsd":
        raise UserError(rule("recipe", "decay", "come with the schedule wsd, which alone has one", said["decay"],
                             "Add --schedule wsd, or leave it out."))
    if "transfer" in words:
        training["transfer"] = transfer_of(words["transfer"], _BASE,
                                           words.get("learning_rate", learning_rate))
    return {
        "learning_rate": words.get("learning_rate", learning_rate),
        "batch": _sequences(words.get("batch", defaults.BATCH), context),
        "steps": words.get("steps"),
        "precision": words.get("precision", defaults.PRECISION),
        "training": without_defaults(training), "left_out": left_out}


def _length(word: str, value: float) -> dict[str, Any]:
    """Return a share of the steps, below 1, or a number of steps."""
    if value < 1:
        return {f"{word}_fraction": float(value)}
    if not math.isfinite(value) or value != int(value):
        raise UserError(rule("recipe", word, "be a share below 1 or a whole number of steps", value,
                             "Choose another value."))
    return {f"{word}_steps": int(value)}


def _sequences(value: int | str, context: int | None) -> int:
    """Return the sequences of a batch that is given in sequences, or in tokens."""
    if not isinstance(value, str):
        return value
    if value.isdecimal() and len(value) < 16:
        return int(value)
    found = _TOKENS.match(value.strip())
    if not found:
        raise UserError(rule("recipe", "batch", "be a number of sequences, or of tokens", value,
                             f"Try --batch 8, or --batch {8 * (context or defaults.CONTEXT)}tokens."))
    if context is None:
        raise UserError(rule("recipe", "batch", "be in sequences where the context is left to the model", value,
                             "Say the --context too."))
    tokens = int(found[1])
    if tokens % context or not tokens:
        near = max(1, round(tokens / context)) * context
        raise UserError(rule("recipe", "batch", f"be a multiple of the context of {context} tokens", value,
                             f"Try --batch {near}tokens."))
    return tokens // context
