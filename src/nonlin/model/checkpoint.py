"""Our model as a real Hugging Face checkpoint, and back: Qwen3 where the block is gated, Apertus where plain."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nonlin.errors import UserError, not_empty, rule
from nonlin.files import replacing, write_atomically
from nonlin.functions import Definition, get
from nonlin.functions.registry import gated_by
from nonlin.kernels.transformer.torch_engine import EPS, TorchEngine
from nonlin.model.act2fn_names import CONSTANTS, LEARNED, hidden_act
from nonlin.model.config import ModelConfig, parameter_count
from nonlin.model.folder import must_be_regular, must_fit, read_config, read_json, stored_sizes, weight_files
from nonlin.model.language_model import ROPE_BASE, LanguageModel

_POSITIONS = 1 << 28  # numbers of a table of rotary positions


def _names(config: ModelConfig, definition: Definition) -> dict[str, str]:
    """Map our parameter names to those of transformers."""
    gated = definition.kind == "gated"
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
        names |= {f"{ours}feed_forward.activation.{a}": f"{theirs}mlp.act_fn.{b}"
                  for a, b in LEARNED.get(definition.name, {}).items()}
    return names


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


def export_model(model: LanguageModel, folder: Path) -> dict[str, str]:
    """Save the model to ``folder`` and return {"format", "architecture", "note"}.

    A Hugging Face checkpoint where ``ACT2FN`` has the activation and the model is no variant for experiments. Otherwise
    it is our own form (the same tensors under our names, ``nonlin.json`` beside them) and a note that says so. Weights
    are safetensors. A model that was exported there before is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("nonlin.json", "nonlin.safetensors", "config.json", "model.safetensors"):
        (folder / name).unlink(missing_ok=True)
    gated, act = model.definition.kind == "gated", hidden_act(model.definition)
    state = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    if act is None or model.config.variant:
        definition = model.definition
        described = {"format": 1, "model": vars(model.config), "activation": {
            "name": definition.name, "formula": definition.formula if definition.user_defined else None}}
        with replacing(folder / "nonlin.safetensors") as temporary:
            save_file(state, temporary)
        write_atomically(folder / "nonlin.json", json.dumps(described, indent=1))
        missing = f"activation {definition.name!r}" if act is None else "architecture for this variant"
        note = f"transformers has no {missing}: saved in nonlin's own form, which nonlin.model.import_model reads."
        return {"format": "nonlin", "architecture": "nonlin.LanguageModel", "note": note}
    names = _names(model.config, model.definition)
    constants = {f"model.layers.{i}.mlp.act_fn.{name}": torch.tensor(value) for i in range(model.config.layers)
                 for name, value in CONSTANTS.get(model.definition.name, {}).items()}
    with replacing(folder / "model.safetensors") as temporary:
        save_file({names[name]: value for name, value in state.items()} | constants, temporary,
                  metadata={"format": "pt"})
    described = _huggingface_config(model.config, gated, act)
    write_atomically(folder / "config.json", json.dumps(described, indent=1))
    return {"format": "huggingface", "architecture": described["architectures"][0],
            "note": "loads with transformers.AutoModelForCausalLM.from_pretrained"}


def import_model(folder: str | Path, engine: TorchEngine | None = None) -> LanguageModel:
    """Load what :func:`export_model` wrote, in either form, or a Qwen3 or Apertus checkpoint that is the same model.

    Weights are safetensors, in one file or several, of any float dtype; the model is float32. Raises UserError, with
    the reason, for another architecture and for features that this model lacks. Those are other rotary positions than
    base 10,000 without scaling, another epsilon, biases, sliding windows, heads of another width. So are attention
    dropout, quantized weights, an activation that is not known, xIELU with other constants.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise UserError(rule("import_model", "folder", "be a path", folder, "Pass the folder of a model."))
    not_empty("import_model", folder=folder)
    folder = Path(folder)
    try:
        must_be_regular(folder)
        if (folder / "nonlin.json").exists():
            described = read_json(folder / "nonlin.json")
            stored = stored_sizes([folder / "nonlin.safetensors"])
            must_fit(described["model"], *stored)
            definition = _definition(described["activation"]["name"], described["activation"]["formula"])
            config = ModelConfig(**described["model"])
            _must_be_there(config, definition, stored[1])
            model = LanguageModel(config, definition, engine)
            state = load_file(folder / "nonlin.safetensors")
        else:
            model, state = _from_huggingface(_described(folder), _tensors(folder), engine)
        put_weights(model, state)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, ArithmeticError, SafetensorError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"import_model: {folder} must hold a model that nonlin exported, or a Qwen3 or Apertus that it "
                        f"can compute; {why}. Pass another folder, or use the model through transformers.") from error
    return model


def _must_be_there(config: ModelConfig, definition: Definition, numbers: int) -> None:
    """Raise ValueError where the model would be much larger than its files, before its memory is taken.

    Single weights of a wrong shape are named later, by :func:`put_weights`.
    """
    wanted = parameter_count(config, definition.gated)
    if wanted > 2 * numbers:
        raise ValueError(f"its sizes make {wanted:,} parameters, and the files hold {numbers:,} numbers")
    if config.context * config.head_width > _POSITIONS:
        raise ValueError(f"a context of {config.context:,} tokens is beyond what nonlin's model tabulates")


@torch.no_grad()
def put_weights(model: LanguageModel, state: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors into the model's parameters of the same names. KeyError or ValueError where they do not fit."""
    for name, parameter in model.named_parameters():
        if state[name].shape != parameter.shape:
            raise ValueError(f"{name} has the shape {tuple(state[name].shape)}, not {tuple(parameter.shape)}")
        parameter.copy_(state[name])


def _definition(name: str, formula: str | None) -> Definition:
    from nonlin.functions import define

    return define(name, formula) if formula else get(name)


def _described(folder: Path) -> dict[str, Any]:
    """The configuration with its defaults filled in, which the file leaves out; those are transformers' to know."""
    raw = read_config(folder)
    must_fit(raw, *stored_sizes(weight_files(folder)))
    kind = raw["model_type"]
    if kind not in ("qwen3", "apertus"):
        raise ValueError(f"model_type is {kind!r}, neither qwen3 nor apertus")
    try:
        import transformers
    except ImportError:
        return raw  # nonlin's own exports write every field that is read
    made = getattr(transformers, {"qwen3": "Qwen3Config", "apertus": "ApertusConfig"}[kind])
    try:
        return made(**raw).to_dict()
    except Exception as error:  # each version of transformers checks fields in its own way
        raise ValueError(f"its configuration is none: {' '.join(str(error).split())[:160]}") from error


def _tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}


def _lacking(described: dict[str, Any]) -> list[str]:
    """List the configuration's features that this model does not have."""
    rope = described.get("rope_parameters") or {"rope_theta": described.get("rope_theta", ROPE_BASE)}
    width = described["hidden_size"] // described["num_attention_heads"]
    windows = sorted(set(described.get("layer_types") or ()) - {"full_attention"})
    checks = {
        f"rotary positions of type {rope.get('rope_type')!r}": rope.get("rope_type", "default") != "default",
        f"a rotary base of {rope.get('rope_theta')}": rope.get("rope_theta", ROPE_BASE) != ROPE_BASE,
        f"rms_norm_eps {described['rms_norm_eps']}": described["rms_norm_eps"] != EPS,
        f"heads of width {described.get('head_dim')} in a width of {described['hidden_size']}":
            (described.get("head_dim") or width) != width,
        "biases": bool(described.get("attention_bias") or described.get("mlp_bias")),
        f"sliding windows ({', '.join(windows) or 'use_sliding_window'})":
            bool(windows or described.get("use_sliding_window")),
        f"attention dropout {described.get('attention_dropout')}": bool(described.get("attention_dropout")),
        "quantized weights": bool(described.get("quantization_config")),
    }
    return [what for what, there in checks.items() if there]


def _from_huggingface(described: dict[str, Any], tensors: dict[str, Tensor], engine: TorchEngine | None
                      ) -> tuple[LanguageModel, dict[str, Tensor]]:
    gated, act = described["model_type"] == "qwen3", described["hidden_act"]
    lacking = _lacking(described)
    if lacking:
        raise ValueError(f"this one has {'; '.join(lacking)}, which nonlin's model has not")
    definition = _act_definition(act, gated)
    if act == "xielu":
        _check_xielu(tensors)
    heads = described["num_attention_heads"]
    config = ModelConfig(
        layers=described["num_hidden_layers"], dim=described["hidden_size"], heads=heads,
        kv_heads=described.get("num_key_value_heads") or heads, context=described["max_position_embeddings"],
        vocabulary=described["vocab_size"], hidden=described["intermediate_size"],
        tied=bool(described["tie_word_embeddings"]))
    _must_be_there(config, definition, sum(tensor.numel() for tensor in tensors.values()))
    model, names = LanguageModel(config, definition, engine), _names(config, definition)
    beside = {name for name in tensors if act == "xielu" and name.endswith((".act_fn.beta", ".act_fn.eps"))}
    unknown = sorted(set(tensors) - set(names.values()) - beside - ({"lm_head.weight"} if config.tied else set()))
    if unknown:
        raise ValueError(f"its weights hold {unknown[0]!r}, which nonlin's model has not")
    return model, {ours: tensors[theirs] for ours, theirs in names.items()}


def _act_definition(act: str, gated: bool) -> Definition:
    """The activation of a block whose configuration says ``act``: that, or the gated one whose gate it is."""
    pointwise = get(act)  # raises, with near matches, for what is not known
    if pointwise.parameters and (gated or pointwise.name not in LEARNED):
        raise ValueError(f"its activation {act!r} has learned values that nonlin's model keeps under other names")
    if not gated:
        return pointwise
    return gated_by(pointwise)


def _check_xielu(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        constant = CONSTANTS["xielu"].get(name.rpartition(".")[2]) if ".act_fn." in name else None
        # eps is rounded where the checkpoint is in bfloat16, and moves the function by less than its own size.
        if constant is not None and abs(float(tensor) - constant) > 1e-8:
            raise ValueError(f"{name} is {float(tensor):.6g}; nonlin's xIELU has {constant:g}")
