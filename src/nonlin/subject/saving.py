"""A subject's trained model on disk: as a checkpoint of its family where that can express it, else in our own form.

A family's checkpoint is proved: a process that never imports nonlin loads it and gives the same logits.
"""

import copy
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nonlin.files import replacing, write_atomically
from nonlin.functions.registry import gate_of
from nonlin.model.act2fn_names import hidden_act
from nonlin.patching.configuration import tree
from nonlin.patching.written import candidates
from nonlin.subject import building, configuration
from nonlin.subject.model import OwnModel
from nonlin.subject.naming import moved, renamed

FORM, WEIGHTS = "nonlin.json", "nonlin.safetensors"
_SECONDS = 600.0  # for a process that loads a checkpoint
_EQUAL = 1e-4  # of the logits' norm: the activation is computed by another kernel
_PROOF = textwrap.dedent("""
    import json, sys
    import torch, transformers
    from safetensors.torch import load_file, save_file
    folder = sys.argv[1]
    name = json.load(open(f"{folder}/config.json"))["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    tokens = load_file(f"{folder}/proof.safetensors")["tokens"]
    with torch.no_grad():
        logits = model(tokens, **json.loads(sys.argv[2])).logits
    assert not any(name.split(".")[0] == "nonlin" for name in sys.modules)
    save_file({"logits": logits.float().contiguous()}, f"{folder}/logits.safetensors")
""")


class Inexpressible(Exception):
    """Why a family's checkpoint cannot hold an arm's model."""


def save(model: OwnModel, folder: Path, prove: bool = True) -> dict[str, str]:
    """Save the model to ``folder`` and return {"format", "architecture", "note"}.

    A checkpoint of its family, or our own form with the reason beside it, which :func:`nonlin.load` opens. It
    replaces what an earlier call saved there. ``prove`` runs the process without nonlin that loads a checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (FORM, WEIGHTS, "config.json", "generation_config.json", "model.safetensors"):
        (folder / name).unlink(missing_ok=True)
    model = model.eval()
    try:
        _save_family(model, folder, prove)
    except Inexpressible as error:
        return _save_form(model, folder, str(error))
    return {"format": "huggingface", "architecture": str(model.own["name"]),
            "note": "loads with transformers.AutoModelForCausalLM.from_pretrained" + (
                ", as a process without nonlin showed" if prove else "")}


def _save_form(model: OwnModel, folder: Path, reason: str) -> dict[str, str]:
    definition, own = model.definition, dict(model.own)
    trained = bool(own.pop("checkpoint", None))
    described = {"format": 2, "own": own, "trained": trained, "widths": model.widths, "context": model.context,
                 "activation": {"name": definition.name,
                                "formula": definition.formula if definition.user_defined else None},
                 "reason": reason}
    state = {name: value.detach().contiguous() for name, value in model.inner.named_parameters()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(state, temporary)
    write_atomically(folder / FORM, json.dumps(described, indent=1))
    return {"format": "nonlin", "architecture": str(own["name"]), "note": f"{reason}: nonlin.load(folder) opens it"}


def _save_family(model: OwnModel, folder: Path, prove: bool) -> None:
    """Write the family's checkpoint; raise Inexpressible, with nothing written, where there is none."""
    made = _expressed(model)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as inside:  # the folder may hold more than ours
        fresh = Path(inside)
        try:
            with building.quiet():
                made.save_pretrained(fresh)
            if prove:
                _prove(model, fresh)
        except Inexpressible:
            raise
        except Exception as error:  # a class of any maker
            raise Inexpressible(f"saving {model.own['name']} raised {type(error).__name__}") from error
        for path in sorted(fresh.iterdir()):
            os.replace(path, folder / path.name)


def _expressed(model: OwnModel) -> Any:
    """Return the family's own model with the arm's function and weights; raise Inexpressible where there is none."""
    own = model.own
    if own["kind"] != "transformers":
        raise Inexpressible("transformers does not build this model")
    if any(group["gated"] != block.definition.gated for group, _, block in _groups(model)):
        raise Inexpressible(f"the family's blocks have {'no' if model.gated else 'a'} gate")
    if any(group["hidden"] != width for group, width, _ in _groups(model)):
        raise Inexpressible("the blocks have another width than the configuration says")
    definition = model.replaced[0].definition
    act = gate_of(definition) if definition.gated else definition
    name = None if act is None or definition.parameters else hidden_act(act)
    same = all(group["computes"] == block.definition.name for group, _, block in _groups(model))
    if name is None and not same:
        raise Inexpressible(f"transformers has no activation {definition.name!r}")
    tokens = _tokens(model)
    with torch.no_grad():
        truth = model(tokens).float()
    why = "no field of its configuration changes the blocks alone"
    for config in _configurations(own, name, same):
        try:
            with building.quiet():
                made = building.model_class(own)(config).float().eval()
            _fill(made, model)
            with torch.no_grad():
                off = _off(made(tokens, **model.options).logits.float(), truth)
        except Exception as error:  # classes check their fields, each in its own way
            why = f"its class cannot be built with {name!r} ({type(error).__name__})"
            continue
        if off <= _EQUAL:
            return made
    raise Inexpressible(why)


def _groups(model: OwnModel) -> Iterator[tuple[Mapping[str, Any], int, Any]]:
    blocks = iter(model.replaced)
    for group, width in zip(model.own["blocks"], model.widths, strict=True):
        for _ in group["names"]:
            yield group, width, next(blocks)


def _configurations(own: Mapping[str, Any], name: str | None, same: bool) -> Iterator[Any]:
    """Yield configurations that may name the activation: the family's own, all fields changed, each alone."""
    plain = configuration.for_class(building.model_class(own), own["config"])
    if same:
        yield plain
    if name is None:
        return
    fields = candidates(plain, name)
    for chosen in ([fields] if len(fields) == 1 else [fields, *([f] for f in fields)]):
        config = copy.deepcopy(plain)
        inner = dict(tree(config))
        for field in chosen:
            setattr(inner[field.path], field.name, field.now)
        if chosen:
            yield config


@torch.no_grad()
def _fill(made: nn.Module, model: OwnModel) -> None:
    """Give a model of the family the tensors of ours; raise KeyError or ValueError where they do not fit."""
    back = {ours: theirs for theirs, ours in moved(model.own).items()}
    ours = {renamed(name, back): value for name, value in model.inner.named_parameters()}
    buffers = dict(model.inner.named_buffers())
    for name, value in made.named_parameters():
        if ours[name].shape != value.shape:
            raise ValueError(name)
        value.copy_(ours[name])
    for name, value in made.named_buffers():
        if name in buffers and buffers[name].shape == value.shape:
            value.copy_(buffers[name])


def _tokens(model: OwnModel) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, model.own["vocabulary"], (1, min(16, model.context)), generator=draw)


def _prove(model: OwnModel, folder: Path) -> None:
    """Load the folder in a process of its own, without nonlin, and compare logits; raise Inexpressible."""
    tokens = _tokens(model)
    save_file({"tokens": tokens}, folder / "proof.safetensors")
    run = subprocess.run([sys.executable, "-I", "-c", _PROOF, str(folder), json.dumps(model.options)],
                         capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
    if run.returncode:
        last = (run.stderr.strip() or "no message").splitlines()[-1]
        raise Inexpressible(f"a process without nonlin cannot load its checkpoint ({last[:160]})")
    with torch.no_grad():
        ours, theirs = model(tokens).float(), load_file(folder / "logits.safetensors")["logits"]
    off = _off(theirs, ours)
    for name in ("proof.safetensors", "logits.safetensors"):
        (folder / name).unlink()
    if off > _EQUAL:
        raise Inexpressible(f"a process without nonlin computes other logits from its checkpoint ({off:.2g} of their "
                            "norm)")


def _off(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm().clamp(min=1e-30))
