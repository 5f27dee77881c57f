"""A model built anew from its configuration, beside the one in hand: what a saved checkpoint would load as.

The new one is built without memory for its weights and then shares those of the model in hand. So it can differ only
in what the configuration and the code of its class decide: the structure, and the computation of its parts.
"""

import contextlib
import math
import types
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nonlin.errors import told
from nonlin.patching.blocks import Block, some_tensor
from nonlin.patching.configuration import is_configuration, tree
from nonlin.patching.finding import find_blocks
from nonlin.patching.identification import Identified, evaluating, identify

_PLAIN = (str, int, float, bool, type(None))
_VALUES = 512  # on which two activations are compared
_TOKENS = 12


class Unbuildable(Exception):
    """Why a model cannot be built from its configuration."""


def roots(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the outermost parts of a model that ``transformers`` builds from a configuration, with their names."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") or not outer for outer, _ in found):
            continue
        if is_configuration(getattr(module, "config", None)) and hasattr(type(module), "from_pretrained") and (
                hasattr(module, "save_pretrained")) and not hasattr(module, "peft_config"):
            found.append((name, module))
    return found


def loaded_configuration(config: Any) -> Any:
    """Return the configuration as it comes back when it was saved and loaded; raise Unbuildable where it does not."""
    try:
        back = type(config).from_dict(config.to_dict())
    except Exception as error:  # a class of any maker
        raise Unbuildable(f"its configuration cannot be read back ({told(error)})") from error
    inner = dict(tree(back))
    for path, own in tree(config):
        for name in ("_attn_implementation_internal", "_experts_implementation_internal"):
            with contextlib.suppress(Exception):
                setattr(inner[path], name, getattr(own, name))
    return back


def build(model: nn.Module, config: Any) -> nn.Module:
    """Return a model of the same class from ``config`` that shares the weights; raise Unbuildable where it cannot be.

    Nothing is drawn from a random stream that anything else draws from.
    """
    kind: Any = getattr(type(model), "_nonlin_base", type(model))
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            made = kind(loaded_configuration(config))
    except Unbuildable:
        raise
    except Exception as error:
        raise Unbuildable(f"its class cannot be built from it ({told(error)})") from error
    share(model, made)
    return made.eval()


def share(model: nn.Module, made: nn.Module) -> None:
    """Give the parts of ``made`` the parameters and buffers of the parts of ``model`` with their names."""
    theirs = dict(model.named_modules())
    for path, module in made.named_modules():
        own = theirs.get(path)
        for name in ("_parameters", "_buffers") if own is not None else ():
            given = getattr(own, name)
            for key, value in getattr(module, name).items():
                if value is not None and given.get(key) is not None and given[key].shape == value.shape:
                    getattr(module, name)[key] = given[key]


def differences(model: nn.Module, made: nn.Module, compared: Iterable[str] = ()) -> dict[str, str]:
    """Return what differs between two models' parts, by path; those in ``compared`` and in them are left out.

    Compared are the parts and their classes, the numbers, words and functions that they keep, and the names and
    shapes of weights. Two parts without weights that differ in class are compared by the values that they give.
    """
    skip = tuple(compared)

    def skipped(path: str) -> bool:
        return any(path == s or path.startswith(f"{s}.") or not s for s in skip)

    ours, theirs = dict(model.named_modules()), dict(made.named_modules())
    found: dict[str, str] = {}
    for path in (*ours, *(p for p in theirs if p not in ours)):
        if skipped(path) or any(path.startswith(f"{p}.") for p in found):
            continue
        a, b = ours.get(path), theirs.get(path)
        if a is None or b is None:
            found[path] = "it has no such part" if b is None else "a part that this model has not"
        elif (text := _difference(a, b)) is not None:
            found[path] = text
    return found


def _difference(a: nn.Module, b: nn.Module) -> str | None:
    kinds = [getattr(type(m), "_nonlin_base", type(m)) for m in (a, b)]
    if kinds[0] is not kinds[1]:
        if not (_is_function(a) and _is_function(b)):
            return f"{kinds[1].__name__} for {kinds[0].__name__}"
        return None if same_function(a, b) else f"{_shown(b)} for {_shown(a)}"
    for store in ("_parameters", "_buffers"):
        for key in {*getattr(a, store), *getattr(b, store)}:
            one, two = getattr(a, store).get(key), getattr(b, store).get(key)
            if (one is None) != (two is None) or (one is not None and one.shape != two.shape):
                return f"another {key}"
    if _is_function(a):
        return None if same_function(a, b) else f"{_shown(b)} for {_shown(a)}"
    for key in sorted({*vars(a), *vars(b)} - {"training", "config"}):
        one, two = vars(a).get(key), vars(b).get(key)
        if not key.startswith("_") and _differ(one, two):
            return f"{key} {_shown(two)} for {_shown(one)}"
    return None


def _is_function(module: nn.Module) -> bool:
    return not list(module.children()) and not list(module.parameters()) and not list(module.buffers())


def _is_call(value: Any) -> bool:
    return isinstance(value, (types.FunctionType, types.BuiltinFunctionType)) or hasattr(value, "func")


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, _PLAIN) and isinstance(b, _PLAIN):
        return a != b and not (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
    if _is_call(a) and _is_call(b):
        return a is not b and not same_function(a, b)
    return False  # what else a part keeps follows from its configuration's numbers, or is its own work


def _shown(value: Any) -> str:
    if isinstance(value, nn.Module):
        return type(value).__name__
    return getattr(value, "__name__", repr(value))


def same_function(a: Any, b: Any) -> bool:
    """Return whether two functions of one tensor give the same numbers; False where either gives none."""
    x = torch.randn(1, _VALUES, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu") * 4
    try:
        with torch.no_grad():
            one, two = a(x.clone()), b(x.clone())  # either may write into its input
        return isinstance(one, Tensor) and one.shape == two.shape and torch.allclose(one, two, 1e-3, 1e-4)
    except Exception:  # layers of any kind may stand there
        return False


@torch.no_grad()
def outputs_differ(model: nn.Module, made: nn.Module) -> str | None:
    """Return by how much two models differ on a few random tokens; None where they do not, or take no tokens alone."""
    config: Any = model.config
    with evaluating(model):
        try:
            text = config.get_text_config()
            count = min(int(text.vocab_size), 1000)
            tokens = torch.randint(min(8, count - 1), count, (1, _TOKENS), device="cpu",
                                   generator=torch.Generator().manual_seed(0))
            given = {"input_ids": tokens.to(some_tensor(model).device)}
            if getattr(config, "is_encoder_decoder", False):
                given["decoder_input_ids"] = given["input_ids"]
            with torch.random.fork_rng(devices=[]):
                one, two = model(**given)[0], made(**given)[0]
        except Exception:  # a model that needs more than tokens: structure and blocks have been compared
            return None
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return None  # a class whose first output is no tensor: structure and blocks have been compared
    if one.shape != two.shape:
        return f"the shape of its output, {tuple(two.shape)} for {tuple(one.shape)}"
    finite = one.isfinite()
    if not torch.equal(finite, two.isfinite()):
        return "its output on random tokens, finite in one of them"
    ours, theirs = one[finite].double(), two[finite].double()
    off = float((ours - theirs).norm() / ours.norm().clamp(min=1e-30))
    limit = 1e-3 if one.dtype in (torch.float32, torch.float64) else 0.05
    return None if off <= limit else f"its output on random tokens, by {off:.2g} of its norm"


class Anew:
    """A model as its configuration alone builds it, asked for what its blocks compute; built when first asked."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._blocks: dict[str, Block] | None = None

    def identify(self, name: str) -> Identified | None:
        """Return what the block of that name computes there; None where there is no such block or no such model."""
        if self._blocks is None:
            self._blocks = {}
            for outer, root in roots(self._model):
                with contextlib.suppress(Unbuildable):
                    made = build(root, root.config)
                    self._blocks |= {f"{outer}.{b.name}" if outer else b.name: b for b in find_blocks(made)}
        block = self._blocks.get(name)
        if block is None or any(p.weight.is_meta for p in block.projections.values()):
            return None  # none of that name, or one of other weights than the model's
        return identify(block)
