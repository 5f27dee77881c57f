"""Text to train on: Python's own standard library, the user's files and folders, or a named dataset."""

import hashlib
import itertools
import json
import os
import stat
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from nonlin.data.reading import Losses, encoded, pieces, unreadable
from nonlin.data.spool import Documents, Spool
from nonlin.errors import UserError, not_empty, rule
from nonlin.files import printable, writing
from nonlin.kinds import kind_of

SMALLEST_BYTES = 64 * 1024
PREPARED = {"train.bin", "validation.bin", "tokenizer.json", "dataset.json"}
"""The files of a folder of tokens (:func:`nonlin.data.prepare`), beside its .lock."""
SMALLEST_SHARE = 1e-9
"""Of the text that a source may have by its weight: less is never drawn."""
DATASET_BYTES = 100_000_000
"""Text that is taken of a named dataset."""

_SKIPPED = {"site-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3"}
_FILES = (".txt", ".text", ".md", ".rst", ".py", ".json", ".jsonl", ".ndjson", ".csv", ".html", ".xml", ".gz", ".zst",
          ".zstd", ".parquet")  # endings that no dataset's name has

#: Documents as (name, pieces of the text); a document's pieces are taken before the next document.
Streamed = Iterator[tuple[str, Iterable[bytes]]]
#: Told (stage, bytes done, bytes in all; 0 where that is not known).
Progress = Callable[[str, int, int], None]


class Corpus:
    """Documents (name, bytes), what they are, and the hash of all of it.

    ``ends`` are the documents' numbers at which each source ends, with its ``descriptions`` and ``weights``; one
    source where no weights are given. ``validation_from`` is the first document of a validation text of its own.
    ``notes`` say what was left out or replaced on the way. Beyond some megabytes the text lies in a temporary file
    in ``scratch``.
    """

    def __init__(self, documents: Iterable[tuple[str, bytes]] = (), description: str = "", source: str = "user",
                 scratch: Path | None = None):
        self.spool, self.description, self.source = Spool(scratch), description, source
        self.weights, self.ends, self.descriptions = [1.0], [0], [description]
        self.validation_from: int | None = None
        self.notes: tuple[str, ...] = ()
        self.take((name, (text,)) for name, text in documents)
        self.ends = [self.spool.count]

    def take(self, documents: Streamed, progress: Callable[[], None] = lambda: None) -> None:
        """Append documents; no more than a piece of a text is in memory."""
        for name, text in documents:
            with writing(self.spool.scratch):
                self.spool.add(name, _watched(text, progress))

    @property
    def documents(self) -> Documents:
        """The documents, each read when it is asked for."""
        return Documents(self.spool)

    @property
    def size(self) -> int:
        """The number of bytes of text."""
        return self.spool.size

    @property
    def sha256(self) -> str:
        """The hash of names and texts, and of weights and validation text where there are any."""
        if len(self.ends) == 1 and self.validation_from is None:
            return self.spool.sha256
        shares = [weight / sum(self.weights) for weight in self.weights]
        whole = [self.spool.sha256, self.ends, shares, self.validation_from]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


#: A path, a dataset's name, or several of them.
Spec = str | Path | Sequence[str | Path]


def load_corpus(spec: Spec | None = None, *, weights: Sequence[float] | None = None, validation: Spec | None = None,
                scratch: str | Path | None = None, progress: Progress | None = None) -> Corpus:
    """Return the text that ``spec`` names: None for the standard library, files, folders, or a dataset's name.

    Files: text, .jsonl, .ndjson and .json records with a "text", .parquet with a column "text", and .gz and .zst of
    them. ``weights``, one for each path, are the shares of a batch that come from each; without them every token
    comes as often. ``validation`` names text to judge by, in place of a tenth of the text. At most some megabytes
    are in memory, however large the text is: it is copied to a temporary file in the folder ``scratch``. Raises
    UserError where something is missing, empty, unreadable, or smaller than 64 KiB in all.
    """
    not_empty("data", scratch=scratch)
    specs = [None] if spec is None else _several(spec)
    weights = _checked(weights, specs)
    corpus, losses = Corpus(source="stdlib" if spec is None else "user", scratch=_scratch(scratch)), Losses()
    whole = sum(_bytes_on_disk(s) for s in [*specs, *(_several(validation) if validation is not None else ())] if s)

    def told() -> None:
        if progress:
            progress("Reading text", losses.bytes_read, whole)

    losses.scratch, losses.progress = corpus.spool.scratch, told
    ends, descriptions = [], []
    for one in specs:
        if one is None:
            documents, shown = _standard_library()
        else:
            documents, shown = _load(one, losses), printable(one)
        corpus.take(documents, told)
        ends.append(corpus.spool.count)
        descriptions.append(shown)
    corpus.description = ", ".join(descriptions)
    if spec is not None and corpus.size < SMALLEST_BYTES:
        raise UserError(rule("data", "text", f"have at least {SMALLEST_BYTES} bytes", corpus.size,
                             " ".join(["Add files, or leave --data out for the default text.", *losses.sentences()])))
    if weights is None:
        ends, descriptions = ends[-1:], [corpus.description]
    corpus.weights, corpus.ends, corpus.descriptions = list(weights or [1.0]), ends, descriptions
    if validation is not None:
        corpus.validation_from = corpus.spool.count
        for one in _several(validation):
            corpus.take(_load(one, losses), told)
        corpus.description += f"; judged by {', '.join(map(printable, _several(validation)))}"
    corpus.notes = tuple(losses.sentences())
    return corpus


def check(spec: Spec | None = None, *, weights: Sequence[float] | None = None, validation: Spec | None = None) -> None:
    """Raise UserError for arguments that :func:`load_corpus` would refuse before it reads a text."""
    specs = [None] if spec is None else _several(spec)
    _checked(weights, specs)
    for one in [*specs, *(_several(validation) if validation is not None else ())]:
        if one is not None and _kind(one) is None:
            _dataset_reader(one)


def _watched(text: Iterable[bytes], progress: Callable[[], None]) -> Iterator[bytes]:
    for piece in text:
        progress()
        yield piece


def _several(spec: Spec) -> list[str]:
    found = [str(spec)] if isinstance(spec, (str, Path)) else list(map(str, spec))
    not_empty("data", path=found)
    return found


def _checked(weights: Sequence[float] | None, specs: Sequence[Any]) -> Sequence[float] | None:
    if weights is None:
        return None
    if len(weights) != len(specs) or not all(0 < w < float("inf") for w in weights):
        raise UserError(rule("data", "weights", f"be a positive number for each of the {len(specs)} sources of text",
                             list(weights), "Give as many weights as --data."))
    if not min(weights) / sum(weights) > SMALLEST_SHARE:
        raise UserError(rule("data", "weights", f"give each source more than {SMALLEST_SHARE:g} of the text",
                             list(weights), "Leave the source out, or give it more."))
    return weights


def _scratch(folder: str | Path | None) -> Path | None:
    """The nearest folder that is there: what lies in it is on the same disk."""
    where = None if folder is None else Path(folder).absolute()
    while where is not None and not where.is_dir() and where != where.parent:
        where = where.parent
    return where if where is not None and os.access(where, os.W_OK | os.X_OK) else None


def _bytes_on_disk(spec: str) -> int:
    """The size of a file, or of a folder's files; 0 where that is not known."""
    path = Path(spec)
    try:
        return sum(f.stat().st_size for f in _files(path, Losses())) if path.is_dir() else path.stat().st_size
    except (OSError, UserError):
        return 0


def _standard_library() -> tuple[Streamed, str]:
    root = Path(sysconfig.get_path("stdlib"))
    texts = ((str(path.relative_to(root)), path.read_bytes()) for path in sorted(root.rglob("*.py"))
             if not _SKIPPED & set(path.relative_to(root).parts))
    return (((name, (text,)) for name, text in texts if text),
            f"the Python {sysconfig.get_python_version()} standard library")


def _load(spec: str, losses: Losses) -> Streamed:
    path, kind = Path(spec), _kind(spec)
    if kind == stat.S_IFDIR:
        found = False
        for file in _files(path, losses):
            for document in _documents(file, losses, in_folder=True):
                found = True
                yield document
        if not found:
            raise UserError(rule("data", "folder", "hold text files", printable(spec), " ".join(
                ["Pass a folder with text in it.", *losses.sentences()])))
    elif kind == stat.S_IFREG:
        yield from _documents(path, losses, in_folder=False)
    else:
        yield from _named_dataset(spec, losses)


def _kind(spec: str) -> int | None:
    """Return whether a file or a folder is there, None for a dataset's name; UserError for anything else."""
    try:
        kind = stat.S_IFMT(Path(spec).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        if _names_dataset(spec):
            return None
        raise UserError(rule("data", "path", "exist", printable(spec),
                             "Check the path, or leave --data out.")) from None
    except (OSError, ValueError) as error:
        raise unreadable(Path(spec), error) from error
    if kind not in (stat.S_IFDIR, stat.S_IFREG):
        raise unreadable(Path(spec), "it is neither a file nor a folder")
    return kind


def _names_dataset(spec: str) -> bool:
    """Whether a name that is no path here reads as OWNER/DATASET, whose names may have dots in them."""
    owner, slash, name = spec.partition("/")
    if not (owner and slash and name) or "/" in name or owner.startswith((".", "~")):
        return False
    return not (Path(owner).is_dir() or name.endswith(_FILES))


def _files(folder: Path, losses: Losses) -> list[Path]:
    """Return the folder's files at any depth, in order; hidden ones, and those of hidden folders, are left out.

    So is what nonlin wrote: a study's folder may lie among the text, and text must be the same when the study goes on.
    """
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise unreadable(error.filename or folder, error) from error

    for where, folders, names in os.walk(folder, onerror=refuse):
        if _written_by_us(where, names):
            losses.add("folders of studies left out", where)
            folders.clear()
            continue
        for name in (n for n in [*folders, *names] if n.startswith(".")):
            losses.add("hidden files and folders left out", os.path.join(where, name))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if os.path.islink(link := os.path.join(where, name)):
                losses.add("links to folders not followed", link)
        found += [Path(where, name) for name in names if not name.startswith(".")]
    for path in found:
        if not path.is_file():
            losses.add("broken links and special files left out", str(path))
    return sorted(path for path in found if path.is_file())


def _written_by_us(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder is a study's or the like, or holds tokens: those are there before the plan of a study is."""
    shown = {name for name in names if not name.startswith(".")}
    return kind_of(folder) is not None or (".lock" in names and bool(shown) and shown <= PREPARED)


def _documents(path: Path, losses: Losses, in_folder: bool) -> Streamed:
    """Yield a file's documents: named by the file where it holds one, and by their numbers in it where it holds more.
    """
    before = sum(losses.counts.values())
    texts = itertools.groupby(pieces(path, losses, in_folder), key=itemgetter(0))
    index, held = -1, b""
    for index, group in texts:
        text = map(itemgetter(1), group)
        if index == 0:  # its name depends on whether another follows
            first, rest = next(text), list(itertools.islice(text, 1))
            if rest:  # long plain text, which is one document
                yield str(path), itertools.chain([first], rest, text)
                return
            held = first
        else:
            if index == 1:
                yield f"{path}#0", (held,)
            yield f"{path}#{index}", text
    if index == 0:
        yield str(path), (held,)
    elif index < 0 and in_folder:
        if path.stat().st_size == 0:
            losses.add("empty files left out", str(path))
        elif sum(losses.counts.values()) == before:
            losses.add("files without text left out", str(path))
    elif index < 0:
        raise UserError(rule("data", "file", "hold text", f"an empty {printable(str(path))}", "Pass another file."))


def _dataset_reader(name: str) -> Any:
    """Return the package that reads named datasets; UserError where it is not installed."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"data: {name!r} is no file here, and reading a Hugging Face dataset needs the package "
                        "datasets. Run pip install datasets, or check the path.") from error
    return datasets


def _named_dataset(name: str, losses: Losses) -> Streamed:
    datasets = _dataset_reader(name)
    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
        taken = 0
        for index, row in enumerate(rows):
            if taken > DATASET_BYTES:
                losses.add(f"dataset read no further than its first {DATASET_BYTES // 1_000_000} MB", name)
                return
            if not isinstance(row.get("text", 0), str | None):
                raise ValueError(f'row {index} has no column "text" among {", ".join(row)}')
            text = encoded(row["text"], f"{name} row {index}", losses)
            taken += len(text)
            if text:
                yield f"{name}#{index}", (text,)
    except Exception as error:  # whatever the hub or the network raises
        raise UserError(f"data: the dataset {name!r} cannot be read: {error}. Pass files instead.") from error
