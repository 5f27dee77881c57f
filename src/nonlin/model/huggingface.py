"""Our model as a real Hugging Face checkpoint, and back: Qwen3 where the block is gated, Apertus where plain."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from nonlin.errors import UserError
from nonlin.functions import Definition, get
from nonlin.kernels.engine import EPS, TorchEngine
from nonlin.model.config import ModelConfig
from nonlin.model.language_model import ROPE_BASE, LanguageModel

# What transformers calls our activations inside a block: by the canonical name, or the gate's one.
_GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_pytorch_tanh", "reglu": "relu", "glu": "sigmoid",
          "bilinear": "linear"}
_PLAIN = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu", "relu_squared": "relu2",
          "mish": "mish", "quick_gelu": "quick_gelu", "tanh": "tanh", "sigmoid": "sigmoid", "identity": "linear",
          "relu6": "relu6", "laplace": "laplace", "gelu_10": "gelu_10", "hardswish": "hardswish",
          "leaky_relu": "leaky_relu"}


def _names(config: ModelConfig, gated: bool) -> dict[str, str]:
    """Map our parameter names to those of transformers."""
    norms = ("input_layernorm", "post_attention_layernorm") if gated else (
        "attention_layernorm", "feedforward_layernorm")
    names = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    if not config.tied:
        names["head.weight"] = "lm_head.weight"
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        names |= {f"{ours}attention_norm.weight": f"{theirs}{norms[0]}.weight",
                  f"{ours}feed_forward_norm.weight": f"{theirs}{norms[1]}.weight"}
        names |= {f"{ours}attention.{n}.weight": f"{theirs}self_attn.{n}_proj.weight" for n in "qkvo"}
        names |= {f"{ours}attention.{n}_norm.weight": f"{theirs}self_attn.{n}_norm.weight" for n in "qk"}
        parts = ("gate", "up", "down") if gated else ("up", "down")
        names |= {f"{ours}feed_forward.{n}.weight": f"{theirs}mlp.{n}_proj.weight" for n in parts}
    return names


def hidden_act(definition: Definition) -> str | None:
    """Return the name under which ACT2FN holds the (gate's) activation, or None where it has none.

    >>> hidden_act(get("swiglu")), hidden_act(get("relu_squared")), hidden_act(get("swiglu_oai"))
    ('silu', 'relu2', None)
    """
    if definition.parameters:
        return None  # their checkpoints would lack the learned values' names
    names = _GATED if definition.kind == "gated" else _PLAIN
    for ours, theirs in names.items():
        # A user's own name for a known formula is that formula.
        if definition.name == ours or (definition.user_defined and definition.expr == get(ours).expr):
            return theirs
    return None


def _huggingface_config(config: ModelConfig, gated: bool, act: str) -> dict[str, Any]:
    common = {
        "vocab_size": config.vocabulary, "hidden_size": config.dim, "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_width, "hidden_act": act,
        "max_position_embeddings": config.context, "rms_norm_eps": EPS, "tie_word_embeddings": config.tied,
        "attention_bias": False, "attention_dropout": 0.0, "use_cache": True, "dtype": "float32",
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        "rope_theta": ROPE_BASE, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }
    kind = ("qwen3", "Qwen3ForCausalLM") if gated else ("apertus", "ApertusForCausalLM")
    return {"model_type": kind[0], "architectures": [kind[1]], **common}


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def export_model(model: LanguageModel, folder: Path) -> dict[str, str]:
    """Save the model to ``folder`` and return {"format", "architecture", "note"}.

    A Hugging Face checkpoint where ``ACT2FN`` has the activation and the model is no variant for experiments;
    otherwise our own form (the same tensors under our names, ``nonlin.json`` beside them) and a note that says so.
    Weights are safetensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    gated, act = model.definition.kind == "gated", hidden_act(model.definition)
    state = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    if act is None or model.config.variant:
        definition = model.definition
        described = {"format": 1, "model": vars(model.config), "activation": {
            "name": definition.name, "formula": definition.formula if definition.user_defined else None}}
        save_file(state, folder / "model.safetensors.tmp")
        os.replace(folder / "model.safetensors.tmp", folder / "nonlin.safetensors")
        _write(folder / "nonlin.json", json.dumps(described, indent=1))
        missing = f"activation {definition.name!r}" if act is None else "architecture for this variant"
        note = f"transformers has no {missing}: saved in nonlin's own form, which nonlin.model.import_model reads."
        return {"format": "nonlin", "architecture": "nonlin.LanguageModel", "note": note}
    names = _names(model.config, gated)
    save_file({names[name]: value for name, value in state.items()}, folder / "model.safetensors.tmp",
              metadata={"format": "pt"})
    os.replace(folder / "model.safetensors.tmp", folder / "model.safetensors")
    described = _huggingface_config(model.config, gated, act)
    _write(folder / "config.json", json.dumps(described, indent=1))
    return {"format": "huggingface", "architecture": described["architectures"][0],
            "note": "loads with transformers.AutoModelForCausalLM.from_pretrained"}


def import_model(folder: Path, engine: TorchEngine | None = None) -> LanguageModel:
    """Load what :func:`export_model` wrote, in either form. Raises UserError where it is something else."""
    try:
        if (folder / "nonlin.json").exists():
            described = json.loads((folder / "nonlin.json").read_text())
            name, formula = described["activation"]["name"], described["activation"]["formula"]
            config = ModelConfig(**described["model"])
            model = LanguageModel(config, _definition(name, formula), engine)
            state = load_file(folder / "nonlin.safetensors")
        else:
            described = json.loads((folder / "config.json").read_text())
            model, state = _from_huggingface(described, load_file(folder / "model.safetensors"), engine)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"import_model: {folder} must hold a model that nonlin exported; {error}. "
                        "Export it again, or pass another folder.") from error
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[name])
    return model


def _definition(name: str, formula: str | None) -> Definition:
    from nonlin.functions import define

    return define(name, formula) if formula else get(name)


def _from_huggingface(described, tensors, engine):
    gated = described["model_type"] == "qwen3"
    if described["model_type"] not in ("qwen3", "apertus"):
        raise ValueError(f"model_type is {described['model_type']!r}, neither qwen3 nor apertus")
    table = {act: name for name, act in (_GATED if gated else _PLAIN).items()}
    config = ModelConfig(
        layers=described["num_hidden_layers"], dim=described["hidden_size"], heads=described["num_attention_heads"],
        kv_heads=described["num_key_value_heads"], context=described["max_position_embeddings"],
        vocabulary=described["vocab_size"], hidden=described["intermediate_size"],
        tied=described["tie_word_embeddings"])
    model = LanguageModel(config, get(table[described["hidden_act"]]), engine)
    return model, {ours: tensors[theirs] for ours, theirs in _names(config, gated).items()}
