"""Where a block drops values: by a module (``nn.Dropout``), or by torch's function with a number that a part keeps.

A recipe names either by its path within the block: the module's, or the number's (``residual_dropout``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from nonlin.patching.blocks import first_tensor
from nonlin.patching.patch import Recipe, part


@dataclass
class _Dropped:
    """One value that a block drops from: where its probability is (None: unknown), that, and what passes."""

    path: str | None
    p: float
    x: Tensor


@dataclass
class _Seen(TorchFunctionMode):
    """Notes what a block drops in one call, in order, and what the down projection got and gave."""

    within: int = 0  # of modules whose calls of torch's function are their own
    dropped: list[_Dropped] = field(default_factory=list[_Dropped])
    hidden: Tensor | None = None
    out: Tensor | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.dropout and not self.within:
            self.dropped.append(_Dropped(None, kwargs["p"], args[0]))
        return func(*args, **(kwargs or {}))

    def enter(self, *_: Any) -> None:
        """Enter a module that drops by itself."""
        self.within += 1

    def leave(self, *_: Any) -> None:
        """Leave it."""
        self.within -= 1

    def through(self, path: str) -> Callable[[Any, Any, Any], None]:
        """Return a hook that notes a dropout module's input."""
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            if (x := first_tensor(args, kwargs)) is not None:
                self.dropped.append(_Dropped(path, module.p, x))

        return hook

    def at_down(self, _: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        """Note what the down projection got and gave."""
        self.hidden, self.out = first_tensor(args, kwargs), out


def with_dropouts(recipe: Recipe, module: nn.Module, inside: list[str], run: Callable[[], Any]) -> Recipe | str:
    """Return the recipe with the block's dropouts placed, found by what passes through them; or why it cannot be.

    ``inside`` are the projections' paths, whose own dropouts stay theirs. ``run`` calls the block in evaluation mode,
    where a dropout returns its input. Dropouts that only training mode has are compared there.
    """
    seen = _observed(module, recipe.down, inside, run)
    placed: dict[str, _Dropped] = {}
    for number, one in enumerate(seen.dropped):
        if one.path is None:
            def again(number: int = number) -> float:
                return _observed(module, recipe.down, inside, run).dropped[number].p

            one.path = _kept_at(module, one.p, again)
        place = "hidden_dropout" if _same(one.x, seen.hidden) else "out_dropout" if _same(one.x, seen.out) else None
        if one.p > 0 and one.path is None:
            return f"it drops values in training mode with a probability of {one.p:g} that no part keeps as a number"
        if one.p > 0 and place is None:
            return f"its dropout {one.path} is neither on the hidden values nor on the output"
        if one.path is None or place is None:
            continue  # of probability 0
        if one.p > 0 and place in placed and placed[place].p > 0:
            return f"it drops from the same values twice, by {placed[place].path} and {one.path}"
        if place not in placed or one.p > 0:
            placed[place] = one
    return replace(recipe, **{place: one.path for place, one in placed.items()})


def set_to_zero(module: nn.Module, recipe: Recipe) -> None:
    """Let the dropouts that a block's recipe names keep every value, and those of the projections."""
    for path in (recipe.gate, recipe.up, recipe.down):
        for one in part(module, path).modules() if path else ():
            if isinstance(one, nn.Dropout):
                one.p = 0.0
    for path in (recipe.hidden_dropout, recipe.out_dropout):
        if path is None:
            continue
        found, (owner, _, name) = part(module, path), path.rpartition(".")
        if isinstance(found, nn.Dropout):
            found.p = 0.0
        else:
            setattr(part(module, owner), name, 0.0)


def _observed(module: nn.Module, down: str, inside: list[str], run: Callable[[], Any]) -> _Seen:
    """Run the block and return what it drops from."""
    seen, handles = _Seen(), []
    for path, one in module.named_modules():
        own = any(path.startswith(f"{p}.") for p in inside)
        if isinstance(one, nn.Dropout) and not own:
            handles.append(one.register_forward_pre_hook(seen.through(path), with_kwargs=True))
        if path in inside or (isinstance(one, nn.Dropout) and not own):
            handles += [one.register_forward_pre_hook(seen.enter), one.register_forward_hook(seen.leave)]
    handles.append(part(module, down).register_forward_hook(seen.at_down, with_kwargs=True))
    try:
        with seen:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _kept_at(module: nn.Module, p: float, again: Callable[[], float]) -> str | None:
    """Return the path of the number that a call's probability p comes from: the one that changes it; or None."""
    other = p + 0.25 if p < 0.5 else p - 0.25
    for owner_path, owner in module.named_modules():
        for name, value in list(vars(owner).items()):
            if type(value) in (int, float) and value == p and not isinstance(owner, nn.Dropout):
                setattr(owner, name, other)
                try:
                    changed = again() == other
                except Exception:  # a number that the block needs as it is, for something else
                    changed = False
                finally:
                    setattr(owner, name, value)
                if changed:
                    return f"{owner_path}.{name}" if owner_path else name
    return None


def _same(x: Tensor, other: Tensor | None) -> bool:
    return other is not None and x.shape == other.shape and bool((x == other).all())
