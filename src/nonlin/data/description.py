"""The description of prepared tokens, dataset.json, checked where it is read: a folder may come from anybody."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from nonlin.files import Unreadable, read_json
from nonlin.records import Record

_Count = Annotated[int, Meta(ge=0, le=10**15)]
_Share = Annotated[float, Meta(ge=0, le=1)]


class PartForm(Record, frozen=True, kw_only=True):
    tokens: _Count
    share: _Share
    description: str


class DatasetForm(Record, frozen=True, kw_only=True):
    sha256: str
    corpus_sha256: str
    tokenizer: str | int
    vocabulary: Annotated[int, Meta(ge=1, le=1 << 32)]
    dtype: Literal["uint8", "uint16", "uint32"]
    train_tokens: _Count
    validation_tokens: _Count
    bytes_per_token_validation: Annotated[float, Meta(ge=0, le=1e6)]
    files: dict[str, str]
    train_bytes: _Count | UnsetType = UNSET
    validation_bytes: _Count | UnsetType = UNSET
    end: Annotated[int, Meta(ge=0, le=1 << 32)] | UnsetType | None = UNSET
    description: str | UnsetType = UNSET
    notes: list[str] | UnsetType = UNSET
    parts: dict[Literal["train", "validation"], list[PartForm]] | UnsetType = UNSET

    def __post_init__(self):
        if self.tokenizer == "bytes" and (self.vocabulary, self.dtype) != (256, "uint8"):
            raise ValueError("its bytes are no bytes")
        if not isinstance(self.parts, UnsetType):
            _must_be_all(self.parts["train"], self.train_tokens)
            _must_be_all(self.parts["validation"], self.validation_tokens)


def _must_be_all(parts: list[PartForm], tokens: int) -> None:
    if sum(part.tokens for part in parts) != tokens or abs(sum(part.share for part in parts) - 1) > 1e-6:
        raise ValueError("its parts are not all of its text")


def read_description(directory: Path) -> dict[str, Any]:
    """Return dataset.json; Unreadable where there is none, or one that does not describe tokens."""
    values = read_json(directory / "dataset.json")
    try:
        msgspec.convert(values, DatasetForm)
    except (msgspec.ValidationError, ValueError, KeyError, OverflowError) as error:
        raise Unreadable(f"dataset.json does not describe tokens: {error}") from error
    return values
