"""Hooks that stay behind: a copy of a model, and a pickle of it, are without those that watch it."""

import contextlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

_COPYING = "__reduce_ex__"  # what copy and pickle ask a dictionary for


class _WithoutOurs:
    """Describes a module's dictionary of hooks to copy and pickle: with everybody's hooks but ours."""

    def __init__(self, hooks: "OrderedDict[int, Any]"):
        self.hooks, self.ours = hooks, set[int]()

    def __call__(self, protocol: int) -> tuple[Any, ...]:
        state = {name: value for name, value in vars(self.hooks).items() if name != _COPYING}
        return type(self.hooks), (), state or None, None, self._others()

    def _others(self) -> Iterator[tuple[int, Any]]:
        return ((key, value) for key, value in [*self.hooks.items()] if key not in self.ours)


def _dictionaries(module: nn.Module) -> list[Any]:
    """Return the dictionaries in which torch keeps forward hooks, and which of them take what."""
    return [d for name, d in vars(module).items() if name.startswith("_forward_") and isinstance(d, OrderedDict)]


class Hooks:
    """Forward hooks on modules, until :meth:`remove`.

    They see the module that they were put on, and no copy of it.
    """

    def __init__(self) -> None:
        self._put: list[tuple[nn.Module, Any]] = []

    def __bool__(self) -> bool:
        return bool(self._put)

    def before(self, module: nn.Module, hook: Callable[..., Any], with_kwargs: bool = False) -> None:
        """Put on a hook that gets (module, args) before each call, or (module, args, kwargs)."""
        self._keep(module, module.register_forward_pre_hook(_only_of(module, hook), with_kwargs=with_kwargs))

    def after(self, module: nn.Module, hook: Callable[..., Any], with_kwargs: bool = False) -> None:
        """Put on a hook that gets (module, args, out) after each call, or (module, args, kwargs, out)."""
        self._keep(module, module.register_forward_hook(_only_of(module, hook), with_kwargs=with_kwargs))

    def _keep(self, module: nn.Module, handle: Any) -> None:
        self._put.append((module, handle))
        for hooks in _dictionaries(module):
            if handle.id in hooks:
                vars(hooks).setdefault(_COPYING, _WithoutOurs(hooks)).ours.add(handle.id)

    def remove(self) -> None:
        """Take the hooks off."""
        for module, handle in self._put:
            handle.remove()
            for hooks in _dictionaries(module):
                _forget(hooks, handle.id)
        self._put.clear()


def _forget(hooks: Any, key: int) -> None:
    copying = vars(hooks).get(_COPYING)
    if isinstance(copying, _WithoutOurs):
        copying.ours.discard(key)
        if not copying.ours:
            del vars(hooks)[_COPYING]


def _only_of(own: nn.Module, hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return the hook, idle in other modules: a shallow copy of a module shares its dictionary of hooks."""
    return lambda module, *rest: hook(module, *rest) if module is own else None


class _Compiler:
    """Keeps torch.compile aside while anything observes; what observes may end in any order. So no hook is compiled."""

    def __init__(self) -> None:
        self._observing = 0
        self._stance: Any = None

    def pause(self) -> None:
        if self._observing == 0:
            self._stance = torch.compiler.set_stance("force_eager")
        self._observing += 1

    def resume(self) -> None:
        self._observing -= 1
        if self._observing == 0:
            self._stance.__exit__(None, None, None)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Keep it aside while the block runs, if it was loaded: else nothing can have been compiled."""
        if "torch._dynamo" not in sys.modules:
            yield
            return
        self.pause()
        try:
            yield
        finally:
            self.resume()


COMPILER = _Compiler()
