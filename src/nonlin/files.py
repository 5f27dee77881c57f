"""Files: written whole or not at all, read through one guard, their errors told in one sentence."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from nonlin.errors import UserError, not_empty, printable
from nonlin.system import open_to_read, set_mode, sync, user_number

LARGEST = 1 << 28
"""Bytes that a file may have that is read as a whole: the largest of ours, of thousands of runs, have some tens of MB.
"""
DEEPEST = 64
"""Levels of brackets that JSON may have: no record of ours has ten."""

_HOLES = 10_000  # of a file that are looked at
_LARGE = 1 << 20  # bytes of a file whose hash is remembered
_STEADY = 2 * 10**9  # nanoseconds
_hashes: dict[tuple[int, ...], str] = {}  # by a file's inode, size and times
_DIGITS = 20  # of a whole number of 64 bits, with its sign
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
_FULL_TEXT = re.compile(r"no space left on device|disk quota exceeded|file too large|os error 28\b|errno 28\b",
                        re.IGNORECASE)


class Unreadable(Exception):
    """A file is not there, or not what can be read; its text says why."""


# Reading.

def read_bytes(path: Path) -> bytes:
    """Return what is in a file. Unreadable where there is none, a folder, a pipe, or one that may not be read.

    So is a file of over ``LARGEST`` bytes: one that is empty but for its size would take all memory.
    """
    with opened(path) as file:
        found = file.read(LARGEST + 1)
    if len(found) > LARGEST:
        raise Unreadable(f"{path.name} is larger than {LARGEST >> 20} MiB")
    return found


def sha256(path: Path) -> str:
    """Return the hash of a file of any size. Unreadable as :func:`read_bytes`.

    So is a file of over ``LARGEST`` bytes of which a disk keeps less than a sixteenth. Reading it would have no end.
    No file of ours is empty but for its size.

    A process remembers the hash of a large file until the file changes. A study that looks at its saved models each
    minute would read gigabytes again.
    """
    with opened(path) as file:
        status = os.fstat(file.fileno())
        if status.st_size > LARGEST and _is_empty(file.fileno()):
            raise Unreadable(f"{path.name} is empty but for its size")
        if status.st_size < _LARGE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if state not in _hashes:
            # A file that changed a moment ago may change again within one tick of its clock.
            steady = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _STEADY
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if not steady:
                return found
            _hashes[state] = found
        return _hashes[state]


def _is_empty(handle: int) -> bool:
    """Whether a file is empty but for its size, by both its blocks and its holes; no file where holes are unknown.

    Blocks alone do not say it: some file systems count those of a new file later.
    """
    size = os.fstat(handle).st_size
    if not hasattr(os, "SEEK_DATA") or 16 * 512 * os.fstat(handle).st_blocks >= size:
        return False
    at = held = 0
    for _ in range(_HOLES):
        try:
            data = os.lseek(handle, at, os.SEEK_DATA)
        except OSError:  # no data from there on
            break
        at = os.lseek(handle, data, os.SEEK_HOLE)
        held += at - data
        if 16 * held >= size:
            break
    os.lseek(handle, 0, os.SEEK_SET)
    return 16 * held < size


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read it. Unreadable where there is none, a folder, a pipe, or one that may not be read."""
    try:
        handle = open_to_read(path)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise Unreadable(f"{path.name} is not a file")
            yield file
    except FileNotFoundError:
        raise Unreadable(f"{path.name} is missing") from None
    except (OSError, ValueError) as error:  # a name with a zero in it is a ValueError
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Unreadable(f"{path.name} cannot be read: {why}") from error


def read_json(path: Path) -> Any:
    """Return the values of a JSON file. Unreadable where it is none, or holds values that no file of ours has.

    Such are nesting beyond ``DEEPEST``, a name twice in one object, NaN, infinities, and whole numbers of over 64 bits.
    """
    try:
        values = json.loads(read_bytes(path), object_pairs_hook=_once, parse_constant=_no_number, parse_int=_whole,
                            parse_float=_finite_number)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path.name} is truncated or no JSON: {error}") from error
    level = [values]
    for _ in range(DEEPEST):
        level = [item for value in level if isinstance(value, dict | list)
                 for item in (value.values() if isinstance(value, dict) else value)]
        if not level:
            return values
    raise Unreadable(f"{path.name} is nested too deeply")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice in one object")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _whole(text: str) -> int:
    if len(text) > _DIGITS or abs(int(text)) >= 1 << 63:
        raise ValueError("a whole number has more than 64 bits")
    return int(text)


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is beyond those of 64 bits")
    return value


def plain_name(name: Any) -> bool:
    """Return whether a text that a file holds is the name of a file beside it, and leads nowhere else.

    >>> plain_name("weights.safetensors"), plain_name("../weights"), plain_name("..")
    (True, False, False)
    """
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


# Writing.

def write_atomically(path: Path, data: str | bytes) -> None:
    r"""Write a file so that a crash at any moment leaves the old one or the new one, whole.

    A text may hold bytes of a file's name that are no UTF-8: they are written as \udcNN, JSON's own way.
    """
    data = data if isinstance(data, bytes) else data.encode("utf-8", "backslashreplace")
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            set_mode(file.fileno(), 0o666 & ~_umask())
            os.fsync(handle)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _umask() -> int:
    old = os.umask(0o077)
    os.umask(old)
    return old


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to, and move what was written there; nothing, where that fails."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # a link there would be written through
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def inside(path: Path) -> Path:
    """Return a folder to write to, made where there is none; UserError where a link stands there.

    A study's folder may come from anybody, and a link in it lead anywhere.
    """
    if path.is_symlink():
        raise UserError(f"{printable(str(path))} must be a folder to be written to; it is a link. Put the folder that "
                        "it leads to in its place.")
    path.mkdir(exist_ok=True)
    return path


def write_json(path: Path, value: Any) -> None:
    """Write JSON values to a file, atomically; null for what JSON cannot write. UserError where that fails."""
    with writing(path.parent):
        write_atomically(path, json.dumps(finite(value), indent=1) + "\n")


def finite(value: Any) -> Any:
    """Return JSON values with null for every number that JSON cannot write.

    >>> finite({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def writing(directory: Path | str) -> Iterator[None]:
    """Tell what the system refuses while a folder is written in one sentence, as a UserError."""
    try:
        yield
    except OSError as error:
        raise unwritable(directory, error) from error


def unwritable(directory: Path | str, error: OSError) -> UserError:
    """Return the error for a folder that cannot be written."""
    if disk_full(error):
        return disk_full_error(directory)
    return UserError(f"{printable(str(directory))} must be a folder that can be written; {error}. "
                     "Choose another folder.")


def disk_full(problem: BaseException | str) -> bool:
    """Return whether an error, or another process's account of one, says that the disk is full."""
    if isinstance(problem, OSError) and problem.errno in _FULL:
        return True
    return bool(_FULL_TEXT.search(str(problem)))


def disk_full_error(directory: Path | str) -> UserError:
    """Return the error of a full disk."""
    return UserError(f"the disk that holds {printable(str(directory))} is full; every finished run is kept. "
                     "Free some space, then give the same command again: it continues.")


def must_be_page(call: str, argument: str, path: str | Path) -> None:
    """Raise UserError for a path that no page can be written to; folders on the way to it are made later.

    Called before the page's work is done.
    """
    not_empty(call, **{argument: path})
    if why := no_page(path):
        raise UserError(f"{call}: {argument} {why}")


def no_page(path: str | Path) -> str | None:
    """Return why a path can be no file to write a page to, in words that follow its name; None if it can."""
    if os.path.isdir(path):
        return f"must be a file; {printable(str(path))} is a folder. Give a file in it, such as " \
               f"{printable(str(Path(path) / 'page.html'))}."
    there = next(p for p in Path(path).absolute().parents if os.path.lexists(p))  # the others are made
    if not os.path.isdir(there):
        return f"must be a file that can be made; {printable(str(there))} is a file, and no folder. " \
               "Choose another folder."
    return None


def private_folder(path: Path) -> Path:
    """Return a folder that nobody else can write to, made where there is none; OSError where it cannot be had.

    One that is ours and open to others is closed. If another user's stands there, ours is beside it, by our number.
    """
    user = user_number()
    for folder in (path, path.with_name(f"{path.name}-{user}")):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and user in (None, found.st_uid):
            if user is not None and found.st_mode & 0o077:
                folder.chmod(0o700)
            return folder
    raise PermissionError(errno.EPERM, "belongs to another user", str(path))


def only_ours(path: Path) -> bool:
    """Return whether a file is ours alone: no link, and written by nobody else."""
    try:
        found = path.lstat()
    except OSError:
        return False
    user = user_number()
    if user is None:  # a user's own folder is closed to others there
        return stat.S_ISREG(found.st_mode)
    return stat.S_ISREG(found.st_mode) and found.st_uid == user and not found.st_mode & 0o022


@contextlib.contextmanager
def lock(path: Path, wait: bool | float = False) -> Iterator[bool]:
    """Hold a lock file while the block runs; yield whether it is ours. A killed process holds nothing.

    ``wait``: for as long as it takes, or so many seconds.
    """
    from filelock import FileLock, Timeout

    holder = FileLock(path, timeout=-1 if wait is True else float(wait), mode=0o644)
    try:
        holder.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        holder.release()
