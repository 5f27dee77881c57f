"""Where a block drops values: by a module (``nn.Dropout``), or by torch's function with a number that a part keeps.

A recipe names either by its path within the block: the module's, or the number's (``residual_dropout``).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from nonlin.patching.patch import Recipe, part


class _Calls(TorchFunctionMode):
    """Notes each call of torch's dropout: its input and its probability."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, float]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.dropout:
            self.seen.append((args[0], kwargs["p"]))
        return func(*args, **(kwargs or {}))


def with_dropouts(recipe: Recipe, module: nn.Module, inside: list[str], run: Callable[[], Any]) -> Recipe | str:
    """Return the recipe with the block's dropouts placed, found by what passes through them; or why it cannot be.

    ``inside`` are the projections' paths, whose own dropouts stay theirs. ``run`` calls the block in evaluation mode,
    where a dropout returns its input. A probability whose place is not found shows in training mode.
    """
    modules = [(path, m) for path, m in module.named_modules()
               if isinstance(m, nn.Dropout) and not any(path.startswith(f"{p}.") for p in inside)]
    passed, calls, hidden, out = _observed(module, recipe.down, modules, run)
    found = [(path, m.p, passed[path]) for path, m in modules if path in passed]  # not a layer's other dropouts
    for place, (x, p) in enumerate(calls):
        path = _kept_at(module, p, lambda place=place: _observed(module, recipe.down, modules, run)[1][place][1])
        if path is not None:
            found.append((path, p, x))
    for path, p, x in found:
        if _same(x, hidden):
            recipe = replace(recipe, hidden_dropout=path)
        elif _same(x, out):
            recipe = replace(recipe, out_dropout=path)
        elif p > 0:
            return f"its dropout {path} is neither on the hidden values nor on the output"
    return recipe


def set_to_zero(module: nn.Module, recipe: Recipe) -> None:
    """Let the dropouts of a block, and those that its recipe names by their number, keep every value."""
    for one in module.modules():
        if type(one) is nn.Dropout:
            one.p = 0.0
    for path in (recipe.hidden_dropout, recipe.out_dropout):
        if path is not None and not isinstance(part(module, path), nn.Module):
            owner, _, name = path.rpartition(".")
            setattr(part(module, owner), name, 0.0)


def _observed(module: nn.Module, down: str, modules: list[tuple[str, nn.Dropout]], run: Callable[[], Any]
              ) -> tuple[dict[str, Tensor], list[tuple[Tensor, float]], Tensor | None, Tensor | None]:
    """Run the block; return what passed its dropout modules, other calls of dropout, and what ``down`` got and gave."""
    passed: dict[str, Tensor] = {}
    at_down: dict[str, Tensor] = {}

    def through(_: Any, args: Any, out: Tensor) -> None:
        at_down.update(hidden=args[0], out=out)

    def noted(path: str) -> Callable[[Any, Any], None]:
        return lambda _, args: passed.__setitem__(path, args[0])

    handles = [m.register_forward_pre_hook(noted(path)) for path, m in modules]
    handles.append(part(module, down).register_forward_hook(through))
    calls = _Calls()
    try:
        with calls:
            run()
    finally:
        for handle in handles:
            handle.remove()
    own = [(x, p) for x, p in calls.seen if not any(x is value for value in passed.values())]
    return passed, own, at_down.get("hidden"), at_down.get("out")


def _kept_at(module: nn.Module, p: float, again: Callable[[], float]) -> str | None:
    """Return the path of the number that a call's probability p comes from: the one that changes it; or None."""
    other = p + 0.25 if p < 0.5 else p - 0.25
    for owner_path, owner in module.named_modules():
        for name, value in list(vars(owner).items()):
            if type(value) in (int, float) and value == p and not isinstance(owner, nn.Dropout):
                setattr(owner, name, other)
                try:
                    changed = again() == other
                finally:
                    setattr(owner, name, value)
                if changed:
                    return f"{owner_path}.{name}" if owner_path else name
    return None


def _same(x: Tensor, other: Tensor | None) -> bool:
    return other is not None and x.shape == other.shape and bool((x == other).all())
