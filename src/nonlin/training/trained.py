"""The trained model of a finished run: opened again, sampled from, exported."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from nonlin import streams
from nonlin.data import Dataset
from nonlin.errors import UserError
from nonlin.model import export_model
from nonlin.model.checkpoint import put_weights
from nonlin.model.language_model import LanguageModel
from nonlin.subject.continuing import Continuing
from nonlin.subject.model import OwnModel
from nonlin.subject.saving import save as save_own
from nonlin.training.limits import must_open
from nonlin.training.trial import WEIGHTS, build_model


def load_trained(trial_dir: Path) -> Any:
    """Return the trained model of a finished trial's folder, on the CPU, computed by torch.

    It is a :class:`nonlin.model.LanguageModel`, or a :class:`nonlin.subject.OwnModel` around the user's own.
    """
    try:
        config = json.loads((trial_dir / "config.json").read_text())
        config["machine"] = {"engine": "torch", "dtype": "float32", "threads": 1}
        must_open(config)
        model = build_model(config)
        put_weights(model, load_file(trial_dir / WEIGHTS))
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise UserError(f"{trial_dir} must hold a finished, judged trial; {error}. "
                        "Continue the study to finish it.") from error
    return model.eval()


@torch.no_grad()
def sample(trial_dir: Path, dataset_dir: Path, prompt: str, length: int = 200, temperature: float = 0.8,
           seed: int = 0) -> str:
    """Return ``prompt`` continued by ``length`` tokens of the trial's model; temperature 0 takes the likeliest.

    Where a token opens each document of the text, it opens the prompt, and the text ends where the model opens another.
    """
    model, dataset = load_trained(trial_dir), Dataset(dataset_dir)
    context = json.loads((trial_dir / "config.json").read_text())["model"]["context"]
    generator = torch.Generator().manual_seed(streams.torch_seed("sampling", seed))
    end = dataset.info.get("end")
    opening = [] if end is None else [int(end)]
    tokens = opening + list(dataset.encode(prompt)) or list(dataset.encode("\n")) or [0]
    start = len(tokens) if prompt or opening else 0
    following = Continuing(model, context).logits if isinstance(model, OwnModel) else \
        lambda tokens: model(torch.tensor([tokens[-context:]]))[0, -1]
    for _ in range(length):
        logits = following(tokens)[:dataset.info["vocabulary"]]  # a model may have more
        if temperature <= 0:
            token = int(logits.argmax())
        else:
            # In float64, and the likeliest at 0: the smallest temperatures would be 0 in float32, and divide by it
            weights = torch.softmax((logits - logits.max()).double() / temperature, dim=-1).float()
            token = int(torch.multinomial(weights, 1, generator=generator))
        if token == end:
            break
        tokens.append(token)
    return prompt + dataset.decode(tokens[start:])


def export_winner(trial_dir: Path, dataset_dir: Path, out_dir: Path) -> dict[str, str]:
    """Save a trial's model to ``out_dir`` (see :func:`nonlin.model.export_model`), its tokenizer beside it."""
    model = load_trained(trial_dir)
    described = export_model(model, out_dir) if isinstance(model, LanguageModel) else save_own(model, out_dir)
    tokenizer = dataset_dir / "tokenizer.json"
    if tokenizer.exists():
        (out_dir / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return described
