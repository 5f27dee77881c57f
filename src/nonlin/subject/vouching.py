"""Functions that return a model run code: one that a folder names runs only if the user has passed it on this machine.

A study in such a model is described by the function's file, and that file's hash. Whoever writes a folder can write
both. So a call that is given the function notes its file, and a folder's word is held against these notes.
"""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from nonlin.errors import UserError, rule
from nonlin.files import only_ours, printable, private_folder, write_atomically

_here: set[str] = set()  # where notes cannot be written


def _note(file: str, sha256: str) -> str:
    # With the path: beside a copy of the file may lie another module that it imports.
    return hashlib.sha256(f"{file}\0{sha256}".encode("utf-8", "surrogateescape")).hexdigest()


def _folder() -> Path:
    from nonlin.kernels.cpu.build import cache_folder

    return private_folder(private_folder(cache_folder()) / "functions")


def vouch(file: str, sha256: str) -> None:
    """Note that the user has passed a function of this file."""
    name = _note(file, sha256)
    _here.add(name)
    with contextlib.suppress(OSError):
        write_atomically(_folder() / name, "")


def vouched(described: Any) -> bool:
    """Return whether the user has passed the function that a folder describes, from the same unchanged file."""
    if not isinstance(described, Mapping):
        return False
    values = cast("Mapping[str, Any]", described)
    name = _note(str(values.get("file")), str(values.get("sha256")))
    with contextlib.suppress(OSError):
        return name in _here or only_ours(_folder() / name)
    return name in _here


def must_be_vouched(own: Any, call: str, where: Path | str) -> None:
    """Raise UserError where the model of a folder's study is a function that this user has not passed here."""
    factory = own.get("factory") if isinstance(own, Mapping) else None
    if factory is not None and not vouched(factory):
        named = factory if isinstance(factory, Mapping) else {}
        raise UserError(rule(call, "the study's model", "be a function that you have passed on this machine",
                             printable(f"{where}: it names {named.get('name')!s:.80} in "
                                       f"{named.get('file')!s:.200}"),
                             "Read that file, which would run. If you agree, pass the function yourself, with "
                             "nonlin.compare(model=...) of the same study."))
