"""A limit on the size of a model, kept while it is built: whoever writes a configuration can write any size in it.

A field that says nothing is a size too: that of the family's default. So no list of fields tells how large a model
becomes, and the parts are counted as they are made.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn.modules import module as registering

MODULES = 500_000
"""Parts that a model may have, where nothing else is known of it."""
NUMBERS = 1 << 46
"""Parameters, of a model that nobody could build."""
_SPARE_MODULES, _MODULES_A_TENSOR = 20_000, 50
_SPARE_NUMBERS, _TIMES = 1 << 24, 4  # of stored numbers: weights that are tied are made once for each place
_TABLES = 1 << 28  # numbers in tables of positions and masks


class TooLarge(Exception):
    """Why a model is not built; the text completes "must ..."."""


@contextlib.contextmanager
def at_most(numbers: int, modules: int = MODULES, tables: int | None = None, known: str = "") -> Iterator[None]:
    """Raise TooLarge as soon as this thread makes more of a model than ``numbers`` of parameters, or so many parts.

    ``tables``: numbers in buffers, by default as many as in parameters. ``known`` says why there is a limit.
    """
    count = {"numbers": 0, "modules": 0, "tables": 0}
    limits = {"numbers": numbers, "modules": modules, "tables": numbers if tables is None else tables}
    words = {"numbers": "numbers in its weights", "modules": "parts", "tables": "numbers in its tables of positions"}
    thread = threading.get_ident()

    def add(kind: str, size: int) -> None:
        if threading.get_ident() != thread:
            return
        count[kind] += size
        if count[kind] > limits[kind]:
            raise TooLarge(f"have at most {limits[kind]:,} {words[kind]}{known}; its configuration makes "
                           f"{'at least ' if count[kind] > size else ''}{count[kind]:,}")

    def tensor(kind: str) -> Any:
        # A tensor that is filled afterwards is registered again, no longer on the meta device.
        return lambda _, __, value: add(kind, value.numel()) if isinstance(value, Tensor) and value.is_meta else None

    handles = [registering.register_module_module_registration_hook(lambda _, __, made: add("modules", 1)),
               registering.register_module_parameter_registration_hook(tensor("numbers")),
               registering.register_module_buffer_registration_hook(tensor("tables"))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def as_stored(tensors: int, numbers: int) -> "contextlib.AbstractContextManager[None]":
    """Return the limit of a model whose files hold so many tensors, and so many numbers."""
    return at_most(_TIMES * numbers + _SPARE_NUMBERS, _MODULES_A_TENSOR * tensors + _SPARE_MODULES,
                   _TIMES * numbers + _TABLES, f", since its files hold {numbers:,} in {tensors:,} tensors")
