"""The recipe that all arms share, as words and numbers: optimizer, schedule, precision. Loads no torch.

A recipe lies in a configuration's "training". A value that is not there is that of :data:`DEFAULTS`. So a configuration
from before a choice existed means the same, and has the same hash, as one that leaves it open.
"""

import math
from collections.abc import Mapping
from typing import Any

from nonlin.errors import UserError, rule, unknown_name
from nonlin.numbers import number
from nonlin.training import transfer

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("linear", "cosine", "wsd")
PRECISIONS = ("float32", "bfloat16", "auto")

#: The values of a configuration that says none. Fractions are of a run's steps, ``final_fraction`` of the peak rate.
DEFAULTS: dict[str, Any] = {
    "optimizer": "adamw", "schedule": "linear", "decay_fraction": 0.2, "final_fraction": 0.0,
    "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "momentum": 0.95, "accumulation": 1,
}
_MOST_EVALUATIONS = 100_000  # of a run: their steps are listed
_MOST = 10**15  # of whatever else is counted
_MOST_WIDTH = 512  # of a head, in the transformer kernels


def choice(training: Mapping[str, Any], name: str) -> Any:
    """Return a value of a recipe, the default where it does not say one.

    >>> choice({"schedule": "wsd"}, "schedule"), choice({}, "optimizer")
    ('wsd', 'adamw')
    """
    return training.get(name, DEFAULTS[name])


def without_defaults(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe less the values that it has anyway: two recipes that mean the same have one hash."""
    return {name: value for name, value in training.items() if name not in DEFAULTS or value != DEFAULTS[name]}


def check(training: Mapping[str, Any]) -> None:
    """Raise UserError for a recipe that no run can follow."""
    for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        if choice(training, name) not in known:
            raise unknown_name(name, str(choice(training, name)), known)
    within = {"weight_decay": (0, math.inf), "warmup_fraction": (0, 1), "warmup_steps": (1, math.inf),
              "clip": (0, math.inf), "decay_fraction": (0, 1), "decay_steps": (0, math.inf), "final_fraction": (0, 1),
              "beta1": (0, 1), "beta2": (0, 1), "momentum": (0, 1), "epsilon": (0, math.inf)}
    for name, (low, high) in within.items():
        value = training.get(name, low)
        if not (isinstance(value, int | float) and low <= value <= high and value < math.inf):
            must = f"be {low} or more and finite" if high == math.inf else f"lie between {low} and {high}"
            raise _wrong(_WORDS.get(name, name), must, value)
    for name in ("beta1", "beta2", "momentum"):  # at 1 a moment never moves
        if choice(training, name) == 1:
            raise _wrong(name, "be below 1", 1)
    if "transfer" in training:
        transfer.check(training["transfer"])
    count = choice(training, "accumulation")
    if not isinstance(count, int) or count < 1:
        raise _wrong("accumulation", "be a whole number from 1 on", count)
    if not isinstance(tokens := training.get("evaluation_tokens", 1), int) or not 1 <= tokens <= _MOST:
        raise _wrong("evaluation_tokens", f"be a whole number from 1 to {_MOST:,}", tokens)
    if not isinstance(times := training.get("evaluations", 1), int) or not 1 <= times <= _MOST_EVALUATIONS:
        raise _wrong("evaluations", f"be a whole number from 1 to {_MOST_EVALUATIONS:,}", times)
    if not isinstance(steps := training.get("probe_every", 1), int) or not 1 <= steps <= _MOST:
        raise _wrong("probe_every", f"be a whole number from 1 to {_MOST:,}", steps)


_WORDS = {"warmup_fraction": "warmup", "warmup_steps": "warmup", "decay_fraction": "decay", "decay_steps": "decay"}


def _wrong(name: str, must: str, value: Any) -> UserError:
    return UserError(rule("recipe", name, must, value, "Choose another value."))


def check_length(training: Mapping[str, Any], steps: int) -> None:
    """Raise UserError where the warm-up and the decay do not fit a run of ``steps``: as shares they may fill it."""
    wsd = choice(training, "schedule") == "wsd"
    given = training.get("warmup_steps", 0) + (training.get("decay_steps", 0) if wsd else 0)
    shares = training.get("warmup_fraction", 0.0) if "warmup_steps" not in training else 0.0
    shares += choice(training, "decay_fraction") if wsd and "decay_steps" not in training else 0.0
    needed = given + math.floor(shares * steps + 1e-6)
    if given >= steps or needed > steps:
        raise UserError(f"recipe: warmup and decay must leave steps of a run between them; they take {needed:,} steps "
                        f"of {steps:,}. Give them as smaller shares of the steps (0.1), or train longer with --steps.")


# The schedule.

def warmup_steps(training: Mapping[str, Any], steps: int) -> int:
    """Return how many steps the rate rises: at least one, at most all."""
    asked = training["warmup_steps"] if "warmup_steps" in training else round(steps * training["warmup_fraction"])
    return min(max(1, asked), max(1, steps))


def decay_start(training: Mapping[str, Any], steps: int) -> int:
    """Return the step before which a run does not depend on how long it will be: there the rate begins to fall.

    >>> decay_start({"schedule": "wsd", "warmup_fraction": 0.1, "decay_fraction": 0.25}, 100)
    75
    """
    warmup = warmup_steps(training, steps)
    if choice(training, "schedule") != "wsd":
        return warmup
    asked = training["decay_steps"] if "decay_steps" in training else round(steps * choice(training, "decay_fraction"))
    return max(warmup, steps - asked)


def learning_rate(training: Mapping[str, Any], step: int) -> float:
    """Return the rate of a step (0-based) of a recipe with "steps" and a peak, its "learning_rate".

    It rises to the peak in a straight line. Then it falls to ``final_fraction`` of it: "linear" in a straight line,
    "cosine" along half a cosine. "wsd" (warm-up, stable, decay; arXiv:2404.06395) falls in a straight line over the
    last ``decay_fraction`` of the steps. The last step still learns.

    >>> recipe = {"steps": 10, "learning_rate": 1.0, "warmup_fraction": 0.2}
    >>> [round(learning_rate(recipe, s), 3) for s in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    >>> [learning_rate(recipe | {"schedule": "wsd"}, s) for s in (0, 5, 8, 9)]
    [0.5, 1.0, 1.0, 0.5]
    """
    steps, peak = training["steps"], training["learning_rate"]
    warmup, start = warmup_steps(training, steps), decay_start(training, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if step < start:
        return peak
    if choice(training, "schedule") == "cosine":
        falling = peak * (0.5 + 0.5 * math.cos(math.pi * (step - start) / max(1, steps - start)))
    else:
        falling = peak * (steps - step) / max(1, steps - start)
    final = choice(training, "final_fraction")
    return final * peak + (1 - final) * falling


# The engine.

def native_cannot(model: Mapping[str, Any]) -> str | None:
    """Return why the transformer kernels cannot train a model of these sizes; None where they can."""
    if "own" in model:
        return None  # they are for our small model alone
    width = model["dim"] // model["heads"]
    if width > _MOST_WIDTH and model.get("attention", True):
        return f"the transformer kernels take heads of up to {_MOST_WIDTH} channels, and these have {width:,}"
    return None


def capturable(training: Mapping[str, Any]) -> bool:
    """Return whether a CUDA graph can take a recipe's steps: torch's Muon reads its rate on the CPU."""
    return choice(training, "optimizer") == "adamw"


# Words.

def describe(training: Mapping[str, Any], model: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """Return the recipe of a plan in words."""
    batch, parts = training["batch"], choice(training, "accumulation")
    betas = f"betas {choice(training, 'beta1'):g} and {choice(training, 'beta2'):g}"
    optimizer = {"adamw": f"AdamW ({betas}, epsilon {number(choice(training, 'epsilon'), 'g')})",
                 "muon": f"Muon for the matrices inside the layers{_but(model)} (momentum "
                         f"{choice(training, 'momentum'):g}), AdamW for the rest "
                         f"({betas}, epsilon {number(choice(training, 'epsilon'), 'g')})"}[
                             choice(training, "optimizer")]
    warmup = (f"{training['warmup_steps']:,} steps" if "warmup_steps" in training
              else f"{training['warmup_fraction']:.3g} of the steps")
    falls = {"linear": "then a linear decay", "cosine": "then a cosine decay", "wsd": "a stable rate, then a linear "
             "decay over " + (f"the last {training['decay_steps']:,} steps" if "decay_steps" in training
                              else f"the last {choice(training, 'decay_fraction'):.3g} of them")}[
                                  choice(training, "schedule")]
    final = choice(training, "final_fraction")
    clip = f"gradients clipped at {training['clip']:g}" if training["clip"] else "gradients not clipped"
    tokens = batch * model["context"]
    return (f"Recipe: {optimizer}; warm-up over {warmup}, {falls}{f' to {final:.3g} of the peak' if final else ''}; "
            f"weight decay {training['weight_decay']:g}, {clip}; batches of {batch:,} sequences ({tokens:,} tokens)"
            f"{f' in {parts} parts' if parts > 1 else ''}; matrix products in {machine.get('dtype', 'float32')} by "
            f"{'torch' if machine.get('engine', 'torch') == 'torch' else 'the transformer kernels'}"
            f"{_instead(model, machine)}.")


def _but(model: Mapping[str, Any]) -> str:
    """Return what torch's Muon does not take: a stack of matrices."""
    stacked = any(group["experts"] for group in model.get("own", {}).get("blocks", ()))
    return " but not the stacked experts" if stacked else ""


def _instead(model: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    why = native_cannot(model) if machine.get("engine") == "torch" and machine.get("device", "cpu") == "cpu" else None
    return f", since {why}" if why else ""
