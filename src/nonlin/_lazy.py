"""Names of a package that load their home module on first use."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def attributes(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` for public names and the modules they live in."""

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return __getattr__


def listing(names: Sequence[str]) -> Callable[[], list[str]]:
    """Return a module's ``__dir__``: its public names and no more."""
    return lambda: sorted(names)
