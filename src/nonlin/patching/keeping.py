"""What a module keeps between calls beside its weights: attributes and buffers that its forward writes or reads.

A replacement of a block writes none of them, and reads those that its recipe names. To look at a block is to run it:
what that wrote is put back.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

OF_TORCH = {*vars(nn.Module()), *vars(nn.Module)} - {"forward"}
"""Names of attributes that every module has."""


def attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module keeps under names of its class's own."""
    return {name: value for name, value in vars(module).items()
            if name not in OF_TORCH and not name.startswith("_nonlin")}


@contextlib.contextmanager
def left_as_it_was(module: nn.Module) -> Iterator[None]:
    """Put back the attributes and buffers of the module's parts that a run writes."""
    kept = [(m, attributes(m), dict(m._buffers)) for m in module.modules()]
    values: list[Any] = [v for _, own, buffers in kept for v in (*own.values(), *buffers.values())]
    tensors = [(t, t._version, t.detach().clone()) for t in values if isinstance(t, Tensor) and not t.is_inference()]
    holders: list[tuple[Any, Any]] = [(v, v.copy()) for v in values if type(v) in (list, dict, set)]
    try:
        yield
    finally:
        for m, before, buffers in kept:
            for name in attributes(m).keys() - before.keys():
                del vars(m)[name]
            vars(m).update(before)
            m._buffers.update(buffers)
        for tensor, version, value in tensors:
            if tensor._version != version:
                with torch.no_grad():
                    tensor.copy_(value)
        for holder, contents in holders:
            holder.clear()
            (holder.extend if isinstance(holder, list) else holder.update)(contents)


def written(module: nn.Module, leave_out: tuple[str, ...], run: Callable[[], Any]) -> str | None:
    """Return what each run of a module writes, by its path; None for nothing. Parts ``leave_out`` may write.

    The first run may write more.
    """
    run()
    before = _state(module, leave_out)
    run()
    after = _state(module, leave_out)
    return next((path for path in {**before, **after} if path not in before or path not in after
                 or before[path][1:] != after[path][1:] or before[path][0] is not after[path][0]), None)


def inside(path: str, parts: tuple[str, ...]) -> bool:
    return any(path == p or path.startswith(f"{p}.") for p in parts)


def _state(module: nn.Module, leave_out: tuple[str, ...]) -> dict[str, tuple[Any, ...]]:
    """Return the marks of every tensor, number and word that a module's parts keep, by path."""
    found: dict[str, tuple[Any, ...]] = {}
    for prefix, m in module.named_modules():
        if inside(prefix, leave_out):
            continue
        for name, value in {**attributes(m), **m._buffers}.items():
            path = f"{prefix}.{name}" if prefix else name
            found |= _marks(path, value)
            if isinstance(value, (list, dict)):  # one that is written in the same place is as long as before
                entries: Any = value.items() if isinstance(value, dict) else enumerate(value)
                found |= {at: mark for key, one in entries for at, mark in _marks(f"{path}[{key!r}]", one).items()}
    return found


def _marks(path: str, value: Any) -> dict[str, tuple[Any, ...]]:
    """Return what tells that a value was written: which it is, and its version, its number or how many it holds."""
    if isinstance(value, Tensor):
        return {path: (value, value._version)}
    if isinstance(value, (int, float, str)):
        return {path: (None, value)}
    return {path: (value, len(value))} if isinstance(value, (list, dict, set)) else {}


def tensors(module: nn.Module) -> tuple[str, ...]:
    """Return the paths of the tensors, no weights, that a module's parts keep."""
    return tuple(f"{prefix}.{name}" if prefix else name for prefix, m in module.named_modules()
                 for name, value in {**attributes(m), **m._buffers}.items() if isinstance(value, Tensor))


def read(module: nn.Module, paths: Iterable[str], run: Callable[[], Tensor]) -> str | None:
    """Return which of the tensors at ``paths`` the value of ``run()`` depends on, or None.

    Others stand in their places to find out, and they come back.
    """
    value = run()
    for path in paths:
        holder, _, name = path.rpartition(".")
        m = module.get_submodule(holder)
        place: dict[str, Any] = vars(m) if name in vars(m) else m._buffers
        tensor = place[name]
        try:
            place[name] = ~tensor if tensor.dtype == torch.bool else tensor * 2 + 1
            same = torch.equal(run(), value)
        except Exception:  # a number that stands for a place, or a size
            same = False
        finally:
            place[name] = tensor
        if not same:
            return path
    return None


def looked_at(module: nn.Module, run: Callable[[], Any]) -> tuple[str, ...] | None:
    """Return the paths of the attributes that a run reads, or None where that cannot be seen.

    What it does not read cannot matter before something changes that it reads.
    """
    found: set[str] = set()
    paths: dict[int, list[str]] = {}
    for path, m in module.named_modules(remove_duplicate=False):
        paths.setdefault(id(m), []).append(f"{path}." if path else "")
    classes = [(m, type(m)) for m in module.modules()]
    try:
        for m, cls in classes:
            m.__class__ = _looking(cls, paths, found)
        run()
    except Exception:  # any class may stand in a block, also one that nothing can be below
        return None
    finally:
        for m, cls in classes:
            m.__class__ = cls
    return tuple(sorted(found))


def _looking(cls: type, paths: dict[int, list[str]], found: set[str]) -> type:
    """Return a class below another, which keeps the paths of the attributes that are asked for."""
    original: Any = cls.__getattribute__

    def look(self: Any, name: str) -> Any:
        if not name.startswith("__"):
            found.update(f"{prefix}{name}" for prefix in paths.get(id(self), ()))
        return original(self, name)

    return type(cls.__name__, (cls,), {"__getattribute__": look, "__module__": cls.__module__})
