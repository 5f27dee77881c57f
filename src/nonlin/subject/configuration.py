"""A configuration of ``transformers``: read from where it lies, or made of an architecture's name and sizes.

Nothing is fetched, and code that a folder brings along is not run.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonlin.errors import UserError, rule, unknown_name
from nonlin.model import folder
from nonlin.patching.location import code_of, must_not_be_quantized

_CALL = "compare"
#: Fields of sizes, beside transformers' common names; the layers and heads of a decoder that has an encoder come first.
LAYERS = ("decoder_layers", "num_decoder_layers", "num_hidden_layers")
_HEADS = ("decoder_attention_heads", "num_decoder_attention_heads")
HIDDEN = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "n_inner", "ffn_dim",
          "decoder_ffn_dim", "ffn_hidden_size", "dff", "word_embed_proj_dim")
_NOT_COUNTED = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")


def described(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"class", "config", "sha256"} of a path, of values, or of a name with sizes; UserError for none."""
    if "name" in wanted:
        config, shown = _of_name(wanted["name"], wanted["sizes"]), wanted["name"]
    else:
        shown = str(wanted.get("path", "the configuration"))
        config = _of_values(wanted["config"] if "config" in wanted else _read(Path(shown)), shown)
    cls = class_of(config, shown)
    counted = values_of(config)
    text = json.dumps(counted, sort_keys=True, separators=(",", ":"))
    return {"class": cls.__name__, "config": counted, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def values_of(config: Any) -> dict[str, Any]:
    """Return the values of a configuration that decide what it builds, as JSON can write them."""
    values = json.loads(json.dumps(config.to_dict(), default=str, sort_keys=True))
    return {key: _as_json(value) for key, value in values.items() if key not in _NOT_COUNTED}


def sizes_by_default(name: str, vocabulary: int, context: int) -> dict[str, Any]:
    """Return the sizes that an architecture has where nobody says them, but for the vocabulary and the context."""
    plain = _plain(name)
    heads = getattr(plain, "num_attention_heads", None) or 1
    return {"layers": getattr(plain, "num_hidden_layers", None), "dim": getattr(plain, "hidden_size", heads),
            "heads": heads, "kv_heads": getattr(plain, "num_key_value_heads", None) or heads, "context": context,
            "vocabulary": vocabulary}


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"{_CALL}: --model must have the package transformers to build it; it is not installed. "
                        "Install it: pip install 'nonlin[hf]'.") from error
    return transformers


def configuration(values: Mapping[str, Any]) -> Any:
    """Return the configuration of these values, of the class that their model_type names.

    They may be a plan's, which anybody can write: UserError for counts that no model has, and for code.
    """
    _must_be_few(values, "its configuration")
    must_need_no_code(values, "its configuration")
    transformers = _transformers()
    return transformers.AutoConfig.for_model(**{key: _as_python(value) for key, value in values.items()})


def _as_json(value: Any) -> Any:
    """Return a value that JSON can write: infinite numbers, which some configurations hold, become their names.

    >>> _as_json([0.0, float("inf")]), _as_python(_as_json([0.0, float("inf")]))
    ([0.0, {'number': 'inf'}], [0.0, inf])
    """
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    if isinstance(value, list):
        return [_as_json(one) for one in value]
    return {key: _as_json(one) for key, one in value.items()} if isinstance(value, dict) else value


def _as_python(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_python(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    return float(value["number"]) if set(value) == {"number"} else {k: _as_python(v) for k, v in value.items()}


def for_class(cls: Any, values: Mapping[str, Any]) -> Any:
    """Return the configuration that a class takes: of a model of several kinds of input, that of its text."""
    config = configuration(values)
    text = getattr(type(config), "sub_configs", {}).get("text_config")
    return config.get_text_config() if text is not None and getattr(cls, "config_class", None) is text else config


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_dir():
            return folder.read_json(path)
        folder.must_be_regular(path)
        return folder.read_config(path)
    except folder.Unfit as error:
        raise UserError(f"{_CALL}: model {path} must {error}. Pass a config.json of transformers, or the folder that "
                        "holds one.") from error
    except OSError as error:
        raise UserError(f"{_CALL}: model must be a file that can be read; {error}. Check its path.") from error


def _of_values(raw: Mapping[str, Any], shown: str) -> Any:
    """Return the configuration of these values; UserError for one that nonlin does not build."""
    kind = raw.get("model_type")
    _must_be_few(raw, shown)
    must_need_no_code(raw, shown)
    must_not_be_quantized(raw, _CALL)
    if not isinstance(kind, str):
        raise UserError(rule(_CALL, "model", "have a model_type in its config.json", shown,
                             "Pass a configuration of transformers."))
    _known(kind)
    try:
        return configuration(raw)
    except Exception as error:  # each class checks its fields in its own way
        raise UserError(f"{_CALL}: model {shown} must be a configuration that transformers can read; "
                        f"{' '.join(str(error).split())[:200]}. Correct the field.") from error


def must_open(path: Path) -> None:
    """Raise UserError where the configuration in a folder would run code; it may have changed since it was planned."""
    must_need_no_code(_read(path), str(path))


def must_need_no_code(values: Mapping[str, Any], shown: str) -> None:
    """Raise UserError where a configuration asks for code of its own, or for a kernel that would be fetched."""
    if code := code_of(values):
        raise UserError(rule(_CALL, "model", "need no code of its own", f"{shown}: it names {code}",
                             "Remove it where transformers has the architecture, or pass nonlin.compare a "
                             "function that returns the module."))


def _must_be_few(values: Mapping[str, Any], shown: str) -> None:
    try:
        folder.must_be_few(values)
    except folder.Unfit as error:
        raise UserError(f"{_CALL}: model {shown} must {error}. Correct it.") from error


def _known(kind: str) -> None:
    from transformers.models.auto import configuration_auto

    known: Any = configuration_auto.CONFIG_MAPPING_NAMES  # pyright: ignore[reportPrivateImportUsage]
    if kind not in known:
        unknown = unknown_name(f"architecture of transformers {_version()}", kind, list(known))
        raise UserError(f"{_CALL}: model: {unknown}")  # a process of its own says it: of its errors the text arrives


def _version() -> str:
    return str(_transformers().__version__)


def class_of(config: Any, shown: str) -> Any:
    """Return the causal language model class of a configuration; UserError where it has none."""
    transformers = _transformers()
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as known

    kinds = (type(config), getattr(type(config), "sub_configs", {}).get("text_config"))
    named = [name for name in getattr(config, "architectures", None) or [] if name in known.values()
             and getattr(getattr(transformers, name, None), "config_class", None) in kinds]
    name = named[0] if named else known.get(config.model_type)
    if name is None or not hasattr(transformers, name):
        raise UserError(rule(_CALL, "model", "be a causal language model's", f"{shown}, whose model_type is "
                             f"{config.model_type!r}", "Pass the configuration of a decoder, such as qwen3."))
    return getattr(transformers, name)


def _plain(name: str) -> Any:
    """Return an architecture's configuration of its sizes by default."""
    _known(name)
    try:
        return _transformers().AutoConfig.for_model(name)
    except Exception as error:
        raise UserError(f"{_CALL}: model must be an architecture with sizes by default; got {name!r} ("
                        f"{' '.join(str(error).split())[:160]}). Pass its config.json.") from error


def _of_name(name: str, sizes: Mapping[str, Any]) -> Any:
    plain = _plain(name)
    try:
        return type(plain)(**_sized(plain, sizes))
    except Exception as error:
        raise UserError(f"{_CALL}: layers, dim, heads, kv-heads and context must make a model of {name}; got "
                        f"{dict(sizes)} ({' '.join(str(error).split())[:160]}). Choose other sizes, or pass its "
                        "config.json.") from error


def sets_heads(config: Any) -> bool:
    """Whether a configuration says how wide a head is, beside the width and the number of heads."""
    return hasattr(config, "head_dim") and not isinstance(getattr(type(config), "head_dim", None), property)


def decoder(config: Any, layers: int, heads: int) -> dict[str, int]:
    """Return the fields that give a decoder its layers and heads where the common names are those of its encoder."""
    values = {**dict.fromkeys(LAYERS[:-1], layers), **dict.fromkeys(_HEADS, heads)}
    return {name: value for name, value in values.items() if hasattr(config, name)}


def _sized(plain: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration that give a model these sizes, by transformers' common names."""
    dim, heads = sizes["dim"], sizes["heads"]
    found = {"hidden_size": dim, "num_hidden_layers": sizes["layers"], "num_attention_heads": heads,
             "vocab_size": sizes["vocabulary"], "max_position_embeddings": sizes["context"]}
    if hasattr(plain, "num_key_value_heads"):
        found["num_key_value_heads"] = sizes["kv_heads"]
    if sets_heads(plain):
        found["head_dim"] = dim // heads
    width = getattr(plain, "hidden_size", None)
    found |= decoder(plain, sizes["layers"], heads)
    for name in HIDDEN:
        hidden = getattr(plain, name, None)
        if isinstance(hidden, int) and isinstance(width, int):
            found[name] = max(8, round(dim * hidden / width / 8) * 8)
    for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(plain, token, None)
        if isinstance(value, int) and value >= sizes["vocabulary"]:
            found[token] = None
    renamed = getattr(type(plain), "attribute_map", {})
    return {renamed.get(key, key): value for key, value in found.items()}
