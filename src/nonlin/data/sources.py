"""Where a study's text comes from: what is asked for, what of it stands in the plan, and its reading with progress."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from nonlin.data.corpus import Corpus, check, load_corpus
from nonlin.data.preparing import identity, prepare
from nonlin.errors import UserError
from nonlin.progress import Bytes, Progress


@dataclass(frozen=True)
class Sources:
    """Paths of the text, empty for the standard library's; weights and validation text, where there are any.

    ``end`` is the token that opens each document; without it a blank line stands between two.
    """

    paths: list[str] = field(default_factory=list)
    weights: list[float] | None = None
    validation: list[str] = field(default_factory=list)
    tokenizer: str | int = "bytes"
    end: int | None = None

    @classmethod
    def of_plan(cls, data: Mapping[str, Any]) -> Self:
        """Return the sources of a plan's "data"; UserError where the tokenizer's file is another one now."""
        found = cls(data["paths"], data.get("weights"), data.get("validation", []),
                    data.get("tokenizer_file", data["tokenizer"]), data.get("end"))
        if identity(found.tokenizer) != data["tokenizer"]:
            raise UserError(f"compare: {found.tokenizer} must be the tokenizer that the study began with; it was "
                            "changed. Restore it, or start a study in another folder.")
        return found

    def check(self) -> None:
        """Raise UserError where a path is not there, the weights do not fit, or the tokenizer is none; reads no text.
        """
        check(self.paths or None, weights=self.weights, validation=self.validation or None)
        identity(self.tokenizer)

    def read(self, folder: Path | None, words: Progress) -> Corpus:
        """Return the text, for a study whose folder is, or will be, ``folder``; what was left out of it is said."""
        with Bytes(words) as progress:
            corpus = load_corpus(self.paths or None, weights=self.weights, validation=self.validation or None,
                                 scratch=folder or Path("runs"), progress=progress)
        for note in corpus.notes:
            words.say(f"Data: {note}")
        return corpus

    def about(self, corpus: Corpus) -> dict[str, Any]:
        """Return the entry of a plan about the text.

        Options left out are not in it, so that studies planned before an option existed continue.
        """
        found: dict[str, Any] = {"sha256": corpus.sha256, "tokenizer": identity(self.tokenizer),
                                 "description": corpus.description, "paths": self.paths}
        if self.weights:
            found["weights"] = self.weights
        if self.validation:
            found["validation"] = self.validation
        if self.end is not None:
            found["end"] = self.end
        if found["tokenizer"] != self.tokenizer:
            found["tokenizer_file"] = str(self.tokenizer)
        return found

    def prepare(self, corpus: Corpus, folder: Path, words: Progress) -> dict[str, Any]:
        """Return the description of the tokens in the folder's data/, written there unless they are there."""
        with Bytes(words) as progress:
            info = prepare(corpus, folder / "data", self.tokenizer, progress, self.end)
        for note in info.get("notes", ())[len(corpus.notes):]:
            words.say(f"Data: {note}")
        return info
