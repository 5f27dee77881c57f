"""What a run takes at the least, told before anything is made: a plan, whoever wrote it, can ask for any size."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import torch

from nonlin.data import Dataset, must_be_longer
from nonlin.errors import UserError
from nonlin.model import ModelConfig, parameter_count
from nonlin.patching import bounded
from nonlin.subject import building
from nonlin.subject.widths import block_parameters
from nonlin.training.config import definition_of
from nonlin.training.recipe import choice
from nonlin.training.resources import machine_memory_bytes

_A_PARAMETER, _TRAINED = 4, 12  # bytes of a weight; with its gradient and a moment, the fewest that an optimizer keeps
_A_TOKEN, _A_NUMBER = 16, 2  # bytes of a token of a batch and of its target, and of a number in bfloat16
_NOBODYS = 1 << 50  # bytes, where the machine does not say what it has


def must_be_possible(config: Mapping[str, Any], dataset: Dataset) -> None:
    """Raise UserError for a run that cannot begin: its text is too short, or this machine's memory too small."""
    must_be_longer(dataset, config["model"]["context"])
    must_fit(config, _TRAINED * parameters(config) + _tokens(config))


def must_open(config: Mapping[str, Any]) -> None:
    """Raise UserError for a trained model that this machine's memory cannot hold."""
    must_fit(config, _A_PARAMETER * parameters(config))


def must_fit(config: Mapping[str, Any], needed: int) -> None:
    """Raise UserError where a run needs more bytes than its devices have, whatever else runs on them."""
    settings = config["machine"]
    if settings.get("device", "cpu") == "cpu":
        have = machine_memory_bytes()
    else:
        have = torch.cuda.get_device_properties(settings["device"]).total_memory * settings.get("devices", 1)
    have = _NOBODYS if have is None else have
    if needed > have:
        raise UserError(f"model: a run must fit this machine's {have / 2**30:,.1f} GiB of memory; it takes at least "
                        f"{needed / 2**30:,.1f} GiB. Take a smaller model, --batch or --context, or a larger machine.")


def parameters(config: Mapping[str, Any]) -> int:
    """Return the number of parameters of a run's model, without making it; 0 where that cannot be told."""
    model, gated = config["model"], definition_of(dict(config)).gated
    if "own" not in model:
        return parameter_count(ModelConfig(**model), gated)
    own = model["own"]
    blocks = sum(len(group["names"]) * block_parameters(group, width, gated)
                 for group, width in zip(own["blocks"], model["widths"], strict=True))
    return max(blocks, _of_family(json.dumps({key: own[key] for key in ("class", "config")})) if "config" in own else 0)


@functools.lru_cache(4)
def _of_family(own: str) -> int:
    try:
        return building.count(json.loads(own), bounded.at_most(bounded.NUMBERS)) or 0
    except bounded.TooLarge as error:
        raise UserError(f"model: its configuration must {error}. Correct the sizes in it.") from error


def _tokens(config: Mapping[str, Any]) -> int:
    """Return the bytes of a batch, and of a part of it in a model: logits, and what each layer keeps of it."""
    model, training = config["model"], config["training"]
    tokens = training["batch"] * model["context"]
    at_once = max(1, training["batch"] // choice(training, "accumulation")) * model["context"]
    if "own" in model:
        named = model["own"].get("config", {}).get("vocab_size")
        return _A_TOKEN * tokens + _A_NUMBER * at_once * (named if isinstance(named, int) else 1)
    kept = model["vocabulary"] + model["layers"] * (model["dim"] + model["hidden"])
    return _A_TOKEN * tokens + _A_NUMBER * at_once * kept
