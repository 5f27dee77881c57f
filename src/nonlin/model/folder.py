"""The door of a model's folder: what in it is read, and that it is what it has to be, before anything is built.

A model's files are read through here alone. They are regular files, JSON of a bounded size, sizes that the weights
beside them can have, names of weights that stay in the folder.
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_READ = (".json", ".safetensors", ".gguf", ".model", ".txt", ".jinja", ".vocab", ".merges")
_JSON_BYTES = 64 << 20  # an index of the largest models has a few megabytes, a tokenizer some tens
_HEADER_BYTES = 100 << 20  # safetensors' own limit
# Fields of a configuration that say how many of something there are, or how wide it is.
_SIZE = re.compile(r"(^|_)(num|n)_|size$|(^|_)dim$|^d_|layers?$|heads?$|_rank$|^n(embd|layer|head|inner)$|experts$|"
                   r"^hidden$|^vocabulary$|^depth$")
_NO_LIMIT = re.compile(r"position|context|length|window|token|sample|frame|patch|chunk|bins|frequency|rate|image|step")
# "per layer" ends the name of any size, so such a name says no number of layers.
_LAYERS = re.compile(r"(^|(?<!per)_)(layers?|depths?)($|_per_)|^n_?layers?$|num_(hidden_)?layers$")
_LARGEST = 1 << 40
_SIDE = re.compile(r"image_size$|^resolution$|(^|_)frames($|_per_clip$)")  # each point has a place in a table
_COUNT = re.compile(r"(^|_)(num|n)(_|$)")
# Lengths, data and tables: published models have millions, and nothing is made of each.
_UNCOUNTED = re.compile(r"position|context|ctx|token|sample|step|frame|param|vocab|word|embd|inner|"
                        r"bucket|byte|entit|item|floor|seed|embeddings$|embeds$")
# Transformers makes an object of each, or of each pair, before anything else looks at a configuration.
_MOST = ((_LAYERS, 10_000), (re.compile(r"(^|_)cycles$"), 10_000), (_SIDE, 16_384),
         (re.compile(r"^num_labels$"), 1_000_000), (_COUNT, 1 << 24))


class Unfit(ValueError):
    """Why a folder cannot be read as a model; the text completes "must ..."."""


def must_be_regular(folder: Path) -> None:
    """Raise Unfit where a file that a reader would open is none: a pipe or a device would never end."""
    for path in sorted(folder.iterdir()):
        if path.suffix in _READ and not path.is_file():
            raise Unfit(f"hold regular files; {path.name} is {_kind(path)}")


def _kind(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "a link to nothing"
    if path.is_dir():
        return "a folder"
    return "a pipe" if path.is_fifo() else "no regular file"


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raise Unfit where it holds none, is too large, or is nested too deep."""
    try:
        if not path.is_file():
            raise Unfit(f"hold {path.name} as a regular file" + (f"; it is {_kind(path)}" if path.exists() else ""))
        if path.stat().st_size > _JSON_BYTES:
            raise Unfit(f"have a {path.name} of at most {_JSON_BYTES >> 20} MB")
        found = json.loads(path.read_bytes().decode("utf-8"))
    except Unfit:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise Unfit(f"have JSON in {path.name}; {str(error) or type(error).__name__}") from error
    if not isinstance(found, dict):
        raise Unfit(f"have a JSON object in {path.name}; it holds {type(found).__name__}")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json, its fields of the kinds that readers take for granted; raise Unfit otherwise."""
    config = read_json(folder / "config.json")
    kinds: dict[str, tuple[tuple[type, ...], str]] = {
        "model_type": ((str,), "a text"), "architectures": ((list,), "a list of texts"),
        "auto_map": ((dict,), "an object"), "quantization_config": ((dict,), "an object")}
    for name, (kind, words) in kinds.items():
        value = config.get(name)
        if value is not None and not (isinstance(value, kind) and (
                not isinstance(value, list) or all(isinstance(v, str) for v in value))):
            raise Unfit(f"have {words} as {name} in config.json; it is {_short(value)}")
    must_be_few(config)
    return config


def must_be_few(config: Mapping[Any, Any], where: str = "") -> None:
    """Raise Unfit for more parts, labels or points of an image than a model can have.

    To make them would take hours, or all memory. Positions, tokens and parameters have no such limit.
    """
    for name, value in config.items():
        if isinstance(value, dict):
            must_be_few(value, f"{where}{name}.")
        if not isinstance(name, str):  # a configuration object's labels have numbers as keys
            continue
        for pattern, most in _MOST:
            if not pattern.search(name) or (pattern is _COUNT and _UNCOUNTED.search(name)):
                continue
            for number in value if isinstance(value, list) else [value]:
                if type(number) is int and number > most:
                    raise Unfit(f"have at most {most:,} as {where}{name}; it is {number:,}")


def weight_files(folder: Path) -> list[Path]:
    """Return the files that an index names, or all safetensors of the folder; Unfit where a name leaves the folder."""
    index = folder / "model.safetensors.index.json"
    if not (index.exists() or index.is_symlink()):
        return sorted(folder.glob("*.safetensors"))
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(v, str) for v in named.values()):
        raise Unfit(f"have a weight_map of texts in {index.name}")
    files = []
    for name in sorted(set(named.values())):
        if Path(name).name != name or name in ("", ".", "..") or not name.endswith(".safetensors"):
            raise Unfit(f"name weights that lie beside {index.name} and end in .safetensors; it names {_short(name)}")
        files.append(folder / name)
    return files


def stored_sizes(files: list[Path]) -> tuple[int, int]:
    """Return (tensors, numbers) that safetensors files say they hold; Unfit where a file is no such file."""
    tensors = numbers = 0
    for path in files:
        for shape in _shapes(path):
            tensors += 1
            count = 1
            for size in shape:
                count *= size
            numbers += count
    return tensors, numbers


def _shapes(path: Path) -> Iterator[list[int]]:
    try:
        with path.open("rb") as opened:
            length = struct.unpack("<Q", opened.read(8))[0]
            if length > min(_HEADER_BYTES, path.stat().st_size):
                raise Unfit(f"be a whole safetensors file: {path.name}")
            header = json.loads(opened.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                shape = entry["shape"]
                if not all(type(size) is int and 0 <= size <= _LARGEST for size in shape):
                    raise Unfit(f"have sizes as shapes in {path.name}; {_short(name)} has {_short(shape)}")
                yield shape
    except Unfit:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise Unfit(f"be a whole safetensors file: {path.name}") from error


def must_fit(config: Any, tensors: int, numbers: int, where: str = "") -> None:
    """Raise Unfit where a configuration asks for more than its weights can hold, or for sizes that are none.

    A model has no more layers than tensors, and no width beyond the numbers that it stores. A larger one would only be
    built to be refused, in hours or beyond the memory. Positions and windows have no such limit.
    """
    for name, value in config.items():
        label = f"{where}{name}"
        if isinstance(value, dict):
            must_fit(value, tensors, numbers, f"{label}.")
        if _NO_LIMIT.search(name) or not _SIZE.search(name):
            continue
        if _LAYERS.search(name) and type(value) is int and value > max(1, tensors):
            raise Unfit(f"have as many layers as its weights; {label} is {value:,} and the files hold {tensors:,} "
                        "tensors")
        sizes = value if isinstance(value, list) else [value]
        for size in sizes:
            if isinstance(size, int) and not isinstance(size, bool) and size > max(1, numbers):
                raise Unfit(f"have sizes that its weights can have; {label} is {size:,} and the files hold {numbers:,} "
                            "numbers")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
