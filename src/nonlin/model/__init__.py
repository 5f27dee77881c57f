"""Our small language model: its sizes and cost (no torch), the model itself, and its Hugging Face checkpoint."""

from typing import TYPE_CHECKING

from nonlin import _lazy
from nonlin.model.config import ModelConfig, flops_per_token, parameter_count

if TYPE_CHECKING:
    from nonlin.model.checkpoint import export_model, import_model
    from nonlin.model.language_model import LanguageModel

__all__ = ["ModelConfig", "flops_per_token", "parameter_count", "LanguageModel", "export_model", "import_model"]

_HOMES = {
    "LanguageModel": "nonlin.model.language_model",
    "export_model": "nonlin.model.checkpoint",
    "import_model": "nonlin.model.checkpoint",
}

if not TYPE_CHECKING:  # these load torch
    __getattr__, __dir__ = _lazy.attributes(__name__, _HOMES), _lazy.listing(__all__)
