"""A model from where it lies: a Hugging Face folder, a GGUF file, nonlin's own folder, or a torch module in hand.

Weights are read from safetensors and GGUF alone. Nothing is unpickled, nothing is fetched. Code that a folder brings
along runs only when asked for. A model that cannot be examined as it stands is refused, and left as it was.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from nonlin.errors import UserError, not_empty, rule, told
from nonlin.patching import bounded
from nonlin.patching.blocks import uncompiled
from nonlin.patching.finding import find_blocks, some_blocks
from nonlin.patching.location import Location, located

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
NO_TOKENIZER = "the folder has no tokenizer"
_QUANTIZED_IN = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
_QUANTIZED = ("Linear8bitLt", "Linear4bit", "QuantLinear", "WQLinear", "FP8Linear", "Int8Params")


@dataclass(frozen=True)
class Loaded:
    """A model, its tokenizer (None where there is none), where it came from, and what is to be said about it."""

    model: nn.Module
    tokenizer: Any
    source: str
    notes: tuple[str, ...] = ()


def load(where: str | Path | nn.Module, *, dtype: torch.dtype = torch.float32, device: str | None = None,
         trust_remote_code: bool = False, call: str = "load") -> Loaded:
    """Return the model at ``where`` in evaluation mode, with its tokenizer.

    ``where`` is a folder with config.json and safetensors, a .gguf file, a folder that ``nonlin compare`` wrote, or
    a module, which is taken as it is (``dtype`` and ``device`` do not apply). ``call`` names the caller in errors.

    Raises UserError for weights that are missing, damaged or pickled, and for an architecture that is unknown or
    brings code of its own (unless ``trust_remote_code``). The model must have a feed-forward block, and lie on one
    device, not quantized.
    """
    if isinstance(where, nn.Module):
        where = uncompiled(where)
        loaded = Loaded(where, None, type(where).__name__)
    else:
        not_empty(call, MODEL=where, device=device)
        if not isinstance(where, (str, Path)):
            raise UserError(rule(call, "MODEL", "be a path or a torch module", where, "Pass the model's folder."))
        with _quiet():
            loaded = _load_path(Path(where), dtype, trust_remote_code, call)
    refuse(loaded.model, call)
    some_blocks(loaded.model, call, "MODEL", loaded.source)
    if not isinstance(where, nn.Module):
        loaded.model.eval()
        if device:
            try:
                loaded.model.to(device)
            except (RuntimeError, AssertionError) as error:  # torch raises both where it was built without the device
                raise UserError(rule(call, "device", "be one that this machine and this torch have", device,
                                     "Leave it out to run on the CPU.")) from error
    return loaded


def refuse(model: nn.Module, call: str) -> None:
    """Raise UserError where a model is quantized, without data, or spread over several devices; change nothing."""
    kinds = sorted({type(m).__name__ for m in model.modules() if type(m).__name__ in _QUANTIZED
                    or type(m).__module__.startswith(_QUANTIZED_IN)})
    whole = sorted({str(p.dtype) for p in model.parameters() if not p.is_floating_point()})
    method = _quantization(getattr(model, "config", None))
    if kinds or whole or method:
        raise UserError(rule(call, "the model's weights", "be floating-point, not quantized to 8 or 4 bits",
                             method or ", ".join(kinds or whole), "Load the checkpoint it was quantized from."))
    if any(is_lazy(p) for p in model.parameters()):
        raise UserError(rule(call, "the model's weights", "be initialized", "lazy modules that have not run yet",
                             "Run the model once before the call."))
    devices = sorted({str(p.device) for p in model.parameters()})
    if "meta" in devices:
        raise UserError(rule(call, "the model's weights", "be loaded", "parameters on the meta device",
                             "Load the weights before the call."))
    if len(devices) > 1:
        raise UserError(rule(call, "the model", "lie on one device", ", ".join(devices),
                             "Load it without device_map, or move it: model.to(device)."))


def _quantization(config: Any) -> str | None:
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    method = str(getattr(method, "value", method) or "a quantized checkpoint")
    return None if method == "gguf" else method  # those were made floating-point when they were read


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the terminal while it loads."""
    try:
        from transformers.utils import logging
    except ImportError:
        yield
        return
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the bar of a GGUF's conversion heeds no setting
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _load_path(path: Path, dtype: torch.dtype, trust: bool, call: str) -> Loaded:
    found = located(path, trust, call)
    notes = ("the folder is a study's: this is the model that it exported",) if found.of_a_study else ()
    if found.own:
        from nonlin.model.checkpoint import import_model

        return Loaded(import_model(found.path), None, str(found.path), (
            *notes, "the folder is nonlin's own form: its tokenizer is not read"))
    loaded = _from_pretrained(found, dtype, trust, call)
    return replace(loaded, notes=(*notes, *loaded.notes))


def _class(architectures: Sequence[str]) -> Any:
    """Return the class that the configuration names, where transformers has it; else the one for its kind."""
    import transformers

    for name in architectures:
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModelForCausalLM


def _from_pretrained(found: Location, dtype: torch.dtype, trust: bool, call: str) -> Loaded:
    import transformers

    where, gguf_file = found.path, found.gguf_file
    # Of code that came along, and is trusted, the files were not read.
    limit = bounded.as_stored(*found.stored) if any(found.stored) else contextlib.nullcontext()
    options: dict[str, Any] = {"local_files_only": True, "dtype": dtype, "trust_remote_code": trust}
    if gguf_file:
        options["gguf_file"] = gguf_file
    else:
        options["use_safetensors"] = True
    cls = _class(found.architectures)
    shown = str(where / gguf_file) if gguf_file else str(where)
    try:
        with limit:
            model, info = _built(cls, where, options)
    except bounded.TooLarge as error:
        raise UserError(f"{call}: {shown} must {error}. Check that its configuration belongs to its weights, and that "
                        "it says every size: a size that it leaves out is the family's own.") from error
    except Exception as error:  # transformers raises many kinds; the user needs the model, the reason, and no trace
        what = "a whole GGUF file of a model" if gguf_file else "a model"
        raise UserError(f"{call}: {shown} must be {what} that transformers {transformers.__version__} can build; "
                        f"{told(error)}. Check or download it again, or load "
                        "the model yourself and pass the module.") from error
    notes = _missing(model, info, call, shown)
    tokenizer, note = _tokenizer(where, trust, gguf_file)
    return Loaded(model, tokenizer, shown, (*notes, *([note] if note else [])))


def _built(cls: Any, where: Path, options: dict[str, Any]) -> tuple[nn.Module, Any]:
    import transformers

    try:
        return cls.from_pretrained(where, output_loading_info=True, **options)
    except ValueError:
        if cls is not transformers.AutoModelForCausalLM:
            raise
        return transformers.AutoModel.from_pretrained(where, output_loading_info=True, **options)


def _missing(model: nn.Module, info: Any, call: str, shown: str) -> list[str]:
    missing = sorted(info.get("missing_keys") or []) if isinstance(info, dict) else sorted(info.missing_keys)
    of_blocks = {p.parameter_name for b in find_blocks(model) for p in b.projections.values()}
    lost = [name for name in missing if name in of_blocks]
    if lost:
        raise UserError(rule(call, "MODEL", "hold the weights of its feed-forward blocks", f"{shown} without {lost[0]}"
                             + (f" and {len(lost) - 1} more" if len(lost) > 1 else ""),
                             "Check that config.json belongs to these weights."))
    if not missing:
        return []
    return [f"{len(missing)} of the model's weights are not in the file and were drawn at random: "
            f"{', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}"]


def _tokenizer(where: Path, trust: bool, gguf_file: str | None) -> tuple[Any, str]:
    import transformers

    options: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    if not gguf_file and not any((where / name).exists() for name in _TOKENIZERS):
        return None, NO_TOKENIZER  # transformers would make an empty one from the configuration
    try:
        made = transformers.AutoTokenizer.from_pretrained(where, local_files_only=True, trust_remote_code=trust,
                                                          **options)
    except Exception as error:  # a missing tokenizer is no reason not to look at the weights
        return None, f"its tokenizer could not be read ({type(error).__name__})"
    return made, ""
