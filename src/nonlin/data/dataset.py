"""Prepared tokens, and the batches that a run takes from them."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nonlin import streams
from nonlin.data import tokenizing
from nonlin.data.description import read_description
from nonlin.errors import UserError, not_empty, rule
from nonlin.files import Unreadable


@dataclass(frozen=True)
class Span:
    """A source's tokens on one side: where they begin, how many, and their share of a batch."""

    start: int
    tokens: int
    share: float
    description: str


class Dataset:
    """Prepared tokens: ``train`` and ``validation`` (memory-mapped), ``info``, and the way to and from text."""

    def __init__(self, directory: Path | str):
        not_empty("data", directory=directory)
        self.directory = Path(directory)
        try:
            self.info = read_description(self.directory)
            dtype = np.dtype(self.info["dtype"])
            self.train, self.validation = (
                np.memmap(self.directory / f"{name}.bin", dtype=dtype, mode="r") for name in ("train", "validation"))
            counts = [self.info[f"{name}_tokens"] for name in ("train", "validation")]
            self.train_spans, self.validation_spans = (_spans(self.info, name) for name in ("train", "validation"))
        except (Unreadable, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"data: {directory} must hold a prepared dataset; {error}. "
                            "Start the study again.") from error
        for array, count in zip((self.train, self.validation), counts, strict=True):
            if len(array) != count:
                raise UserError(f"data: {directory} is damaged: {len(array)} tokens where dataset.json says "
                                f"{count}. Start the study again: it writes them anew.")

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return tokenizing.load_tokenizer(self.directory / "tokenizer.json")

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, which may hold bytes that are no UTF-8, as the command line's arguments do."""
        if self.info["tokenizer"] == "bytes":
            return list(text.encode("utf-8", "surrogateescape"))
        return tokenizing.encode(self._tokenizer, text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens; bytes that are no UTF-8 become the replacement character."""
        if self.info["tokenizer"] == "bytes":
            return bytes(tokens).decode("utf-8", errors="replace")
        return tokenizing.decode(self._tokenizer, tokens)


def _spans(info: dict[str, Any], side: str) -> list[Span]:
    whole = [{"description": info.get("description", ""), "share": 1.0, "tokens": info[f"{side}_tokens"]}]
    spans, start = [], 0
    for part in info.get("parts", {}).get(side, whole):
        spans.append(Span(start, int(part["tokens"]), float(part["share"]), str(part["description"])))
        start += spans[-1].tokens
    return spans


def _windows(dataset: Dataset, tokens: np.ndarray, offsets: np.ndarray, context: int
             ) -> tuple[np.ndarray, np.ndarray]:
    rows = tokens[offsets[:, None] + np.arange(context + 1)].astype(np.int64)
    if rows.size and rows.max() >= dataset.info["vocabulary"]:
        raise UserError(f"data: {dataset.directory} is damaged: it has the token {rows.max()}, and its vocabulary "
                        f"{dataset.info['vocabulary']:,}. Start the study again: it writes them anew.")
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])


def _room(spans: list[Span], text: str, context: int) -> np.ndarray:
    """Return how many windows fit in each span."""
    for span in spans:
        if span.tokens <= context:
            at = f" of {span.description}" if len(spans) > 1 else ""
            raise UserError(rule("data", f"{text} text{at}", f"be longer than the context of {context}", span.tokens,
                                 "Add text or take a smaller --context."))
    return np.array([span.tokens - context for span in spans])


def must_be_longer(dataset: Dataset, context: int) -> None:
    """Raise UserError where a text is too short for one window of the context."""
    _room(dataset.train_spans, "training", context)
    _room(dataset.validation_spans, "validation", context)


def batch(dataset: Dataset, step: int, batch: int, context: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (inputs, targets), int64 (batch, context): random windows, a pure function of seed and step.

    If sources have weights, each window is of a source drawn by its share.
    """
    spans = dataset.train_spans
    room = _room(spans, "training", context)
    random = streams.generator("data order", seed, counter=step)
    if len(spans) == 1:
        return _windows(dataset, dataset.train, random.integers(0, room[0], size=batch), context)
    chosen = random.choice(len(spans), size=batch, p=[span.share for span in spans])
    offsets = np.array([span.start for span in spans])[chosen] + random.integers(0, room[chosen])
    return _windows(dataset, dataset.train, offsets, context)


def evaluation_batches(
    dataset: Dataset, tokens: int, batch: int, context: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield fixed, evenly spaced windows of the validation text, about ``tokens`` of them, all different.

    If sources have weights, each contributes windows in proportion to its share.
    """
    spans = dataset.validation_spans
    room = _room(spans, "validation", context)
    wanted = -(-tokens // context)
    most = np.maximum(room // context, 1)
    if len(spans) > 1:  # a source with little text must not change the shares
        wanted = min(wanted, *(int(m / span.share) for m, span in zip(most, spans, strict=True)))
    offsets = np.concatenate([
        span.start + np.linspace(0, r - 1, max(1, min(round(span.share * wanted), m))).astype(np.int64)
        for span, r, m in zip(spans, room.tolist(), most.tolist(), strict=True)])
    for start in range(0, len(offsets), batch):
        yield _windows(dataset, dataset.validation, offsets[start:start + batch], context)
