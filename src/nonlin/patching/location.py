"""What lies at a path that is to be loaded: everything that can be said of it without torch."""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nonlin.errors import UserError, rule
from nonlin.model import folder
from nonlin.model.gguf_header import gguf_sizes

_FLOATING = ("F64", "F32", "F16", "BF16")
_MUST_FLOAT = "be floating-point, not quantized to 8 or 4 bits"
_UNQUANTIZED = "Load the checkpoint it was quantized from."
# Fields that say how attention and experts are computed, and what transformers has for them without other code. It
# fetches a kernel from the Hub for any other name, "flash_attention_2" too, where the package kernels is installed.
_COMPUTED_BY = {"attn_implementation": ("eager", "sdpa", "flex_attention", "paged|eager", "paged|sdpa"),
                "experts_implementation": ("eager", "batched_mm", "grouped_mm")}
_KERNELS = ("use_kernels", "kernel_config", "allow_all_kernels")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Location:
    """A folder of Hugging Face's form or of nonlin's ``own``, or a folder with the name of a GGUF file in it.

    ``stored``: (tensors, numbers) that its files hold, or may hold.
    """

    path: Path
    gguf_file: str | None = None
    architectures: tuple[str, ...] = ()
    own: bool = False
    of_a_study: bool = False
    stored: tuple[int, int] = (0, 0)


def located(path: Path, trust: bool, call: str) -> Location:
    """Return what lies there; UserError where it is no model that can be loaded. Reads names and headers alone."""
    if not os.path.exists(path):  # so is what no path can be
        raise UserError(rule(call, "MODEL", "be a folder or a .gguf file that exists", str(path),
                             "Download the model first, for example with: hf download NAME --local-dir FOLDER."))
    if path.is_dir() and (path / "nonlin.json").exists():
        return Location(path, own=True)
    _needs("transformers", call)
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(rule(call, "MODEL", "be a folder, or a file that ends in .gguf", str(path),
                                 "Pass the folder that holds config.json."))
        return Location(path.parent, path.name, stored=_stored_in_gguf(path, call))
    ggufs = sorted(path.glob("*.gguf"))
    if not (path / "config.json").exists():
        if len(ggufs) == 1:
            return located(ggufs[0], trust, call)
        inner = path / "model"
        if any((inner / name).exists() for name in ("config.json", "nonlin.json")):
            return replace(located(inner, trust, call), of_a_study=True)
        raise UserError(rule(call, "MODEL", "hold config.json and safetensors, or one .gguf file", str(path),
                             "Pass the folder of a Hugging Face model, or name the .gguf file."))
    config, stored = _described(path, call)
    if (code := code_of(config)) and not trust:
        raise UserError(rule(call, "MODEL", "need no code of its own", f"{path}: config.json names {code}",
                             "Remove it there if transformers has the architecture, or read that code, then pass "
                             "--trust-remote-code (trust_remote_code=True) if you agree."))
    must_not_be_quantized(config, call)
    return Location(path, architectures=tuple(config.get("architectures") or ()), stored=stored)


def _needs(package: str, call: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{call}: reading this model must have the package {package!r}; it is not installed. "
                        "Install it: pip install 'nonlin[hf]'.")


def _described(path: Path, call: str) -> tuple[dict[str, Any], tuple[int, int]]:
    """Return the configuration and the (tensors, numbers) stored, by the one checked reader; refuse in one line."""
    try:
        folder.must_be_regular(path)
        config = folder.read_config(path)
        if config.get("auto_map") or config.get("quantization_config"):
            return config, (0, 0)  # refused, or the code of somebody whom the caller trusts
        files = folder.weight_files(path)
        _check_weights(path, files, call)
        stored = folder.stored_sizes(files)
        folder.must_fit(config, *stored)
    except OSError as error:
        raise UserError(f"{call}: MODEL must be a folder that can be read; {error}. Check its permissions.") from error
    except folder.Unfit as error:
        raise UserError(f"{call}: {path} must {error}. Download it again.") from error
    return config, stored


def _check_weights(path: Path, files: list[Path], call: str) -> None:
    """Raise where the folder's weights are missing, pickled, incomplete or damaged, before anything is built."""
    from safetensors import SafetensorError, safe_open

    if not files or not any(path.glob("*.safetensors")):
        pickled = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLED)
        if pickled:
            raise UserError(rule(call, "MODEL", "hold safetensors, since pickled weights can run any code", f"{path} "
                                 f"with {', '.join(pickled[:3])}", "Where you trust them, convert them once: "
                                 f"AutoModel.from_pretrained({str(path)!r}).save_pretrained(NEW_FOLDER)."))
        raise UserError(rule(call, "MODEL", "hold weights (*.safetensors)", f"{path}, which has none",
                             "Download the weights too, not the configuration alone."))
    missing = [f.name for f in files if not f.exists()]
    if missing:
        raise UserError(rule(call, "MODEL", "hold every file of its index", f"{path} without {missing[0]}"
                             + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""), "Download the rest."))
    for file in files:
        try:
            with safe_open(file, "numpy") as opened:
                kinds = {name: opened.get_slice(name).get_dtype() for name in opened.keys()  # noqa: SIM118  no mapping
                         if name.endswith("weight")}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{call}: {file} must be a whole safetensors file; {error}. Download it again.") from error
        if whole := next((f"{name} in {kind}" for name, kind in kinds.items() if kind not in _FLOATING), None):
            raise UserError(rule(call, "the model's weights", _MUST_FLOAT, whole, _UNQUANTIZED))


def code_of(config: Mapping[str, Any]) -> str | None:
    """Return the code that a configuration asks to run, its own or a kernel of the Hub; None for none.

    >>> code_of({"text_config": {"_attn_implementation": "owner/kernel"}}), code_of({"_attn_implementation": "sdpa"})
    ("_attn_implementation 'owner/kernel'", None)
    """
    code: Any = config.get("auto_map")
    named = [", ".join(map(str, code.values() if isinstance(code, Mapping) else [code]))] if code else []
    return ", ".join([*named, *_kernels(config)]) or None


def _kernels(values: Any) -> Iterator[str]:
    """Yield the fields at any depth that make transformers fetch a kernel."""
    for key, value in values.items() if isinstance(values, Mapping) else ():
        known = _COMPUTED_BY.get(str(key).strip("_").removesuffix("_internal"))
        if known:  # a mapping says it for each part of the model
            wanted = value.values() if isinstance(value, Mapping) else [value]
            yield from (f"{key} {one!r}" for one in wanted if one is not None and one not in known)
        elif key in _KERNELS and value:
            yield f"{key} {value!r}"
        else:
            yield from _kernels(value)
    for value in values if isinstance(values, list) else ():
        yield from _kernels(value)


def must_not_be_quantized(config: Mapping[str, Any], call: str) -> None:
    """Raise UserError where a configuration says that its weights are quantized."""
    said: Any = config.get("quantization_config")
    if said:
        method = said.get("quant_method", "a quantized checkpoint") if isinstance(said, Mapping) else said
        raise UserError(rule(call, "the model's weights", _MUST_FLOAT, method, _UNQUANTIZED))


def _stored_in_gguf(path: Path, call: str) -> tuple[int, int]:
    """Return the (tensors, numbers) of a GGUF file; refuse in one line what its header cannot be."""
    for package in ("gguf", "accelerate"):
        _needs(package, call)
    try:
        return gguf_sizes(path)
    except (OSError, folder.Unfit) as error:
        raise UserError(f"{call}: {path} must {error}. Download it again.") from error
