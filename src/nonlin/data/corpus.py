"""Text to train on: Python's own standard library, the user's files and folders, or a named dataset."""

import gzip
import hashlib
import io
import json
import os
import stat
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nonlin.errors import UserError, rule

SMALLEST_BYTES = 64 * 1024
_SKIPPED = {"site-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3"}
_FILES = (".txt", ".text", ".md", ".rst", ".py", ".json", ".jsonl", ".csv", ".html", ".xml", ".gz", ".zst", ".zstd",
          ".parquet")  # endings that no dataset's name has


@dataclass(frozen=True)
class Corpus:
    """Documents (name, bytes), what they are, and the hash of all of it."""

    documents: tuple[tuple[str, bytes], ...]
    description: str
    source: str

    @property
    def size(self) -> int:
        """The number of bytes of text."""
        return sum(len(text) for _, text in self.documents)

    @property
    def sha256(self) -> str:
        """The hash of names and texts."""
        digest = hashlib.sha256()
        for name, text in self.documents:
            digest.update(f"{len(name)}:{name}:{len(text)}:".encode(errors="surrogateescape") + text)
        return digest.hexdigest()


def load_corpus(spec: str | Path | Sequence[str | Path] | None = None) -> Corpus:
    """Return the text that ``spec`` names: None for the standard library, files, folders, or a dataset's name.

    Files: text, .gz and .zst of them, .jsonl ("text" fields), .parquet ("text" column). Raises UserError where
    something is missing, empty, unreadable, or smaller than 64 KiB in all.
    """
    if spec is None:
        return _standard_library()
    specs = [spec] if isinstance(spec, (str, Path)) else list(spec)
    documents: list[tuple[str, bytes]] = []
    for one in specs:
        documents.extend(_load(str(one)))
    corpus = Corpus(tuple(documents), ", ".join(map(str, specs)), "user")
    if corpus.size < SMALLEST_BYTES:
        raise UserError(rule("data", "text", f"have at least {SMALLEST_BYTES} bytes", corpus.size,
                             "Add files, or leave --data out for the default text."))
    return corpus


def _standard_library() -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    documents = [(str(path.relative_to(root)), path.read_bytes()) for path in sorted(root.rglob("*.py"))
                 if not _SKIPPED & set(path.relative_to(root).parts)]
    version = sysconfig.get_python_version()
    return Corpus(tuple(d for d in documents if d[1]), f"the Python {version} standard library", "stdlib")


def _load(spec: str) -> Iterator[tuple[str, bytes]]:
    path = Path(spec)
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_folder = None
    except OSError as error:
        raise _unreadable(path, str(error)) from error
    if is_folder:
        found = [d for file in _files(path) for d in _read_file(file, skip_binary=True)]
        if not found:
            raise UserError(rule("data", "folder", "hold text files", spec, "Pass a folder with text in it."))
        yield from found
    elif is_folder is False:
        yield from _read_file(path, skip_binary=False)
    elif _names_dataset(spec):
        yield from _named_dataset(spec)
    else:
        raise UserError(rule("data", "path", "exist", spec, "Check the spelling, or leave --data out."))


def _names_dataset(spec: str) -> bool:
    """Whether a name that is no path here reads as OWNER/DATASET, whose names may have dots in them."""
    owner, slash, name = spec.partition("/")
    if not (owner and slash and name) or "/" in name or owner.startswith((".", "~")):
        return False
    return not (Path(owner).is_dir() or name.endswith(_FILES))


def _files(folder: Path) -> list[Path]:
    """Return the folder's files at any depth, in order; hidden ones, and those of hidden folders, are left out."""
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise _unreadable(Path(error.filename or folder), str(error)) from error

    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _read_file(path: Path, skip_binary: bool) -> Iterator[tuple[str, bytes]]:
    try:
        raw = path.read_bytes()
        name = path.name
        if name.endswith(".gz"):
            raw, name = gzip.decompress(raw), name[:-3]
        elif name.endswith((".zst", ".zstd")):
            raw, name = _zstandard(raw), name.rsplit(".", 1)[0]
        texts = list(_texts(raw, name, path))
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise _unreadable(path, str(error)) from error
    except Exception as error:  # zstandard and pyarrow raise classes of their own for damaged files
        if type(error).__module__.split(".")[0] not in ("zstandard", "pyarrow", "zlib"):
            raise
        raise _unreadable(path, str(error)) from error
    texts = [text for text in texts if text]
    if any(b"\0" in text[:4096] for text in texts):
        if skip_binary:
            return
        raise _unreadable(path, "it holds binary data, not text")
    if not texts and not skip_binary:
        raise UserError(rule("data", "file", "hold text", f"an empty {path}", "Pass another file."))
    for index, text in enumerate(texts):
        yield (str(path) if len(texts) == 1 else f"{path}#{index}"), text


def _zstandard(raw: bytes) -> bytes:
    """Return the text of all frames; ValueError where the last is not whole, which a stream reader keeps to itself."""
    import zstandard

    parts: list[bytes] = []
    while raw:
        frame = zstandard.ZstdDecompressor().decompressobj()
        parts.append(frame.decompress(raw))
        if not frame.eof:
            raise ValueError("its end is missing")
        raw = frame.unused_data
    return b"".join(parts)


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(f"data: {path} cannot be read: {why}. Pass text, .gz, .zst, .jsonl or .parquet.")


def _texts(raw: bytes, name: str, path: Path) -> Iterable[bytes]:
    if name.endswith(".jsonl"):
        for number, line in enumerate(raw.splitlines(), 1):
            if line.strip():
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number} is not JSON: {error}") from error
                if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                    raise ValueError(f'line {number} has no "text"')
                yield record["text"].encode()
    elif name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(io.BytesIO(raw))
        if "text" not in table.column_names:
            raise ValueError(f'no column "text" among {", ".join(table.column_names)}')
        kind = table.schema.field("text").type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise ValueError(f'its column "text" holds {kind}')
        yield from (value.encode() for value in table["text"].to_pylist() if value)
    else:
        yield raw


def _named_dataset(name: str) -> Iterator[tuple[str, bytes]]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"data: {name!r} is no file here, and reading a Hugging Face dataset needs the package "
                        "datasets. Run pip install datasets, or check the path.") from error
    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
        taken = 0
        for index, row in enumerate(rows):
            if not isinstance(row.get("text"), str):
                raise ValueError(f'row {index} has no column "text" among {", ".join(row)}')
            text = row["text"].encode()
            taken += len(text)
            yield f"{name}#{index}", text
            if taken > 100_000_000:
                return
    except Exception as error:  # whatever the hub or the network raises
        raise UserError(f"data: the dataset {name!r} cannot be read: {error}. Pass files instead.") from error


def split(corpus: Corpus, validation_fraction: float = 0.1) -> tuple[list[bytes], list[bytes]]:
    """Return (training, validation) texts, by document and always the same way; neither is empty.

    Documents go by the hash of their name and text, whatever lies beside or before them; copies of one text go
    together. With fewer than ten, or a side that would hold less than a third of its share of bytes, every document
    is cut at its end instead.
    """
    training, validation = [], []
    least: dict[bytes, bytes] = {}  # of a text's names, so that no copy is trained on and judged by
    for name, text in corpus.documents:
        digest = hashlib.sha256(name.rsplit("/", 1)[-1].encode(errors="surrogateescape") + b"\0" + text).digest()
        least[text] = min(digest, least.get(text, digest))
    for _, text in corpus.documents:
        chosen = validation if int.from_bytes(least[text][:4], "big") < validation_fraction * 2**32 else training
        chosen.append(text)
    held, whole = sum(map(len, validation)), corpus.size
    share = held / max(whole, 1)
    if len(corpus.documents) >= 10 and validation_fraction / 3 < share < min(3 * validation_fraction, 0.5):
        return training, validation
    cuts = [(text, int(len(text) * (1 - validation_fraction))) for _, text in corpus.documents]
    return [text[:cut] for text, cut in cuts], [text[cut:] for text, cut in cuts]
