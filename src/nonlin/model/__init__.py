"""One small language model: its sizes and cost (no torch), the model itself, and its Hugging Face form."""

import importlib
from typing import Any

from nonlin.model.config import ModelConfig, flops_per_token, parameter_count

_LAZY = {
    "LanguageModel": "nonlin.model.language_model",
    "export_model": "nonlin.model.huggingface",
    "import_model": "nonlin.model.huggingface",
    "load": "nonlin.model.loading",
    "Loaded": "nonlin.model.loading",
    "Block": "nonlin.model.blocks",
    "find_blocks": "nonlin.model.blocks",
    "identify": "nonlin.model.identification",
    "identify_all": "nonlin.model.identification",
}
__all__ = ["ModelConfig", "flops_per_token", "parameter_count", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:  # these load torch
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'nonlin.model' has no attribute {name!r}")
