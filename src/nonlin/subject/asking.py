"""What a person passes as ``model``: a path, an architecture's name, a configuration, or a function; no torch."""

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonlin.errors import UserError, not_empty, rule
from nonlin.subject.vouching import vouch

#: A configuration or a folder, an architecture's name, a configuration in hand, or a function that returns a module.
Model = str | Path | Mapping[str, Any] | Callable[[], Any] | Any


@dataclass(frozen=True)
class Shaped:
    """A configuration at another size: its "config", and the "shape" that :func:`nonlin.subject.sizes.scaled` takes.

    With "fixed", the roles of its parameters are told too (:func:`nonlin.subject.roles.roles`).
    """

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """The model that a person asks for, as JSON values: one of path, name, config or factory, and the checkpoint."""

    values: Mapping[str, Any]

    @property
    def sized(self) -> bool:
        """Whether the sizes are the call's to say: of an architecture by its name."""
        return "name" in self.values

    @property
    def folder(self) -> Path | None:
        """The folder that may hold a tokenizer and weights beside the configuration."""
        return folder_of(self.values["path"]) if "path" in self.values else None


def wanted(model: Model, from_checkpoint: bool = False) -> Wanted:
    """Return what is wanted; UserError for what is neither a path, a name, a configuration nor a function."""
    if isinstance(model, (str, Path)):
        found: dict[str, Any] = _path_or_name(str(model))
    elif isinstance(model, Shaped):
        found = dict(model.values)
    elif isinstance(model, Mapping):
        found = {"config": dict(model)}
    elif hasattr(model, "to_dict") and hasattr(model, "model_type"):
        found = {"config": model.to_dict() | {"model_type": model.model_type}}
    elif callable(model) and not _is_module(model):
        found = {"factory": _factory(model)}
    else:
        raise UserError(rule("compare", "model", "be a path, an architecture's name, a configuration, or a function "
                             "that returns a module", type(model).__name__,
                             "A module in hand cannot be built anew by the processes that train: pass a function."))
    if from_checkpoint:
        if "path" not in found or not any(folder_of(found["path"]).glob("*.safetensors")):
            raise UserError(rule("compare", "from-checkpoint", "come with a model's folder that holds safetensors",
                                 str(model), "Pass the folder of a trained model as --model."))
        found["checkpoint"] = True
    return Wanted(found)


def folder_of(given: str | Path) -> Path:
    """Return the folder that a path names, or that holds the file that it names."""
    path = Path(given)
    return path if path.is_dir() else path.parent


def _is_module(model: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def _path_or_name(given: str) -> dict[str, Any]:
    not_empty("compare", model=given)
    path = Path(given)
    if os.path.exists(given):  # False for what no path can be, too
        if path.is_dir() and not (path / "config.json").exists():
            raise UserError(rule("compare", "model", "be a folder with config.json, or that file", given,
                                 "Pass the folder of a Hugging Face model."))
        return {"path": str(path.absolute())}
    if "/" in given or given.endswith(".json"):
        raise UserError(rule("compare", "model", "be a config.json or a folder that is there", given,
                             "Check the path, or name an architecture such as qwen3."))
    return {"name": given}


def _factory(function: Callable[[], Any]) -> dict[str, Any]:
    """Return where other processes find a function: its file and its name, and the hash of the file."""
    must = "be a function at the top of a Python file, which other processes can import"
    name = getattr(function, "__qualname__", "")
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        file = None
    if file is None or not Path(file).is_file() or not name.isidentifier():
        raise UserError(rule("compare", "model", must, name or repr(function),
                             "Define it in a file of its own, with def, outside classes and functions."))
    needed = [q.name for q in inspect.signature(function).parameters.values()
              if q.default is q.empty and q.kind not in (q.VAR_POSITIONAL, q.VAR_KEYWORD)]
    if needed:
        raise UserError(rule("compare", "model", "be a function that is called without arguments",
                             f"{name}({', '.join(needed)})", "Give its arguments values by default."))
    path = Path(file).absolute()
    found = {"file": str(path), "name": name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    vouch(found["file"], found["sha256"])
    return found
