"""Our small language model: its sizes and cost (no torch), the model itself, and its Hugging Face checkpoint."""

from nonlin import _lazy
from nonlin.model.config import ModelConfig, flops_per_token, parameter_count

_HOMES = {  # these load torch
    "LanguageModel": "nonlin.model.language_model",
    "export_model": "nonlin.model.checkpoint",
    "import_model": "nonlin.model.checkpoint",
}
__all__ = ["ModelConfig", "flops_per_token", "parameter_count", *_HOMES]

__getattr__ = _lazy.attributes(__name__, _HOMES)
