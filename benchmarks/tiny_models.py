"""A tiny random model of every family of the installed transformers whose sizes can be made small by their names.

A configuration's sizes are set by what they are called (``hidden_size``, ``num_layers``, ...), sub-configurations
too; a family whose model cannot be built that way, or stays large, is left out and the reason kept.
"""

import copy
import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.tiny_fields import FIELDS
from nonlin.patching.configuration import field, tree

WIDTH, HIDDEN, LAYERS, HEADS, VOCABULARY, LENGTH = 32, 56, 2, 4, 99, 64
LARGEST = 8_000_000  # parameters: beyond, the sizes were not understood

# The first rule that matches a field's whole name says its value.
_RULES: list[tuple[str, Any]] = [
    (r"(max_)?(source_|target_|n_)?positions|(.*_)?max_(.*_)?positions?(_embeddings)?|n_positions|n_ctx|seq_length|"
     r"max_seq_len|max_sequence_length|max_position_embedding(s)?|original_max_position_embeddings|max_length", LENGTH),
    (r"(.*_)?vocab(ulary)?_size(_.*)?|n_vocab|n_words|(text_)?vocab", VOCABULARY),
    (r"(.*_)?num_(key_value|kv)_heads?|num_kv_heads|multi_query_group_num|n_head_kv|(attention_)?n_kv_heads", HEADS),
    (r"(.*_)?(num|n)_(.*_)?(attention_|attn_)?heads?|n_heads?|num_heads|(encoder|decoder)_attention_heads|"
     r"attention_heads|nhead|heads", HEADS),
    (r"(.*_)?(head_dim|d_kv|head_size|qk_nope_head_dim|v_head_dim|qk_rope_head_dim|d_head|attention_head_size|"
     r"kv_channels|qk_head_dim|key_dim|head_width)", WIDTH // HEADS),
    (r"(.*_)?(q|kv)_lora_rank", 16),
    (r"(num_)?(hidden|encoder|decoder|encoder_hidden)_layers|n_layers?|num_layers|(.*_)?num_(.*_)?layers|layers|"
     r"(en|de)coder_n?_?layers|depth|(.*_)?num_blocks|n_blocks|num_hidden_groups|block_num", LAYERS),
    (r"(.*_)?(moe_|shared_expert_|expert_)?(intermediate_size|ffn_hidden_size|inner_dim)(_.*)?|(en|de)coder_ffn_dim|"
     r"(.*_)?ffn_dim|n_inner|d_ff|d_inner|ffn_hidden_size|dim_feedforward|hidden_dim|dim_ff|d_ffn|feed_forward_size|"
     r"(.*_)?mlp_dim|(.*_)?ffn_intermediate_size|mlp_hidden_size", HIDDEN),
    (r"(.*_)?(hidden_size|d_model|n_embd|embed_dim|embedding_size|embedding_dim|word_embed_proj_dim|emb_dim|model_dim|"
     r"projection_dim|hidden_channels|d_embed|lru_width|dim|decoder_dim|encoder_dim|conv_dim|cross_attention_dim|"
     r"projection_size|embed_size|hidden_dim|channels|width|feature_size|d_embedder|classifier_proj_size)", WIDTH),
    (r"(num_local_|num_|n_|n_routed_|moe_num_|num_routed_)experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k|num_experts_per_token|moe_topk", 2),
    (r"n_groups?|topk_group|num_expert_groups?", 1),
    (r"(.*_)?first_k_dense_replace", 1),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r"(.*_)?image_size|input_size|pretrain_image_size", 32),
    (r"(.*_)?patch_size", 8),
    (r"(mamba_)?(d_state|state_size|ssm_state_size)", 8),
    (r"mamba_n_heads|mamba_num_heads", 8), (r"mamba_d_head|mamba_head_dim", 8),
    (r"chunk_size|mamba_chunk_size", 8),
    (r"sliding_window|attention_window|local_attention|window_size|attention_window_size", 16),
    (r"(.*_)?(pad|bos|eos|sep|cls|mask|unk)_(token_)?id|(.*_)?(pad|bos|eos|sep|cls|mask)_index|"
     r"(.*_)?decoder_start_token_id|image_token_id|video_token_id|audio_token_id|(.*_)?_token_(id|index)", "token"),
]
_LISTS: list[tuple[str, Any]] = [
    (r"(.*_)?hidden_sizes|(.*_)?embed_dims?|(.*_)?dims", WIDTH), (r"depths|num_encoder_blocks|layers", 1),
    (r"(.*_)?num_(attention_)?heads|num_heads", HEADS), (r"conv_dim", WIDTH),
]
_TOKENS = {"pad": 0, "bos": 1, "eos": 2, "sep": 2, "cls": 1, "unk": 3, "mask": 4, "decoder_start": 0}


def _rule(name: str, rules: list[tuple[str, Any]]) -> Any:
    return next((value for pattern, value in rules if re.fullmatch(pattern, name)), None)


def _defaults(cls: type) -> dict[str, Any]:
    """The configuration's fields and their values by default."""
    if dataclasses.is_dataclass(cls):
        found = {}
        for field in dataclasses.fields(cls):
            if field.default is not dataclasses.MISSING:
                found[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                found[field.name] = field.default_factory()
        return found
    return {q.name: q.default for q in inspect.signature(cls.__init__).parameters.values()
            if q.default is not inspect.Parameter.empty}


def _token(name: str, at: int) -> int:
    return next((value for start, value in _TOKENS.items() if name.startswith(start)), 5 + at % 20)


def small_values(cls: Any) -> dict[str, Any]:
    """Return the small values of a configuration class's fields, sub-configurations as nested dictionaries."""
    values: dict[str, Any] = {}
    subs = getattr(cls, "sub_configs", None) or {}
    for at, (name, default) in enumerate(_defaults(cls).items()):
        if name in subs:
            continue
        rule = _rule(name, _RULES)
        if rule == "token":
            if isinstance(default, int) and not isinstance(default, bool):
                values[name] = _token(name, at)
        elif isinstance(default, (list, tuple)) and default and all(type(v) is int for v in default):
            each = _rule(name, _LISTS)
            if each is not None:
                values[name] = type(default)([each] * len(default))
        elif rule is not None and (default is None or type(default) is int) and not (
                default is None and rule in (HIDDEN, WIDTH) and name not in ("n_inner",)):
            values[name] = rule
    for name, sub in subs.items():
        kind = None if sub.__name__ == "AutoConfig" else sub
        default = _defaults(cls).get(name)
        if kind is not None:
            values[name] = small_values(kind)
        elif default is not None and hasattr(default, "to_dict"):
            values[name] = {"model_type": default.model_type} | small_values(type(default))
    return values


def merged(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Return the values with the others put over them, nested dictionaries field by field."""
    both = {k: merged(values[k], v) if isinstance(v, dict) and isinstance(values.get(k), dict) else v
            for k, v in others.items()}
    return values | both


def specified(cls: Any) -> dict[str, Any]:
    """Return the small values of a configuration class, sub-configurations by the types that the class names."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    values = small_values(cls)
    for name, spec in (getattr(cls, "sub_configs_defaults", None) or {}).items():
        if spec.config_class.__name__ == "AutoConfig" and spec.model_type not in CONFIG_MAPPING:
            continue  # a backbone that is known to its own family alone
        kind = CONFIG_MAPPING[spec.model_type] if spec.config_class.__name__ == "AutoConfig" else spec.config_class
        given = {k: v for k, v in spec.init_kwargs.items() if _rule(k, _RULES) is None}
        values[name] = {"model_type": spec.model_type} | given | specified(kind)
    return values


def _repaired(cls: Any, values: dict[str, Any]) -> Iterator[Any]:
    """Configurations from the small values, then from fewer of them, as far as the class takes them."""
    drops: list[set[str]] = [set(), {"head_dim"}, {"max_length"}, {"dim", "hidden_dim"}, {"channels", "width"},
                             {"depths", "hidden_sizes", "embed_dims", "num_heads"}]
    for drop in drops:
        yield lambda drop=drop: cls(**_without(values, drop))
    yield lambda: _by_setting(cls, values)


def _without(values: dict[str, Any], drop: set[str]) -> dict[str, Any]:
    """A copy of the values that leaves some fields to the class, in sub-configurations too."""
    return {k: _without(v, drop) if isinstance(v, dict) else copy.deepcopy(v) for k, v in values.items()
            if k not in drop}


def _by_setting(cls: Any, values: dict[str, Any]) -> Any:
    """A configuration by default, its numbers then set: for classes that make their sub-configurations themselves."""
    config = cls()

    def put(target: Any, small: dict[str, Any]) -> None:
        for name, value in small.items():
            if isinstance(value, dict):
                if hasattr(getattr(target, name, None), "to_dict"):
                    put(getattr(target, name), value)
            elif hasattr(target, name):
                setattr(target, name, value)

    before = {path: field(inner, "num_hidden_layers") for path, inner in tree(config)}
    put(config, values)
    for name in getattr(cls, "sub_configs", {}):
        sub = getattr(config, name, None)
        if sub is not None and hasattr(sub, "to_dict"):
            put(sub, small_values(type(sub)))
    for path, inner in tree(config):  # lists with an entry for each layer
        now = field(inner, "num_hidden_layers")
        for name, value in list(vars(inner).items()):
            if isinstance(value, list) and isinstance(now, int) and len(value) == before.get(path) and now < len(value):
                setattr(inner, name, value[:now])
    return type(config).from_dict(config.to_dict())


def model_class(kind: str) -> str | None:
    """Return the name of the family's model class with a head, or else its base class."""
    from transformers.models.auto import modeling_auto as auto

    for table in ("IMAGE_TEXT_TO_TEXT", "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "MASKED_LM",
                  "PRETRAINING"):
        found = getattr(auto, f"MODEL_FOR_{table}_MAPPING_NAMES").get(kind)
        if found:
            return found if isinstance(found, str) else found[0]
    found = auto.MODEL_MAPPING_NAMES.get(kind)
    return found if found is None or isinstance(found, str) else found[0]


def families() -> list[str]:
    """Return every model type of the installed transformers that has a model class."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return [kind for kind in sorted(CONFIG_MAPPING_NAMES) if model_class(kind)]


def _count(cls: Any, config: Any) -> int:
    """How many parameters the model has, counted without memory for them where its parts can be made so."""
    def made() -> int:
        return sum(p.numel() for p in cls(copy.deepcopy(config)).parameters())

    try:
        with torch.device("meta"):
            return made()
    except (NotImplementedError, RuntimeError) as error:
        if "meta tensor" not in str(error):  # timm reads values while it makes its parts
            raise
        return made()


def build(kind: str, class_name: str | None = None, **changes: Any) -> tuple[Any, str]:
    """Return (a tiny random model in evaluation mode, "") or (None, why there is none).

    Without ``class_name`` it is the family's model class with a head.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    name = class_name or model_class(kind)
    reason = "no model class"
    try:
        cls = getattr(transformers, name or "")
        own, ours = getattr(cls, "config_class", None), CONFIG_MAPPING[kind]
        # A class of the text alone takes the configuration of the text.
        config_class = ours if class_name and own not in getattr(ours, "sub_configs", {}).values() else own or ours
        makers = list(_makers(config_class, changes))
    except Exception as error:
        return None, _why(error)
    for make in makers:
        try:
            config = make()
            count = _count(cls, config)
            if count > LARGEST:
                reason = f"{count:,} parameters remain"
                continue
            torch.manual_seed(0)
            return cls(config).float().eval(), ""
        except Exception as error:
            reason = _why(error)
    return None, reason


def _makers(config_class: Any, changes: dict[str, Any]) -> Iterator[Any]:
    """What makes a tiny configuration of a class: from its family's own fields where it has some, else guesses."""
    fields = FIELDS.get(config_class.model_type, {})
    by_type = merged(specified(config_class), fields | changes)
    if not fields:
        yield from _repaired(config_class, small_values(config_class) | changes)
    yield lambda: config_class(**copy.deepcopy(by_type))


def needs(model: torch.nn.Module) -> str | None:
    """Return the library beside transformers that a model's parts are of; None where they are of none."""
    return "timm" if any(type(m).__module__.startswith("timm.") for m in model.modules()) else None


def _why(error: Exception) -> str:
    """An error in one line; of a library that is missing, its name."""
    text = " ".join(str(error).split())
    needs = re.search(r"requires the (\S+) library", text)
    return f"needs {needs[1]}, which is not installed" if needs else f"{type(error).__name__}: {text}"[:200]
