"""``nonlin.load``: a model from its folder, in any form that nonlin writes or transformers reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from nonlin.errors import UserError, not_empty, rule
from nonlin.model.folder import Unfit, must_be_few, read_json, stored_sizes
from nonlin.patching import bounded, loading
from nonlin.patching.loading import Loaded
from nonlin.subject.building import count, definition_named, family_model, put_arm
from nonlin.subject.saving import FORM, WEIGHTS
from nonlin.subject.vouching import vouched


def load(folder: str | Path, *, trust_remote_code: bool = False) -> nn.Module:
    """Return the model in a folder, in float32 and evaluation mode, on the CPU.

    The folder is one that nonlin wrote (a study's ``model``, in any form), or a Hugging Face folder. A model of a
    study inside the user's own is that model's own class, with the arm's blocks. Nothing is fetched and nothing
    unpickled. A model that a function returns needs ``trust_remote_code`` where you have not passed that function here:
    the folder names its file, which runs.

    Raises UserError where there is no model that can be loaded.
    """
    return loaded(folder, trust_remote_code=trust_remote_code, call="load").model


def loaded(where: Any, *, dtype: torch.dtype = torch.float32, device: str | None = None,
           trust_remote_code: bool = False, call: str = "load") -> Loaded:
    """Return the model, its tokenizer and what is to be said of it; as :func:`nonlin.patching.load`, our forms too."""
    not_empty(call, MODEL=where, device=device)
    path = _form(where)
    if path is None:
        return loading.load(where, dtype=dtype, device=device, trust_remote_code=trust_remote_code, call=call)
    found = Loaded(_opened(path, call, trust_remote_code).to(dtype), None, str(path))
    if path != Path(where):
        found = replace(found, notes=("the folder is a study's: this is the model that it exported",))
    if device:
        found.model.to(device)
    return found


def _form(where: Any) -> Path | None:
    """Return the folder that holds our form of a user's model: the one given, or a study's model; None for none."""
    if not isinstance(where, (str, Path)):
        return None
    for path in (Path(where), Path(where) / "model"):
        if (path / FORM).is_file():
            try:
                return path if read_json(path / FORM).get("format") == 2 else None
            except Unfit:
                return None
    return None


def _opened(path: Path, call: str, trust: bool) -> nn.Module:
    """Return the model of our form."""
    try:
        described = read_json(path / FORM)
        own = {key: value for key, value in described["own"].items() if key != "checkpoint"}
        if "factory" in own and not (trust or vouched(own["factory"])):
            raise UserError(rule(call, "MODEL", "need no code of its own",
                                 f"{path}: {FORM} names {own['factory']['name']!s:.80} in "
                                 f"{own['factory']['file']!s:.200}",
                                 "Read that code, then pass --trust-remote-code (trust_remote_code=True) if you "
                                 "agree."))
        must_be_few(own.get("config", {}))
        count(own, bounded.as_stored(*stored_sizes([path / WEIGHTS])))
        model = family_model(own, 0)
        put_arm(model, own | ({"checkpoint": True} if described["trained"] else {}), definition_named(described),
                described["widths"], 0)
        tensors = load_file(path / WEIGHTS)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if tensors[name].shape != value.shape:
                    raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}, not {tuple(value.shape)}")
                value.copy_(tensors[name])
    except UserError:
        raise
    except bounded.TooLarge as error:
        raise UserError(f"{call}: {path} must {error}. Export the model again.") from error
    except (Exception, SystemExit) as error:  # whatever stands in the file, and a class of any maker
        why = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise UserError(rule(call, "MODEL", "be a whole folder that nonlin wrote", f"{path} ({why})",
                             "Export the model again, or pass another folder.")) from error
    return model.eval()
