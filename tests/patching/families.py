"""Small random models of the real transformers classes, one a family, and what their blocks compute."""

from dataclasses import dataclass
from typing import Any

import torch

SMALL = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Family:
    """A class of transformers, its small configuration, and the blocks that are expected in it."""

    model: str
    config: str
    activation: str
    layout: str
    settings: dict[str, Any]
    blocks: int = 2

    def build(self, seed: int = 0, **changes: Any) -> Any:
        """Return the model, random, in float32 and evaluation mode."""
        import transformers

        torch.manual_seed(seed)
        config = getattr(transformers, self.config)(**(self.settings | changes))
        return getattr(transformers, self.model)(config).float().eval()


def _of(kind: str, activation: str, layout: str, **settings: Any) -> Family:
    return Family(f"{kind}ForCausalLM", f"{kind}Config", activation, layout, SMALL | settings)


_T5 = {"vocab_size": 64, "d_model": 16, "d_ff": 40, "d_kv": 8, "num_layers": 2, "num_heads": 2, "pad_token_id": 0,
       "decoder_start_token_id": 0}
FAMILIES = {
    "bert": Family("BertModel", "BertConfig", "gelu", "plain", SMALL),
    "gpt2": Family("GPT2LMHeadModel", "GPT2Config", "gelu_tanh", "plain", {
        "vocab_size": 64, "n_embd": 16, "n_inner": 40, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "llama": _of("Llama", "swiglu", "separate"),
    "qwen2": _of("Qwen2", "swiglu", "separate"),
    "qwen3": _of("Qwen3", "swiglu", "separate"),
    "gpt_oss": _of("GptOss", "swiglu_oai", "interleaved", num_local_experts=4, num_experts_per_tok=2,
                   layer_types=["full_attention", "full_attention"]),
    "qwen3_moe": _of("Qwen3Moe", "swiglu", "concatenated", num_experts=4, num_experts_per_tok=2,
                     moe_intermediate_size=24),
    "gemma": _of("Gemma", "geglu_tanh", "separate"),
    "seed_oss": _of("SeedOss", "swiglu", "separate"),
    "mistral": _of("Mistral", "swiglu", "separate"),
    "phi3": _of("Phi3", "swiglu", "concatenated"),
    "apertus": _of("Apertus", "xielu", "plain"),
    "nemotron": _of("Nemotron", "relu_squared", "plain"),
    "olmo": _of("Olmo", "swiglu", "separate"),
    "t5_v1_1": Family("T5ForConditionalGeneration", "T5Config", "geglu_tanh", "separate",
                      _T5 | {"feed_forward_proj": "gated-gelu"}, blocks=4),
    "t5": Family("T5ForConditionalGeneration", "T5Config", "relu", "plain", _T5, blocks=4),
    "modernbert": Family("ModernBertModel", "ModernBertConfig", "geglu", "concatenated", SMALL | {
        "cls_token_id": 1, "sep_token_id": 2, "global_attn_every_n_layers": 1}),
    "falcon": Family("FalconForCausalLM", "FalconConfig", "gelu", "plain", {
        "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}),
    "opt": Family("OPTForCausalLM", "OPTConfig", "relu", "plain", {
        "vocab_size": 64, "hidden_size": 16, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 64, "word_embed_proj_dim": 16, "pad_token_id": 0}),
}
