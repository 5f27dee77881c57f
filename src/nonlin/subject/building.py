"""A run's model of a subject: the family's own, drawn whole from the seed, and then an arm's blocks in it.

All arms of a seed begin with the same family's model: what is drawn for it does not know the arm. The blocks are
replaced afterwards, and draw from streams of their own.
"""

import contextlib
import hashlib
import importlib.util
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nonlin import streams
from nonlin.errors import UserError, rule, told
from nonlin.functions import Definition, define, get
from nonlin.functions.registry import gated_by
from nonlin.patching.bounded import TooLarge
from nonlin.subject import configuration
from nonlin.subject.blocks import Replaced, draw, replace
from nonlin.subject.model import OwnModel
from nonlin.subject.naming import moved, renamed

_MADE = "nonlin_made"  # marks a module that a function has returned


def family_model(own: Mapping[str, Any], seed: int) -> nn.Module:
    """Return the subject's model as its family builds it, in float32, its weights drawn from the seed.

    With a checkpoint in the description its weights are those of the folder.
    """
    torch.manual_seed(streams.torch_seed("initialization", seed))
    with quiet():
        model = _loaded(own) if own.get("checkpoint") else _built(own)
    if own.get("checkpointing") and getattr(model, "supports_gradient_checkpointing", False):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.float()


def count(own: Mapping[str, Any], limit: "contextlib.AbstractContextManager[None]") -> int | None:
    """Return the number of parameters, counted without memory for them; None where that cannot be told.

    Raises :class:`nonlin.patching.bounded.TooLarge` as soon as the model passes the limit.
    """
    try:
        with torch.device("meta"), quiet(), limit:
            return sum(p.numel() for p in _built(own).parameters())
    except (TooLarge, UserError):
        raise
    except (Exception, SystemExit):  # a class of any maker; what is wrong with it is said when it is built
        return None


def _built(own: Mapping[str, Any]) -> Any:
    if "factory" in own:
        return _made(own["factory"])
    cls = model_class(own)
    return cls(configuration.for_class(cls, own["config"]))


def _made(factory: Mapping[str, str]) -> nn.Module:
    """Return the module that a function makes; UserError for one that it has returned before, and for a compiled one.
    """
    made, name = factory_of(factory)(), factory["name"]
    if not isinstance(made, nn.Module):
        raise UserError(rule("compare", "model", "be a function that returns a torch module", type(made).__name__,
                             "Return the model itself."))
    if hasattr(made, "_orig_mod"):
        raise UserError(rule("compare", "model", "be a function that returns a module as it was before torch.compile",
                             name, "Return the module itself; --compile decides over torch.compile."))
    if made.__dict__.setdefault(_MADE, False):
        raise UserError(rule("compare", "model", "be a function that makes a new module at each call",
                             f"{name}, which returned the same one again", "Build the module inside the function."))
    made.__dict__[_MADE] = True
    return made


def model_class(own: Mapping[str, Any]) -> Any:
    """Return the class of ``transformers`` that builds the subject."""
    import transformers

    found = getattr(transformers, own["class"], None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise UserError(rule("compare", "model", "be of a class of models that transformers has", own["class"],
                             "Install the version that the study was made with."))
    return found


def _loaded(own: Mapping[str, Any]) -> Any:
    folder = Path(own["checkpoint"]["folder"])
    if weights_hash(folder) != own["checkpoint"]["sha256"]:
        raise UserError(rule("compare", "the checkpoint", "be the one that the study began with", str(folder),
                             "Restore its safetensors, or start a study in another folder."))
    configuration.must_open(folder)
    model, info = model_class(own).from_pretrained(folder, local_files_only=True, use_safetensors=True,
                                                   dtype=torch.float32, output_loading_info=True,
                                                   ignore_mismatched_sizes=True)
    unfit = sorted([*info["missing_keys"], *(found[0] for found in info["mismatched_keys"])])
    if unfit:  # they would be drawn anew, and the model not be the trained one
        raise UserError(rule("compare", "the checkpoint", f"hold every weight of {own['name']}, each in its shape",
                             f"{folder}, which does not hold {', '.join(unfit[:3])}"
                             f"{f' and {len(unfit) - 3} more' if len(unfit) > 3 else ''}",
                             "Pass the folder whose weights and config.json belong together."))
    model.nonlin_unused = sorted(info["unexpected_keys"])
    return model


def weights_hash(folder: Path) -> str:
    """Return the hash of all safetensors in a folder, by their names."""
    whole = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def factory_of(described: Mapping[str, str]) -> Any:
    """Return the function that a description names, its file unchanged; UserError where it is not there."""
    path = Path(described["file"])
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != described["sha256"]:
        raise UserError(rule("compare", "model", "be the function that the study began with",
                             f"{path}, which was changed or is gone", "Restore it, or start a study in another "
                             "folder."))
    name = f"nonlin_subject_{described['sha256'][:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        sys.path.insert(0, str(path.parent))
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise UserError(rule("compare", "model", "be in a file that other processes can run",
                                 f"{path} ({told(error)})",
                                 "Put what is to run at its call alone under if __name__ == '__main__'.")) from error
        finally:
            sys.path.remove(str(path.parent))
    return getattr(sys.modules[name], described["name"])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the bars and warnings of transformers off a worker's streams."""
    try:
        from transformers.utils import logging
    except ImportError:
        yield
        return
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def put_arm(model: nn.Module, own: Mapping[str, Any], definition: Definition, widths: Sequence[int], seed: int,
            stream: str | None = None) -> list[Replaced]:
    """Replace every block of the description by the arm's, drawn from the seed; return them.

    In a trained model the matrices stay, and a pointwise activation becomes the gate's where a block has one.
    """
    done = []
    for group, hidden in zip(own["blocks"], widths, strict=True):
        kept = definition
        if own.get("checkpoint") and group["gated"] and definition.kind == "pointwise":
            kept = gated_by(definition)
        for name in group["names"]:
            before = _tensors(model, name) if own.get("checkpoint") else {}
            block = replace(model, name, group, kept, hidden)
            if own.get("checkpoint"):
                _put_back(model, own, before)
            else:
                draw(block, group, seed, stream or definition.kind)
            done.append(block)
    return done


def _tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Return a trained block's own tensors, by their names in the model."""
    prefix = f"{name}." if name else ""
    return {prefix + path: value.detach() for path, value in model.get_submodule(name).named_parameters()}


@torch.no_grad()
def _put_back(model: nn.Module, own: Mapping[str, Any], trained: Mapping[str, Tensor]) -> None:
    now, beginnings = dict(model.named_parameters()), moved(own)
    for path, value in trained.items():
        inner = renamed(path, beginnings)
        if inner in now and now[inner].data_ptr() != value.data_ptr():
            now[inner].copy_(value)


def untouched(config: Mapping[str, Any]) -> OwnModel:
    """Return the subject's model of a run's configuration with the family's own blocks."""
    model, own = config["model"], config["model"]["own"]
    return OwnModel(family_model(own, config["seed"]), own, definition_named(config), (), (), model["context"],
                    config["machine"].get("dtype", "float32"))


def definition_named(config: Mapping[str, Any]) -> Definition:
    """Return the activation that a run's configuration names."""
    act = config["activation"]
    return define(act["name"], act["formula"]) if act.get("formula") else get(act["name"])


def build(config: Mapping[str, Any], definition: Definition) -> OwnModel:
    """Return the model of a run's configuration, on the CPU, in training mode."""
    own, seed = config["model"]["own"], config["seed"]
    inner = family_model(own, seed)
    replaced = put_arm(inner, own, definition, config["model"]["widths"], seed,
                       config.get("streams", {}).get("feed_forward"))
    inner.train()
    # Dropout draws from here on: the arms' numbers of hidden units differ, the seeds do not.
    torch.manual_seed(streams.torch_seed("dropout", seed))
    return OwnModel(inner, own, definition, replaced, config["model"]["widths"], config["model"]["context"],
                    config["machine"].get("dtype", "float32"))
