"""A subject's trained model on disk: as a checkpoint of its family where that can express it, else in our own form."""

import json
from pathlib import Path

from safetensors.torch import save_file

from nonlin.files import replacing, write_atomically
from nonlin.subject.model import OwnModel

FORM, WEIGHTS = "nonlin.json", "nonlin.safetensors"


def save(model: OwnModel, folder: Path) -> dict[str, str]:
    """Save the model to ``folder`` and return {"format", "architecture", "note"}."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().contiguous() for name, value in model.inner.named_parameters()}
    definition = model.definition
    described = {"format": 2, "own": dict(model.own), "widths": model.widths, "context": model.context, "activation": {
        "name": definition.name, "formula": definition.formula if definition.user_defined else None}}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(state, temporary)
    write_atomically(folder / FORM, json.dumps(described, indent=1))
    return {"format": "nonlin", "architecture": str(model.own["name"]), "note": "nonlin.load(folder) opens it"}
