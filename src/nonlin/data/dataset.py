"""Tokens on disk, and the batches a run takes from them."""

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nonlin.data.corpus import Corpus, split
from nonlin.errors import UserError, rule

SEPARATOR = b"\n\n"


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def prepare(corpus: Corpus, directory: Path | str, tokenizer: str | int = "bytes") -> dict[str, Any]:
    """Write the corpus as tokens to ``directory`` and return its description; done before, it is read back.

    Tokens there that are not what was written (a file cut, changed or gone) are written again. ``tokenizer`` is
    "bytes", or the vocabulary size of a byte-pair tokenizer trained on the training text. Raises UserError for a
    vocabulary outside 258…65535 or a folder that holds other data.
    """
    directory = Path(directory)
    if tokenizer != "bytes" and (type(tokenizer) is not int or not 258 <= tokenizer <= 65535):
        raise UserError(rule("data", "tokenizer", 'be "bytes" or a vocabulary of 258 to 65535', tokenizer, "Try 4096."))
    wanted = {"corpus_sha256": corpus.sha256, "tokenizer": tokenizer}
    info = _described(directory)
    if info is not None:
        if all(info.get(key) == value for key, value in wanted.items()):
            if intact(directory):
                return info
        else:
            raise UserError(f"data: {directory} holds other data ({info.get('description')}). Use another --out.")
    directory.mkdir(parents=True, exist_ok=True)
    training, validation = (SEPARATOR.join(texts) for texts in split(corpus))
    if tokenizer == "bytes":
        arrays, vocabulary = [np.frombuffer(text, dtype=np.uint8) for text in (training, validation)], 256
    else:
        arrays, vocabulary = _byte_pairs(training, validation, int(tokenizer), directory)
    for name, array in zip(("train", "validation"), arrays, strict=True):
        _write(directory / f"{name}.bin", array.tobytes())
    names = ("train.bin", "validation.bin", *(() if tokenizer == "bytes" else ("tokenizer.json",)))
    info = wanted | {
        "format": 1, "sha256": corpus.sha256, "description": corpus.description, "source": corpus.source,
        "vocabulary": vocabulary, "dtype": str(arrays[0].dtype), "documents": len(corpus.documents),
        "train_tokens": len(arrays[0]), "validation_tokens": len(arrays[1]), "train_bytes": len(training),
        "validation_bytes": len(validation), "bytes_per_token_validation": len(validation) / len(arrays[1]),
        "files": {name: _sha256(directory / name) for name in names}}
    _write(directory / "dataset.json", json.dumps(info, indent=1).encode())
    return info


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _described(directory: Path) -> dict[str, Any] | None:
    """Return dataset.json; None where there is none, or no whole one."""
    try:
        info = json.loads((directory / "dataset.json").read_text())
        return info if "corpus_sha256" in info else None
    except (OSError, ValueError, TypeError):
        return None


def intact(directory: Path | str) -> bool:
    """Return whether the tokens in ``directory`` are those that :func:`prepare` wrote there."""
    info = _described(Path(directory))
    try:
        return info is not None and all(
            _sha256(Path(directory) / name) == digest for name, digest in info["files"].items())
    except (OSError, KeyError):
        return False


def _byte_pairs(training: bytes, validation: bytes, size: int, directory: Path) -> tuple[list[np.ndarray], int]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    texts = [text.decode("utf-8", errors="replace") for text in (training, validation)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator((texts[0][i:i + 10_000] for i in range(0, len(texts[0]), 10_000)), trainer)
    arrays = [np.array(tokenizer.encode(text).ids, dtype=np.uint16) for text in texts]
    _write(directory / "tokenizer.json", tokenizer.to_str().encode())
    return arrays, tokenizer.get_vocab_size()


class Dataset:
    """Prepared tokens: ``train`` and ``validation`` (memory-mapped), ``info``, and the way to and from text."""

    def __init__(self, directory: Path | str):
        self.directory = Path(directory)
        try:
            self.info: dict[str, Any] = json.loads((self.directory / "dataset.json").read_text())
            dtype = np.dtype(self.info["dtype"])
            self.train, self.validation = (
                np.memmap(self.directory / f"{name}.bin", dtype=dtype, mode="r") for name in ("train", "validation"))
            counts = [self.info[f"{name}_tokens"] for name in ("train", "validation")]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"data: {directory} must hold a prepared dataset; {error}. "
                            "Start the study again.") from error
        for array, count in zip((self.train, self.validation), counts, strict=True):
            if len(array) != count:
                raise UserError(f"data: {directory} is damaged: {len(array)} tokens where dataset.json says "
                                f"{count}. Start the study again: it writes them anew.")

    @functools.cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.directory / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return list(text.encode()) if self.info["tokenizer"] == "bytes" else self._tokenizer.encode(text).ids

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens; bytes that are no UTF-8 become the replacement character."""
        if self.info["tokenizer"] == "bytes":
            return bytes(tokens).decode("utf-8", errors="replace")
        return self._tokenizer.decode(tokens)


def _windows(tokens: np.ndarray, offsets: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    rows = tokens[offsets[:, None] + np.arange(context + 1)].astype(np.int64)
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])


def batch(dataset: Dataset, step: int, batch: int, context: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (inputs, targets), int64 (batch, context): random windows, a pure function of seed and step."""
    room = len(dataset.train) - context
    if room < 1:
        raise UserError(rule("data", "training text", f"be longer than the context of {context}",
                             len(dataset.train), "Add text or take a smaller --context."))
    random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, step]))
    return _windows(dataset.train, random.integers(0, room, size=batch), context)


def evaluation_batches(
    dataset: Dataset, tokens: int, batch: int, context: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield fixed, evenly spaced windows of the validation text, about ``tokens`` of them, all different."""
    room = len(dataset.validation) - context
    if room < 1:
        raise UserError(rule("data", "validation text", f"be longer than the context of {context}",
                             len(dataset.validation), "Add text or take a smaller --context."))
    count = max(1, min(-(-tokens // context), room // context or 1))
    offsets = np.linspace(0, room - 1, count).astype(np.int64)
    for start in range(0, count, batch):
        yield _windows(dataset.validation, offsets[start:start + batch], context)
