"""The optimizers of a recipe: torch's AdamW, or torch's own Muon beside it.

Our C++ takes AdamW's steps for the models that it computes.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nonlin.errors import UserError
from nonlin.kernels.transformer import adamw
from nonlin.training import transfer
from nonlin.training.recipe import choice


class Optimizers:
    """Several of torch's optimizers as one, each with parameters of its own; their states are numbered through."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def arithmetic(self) -> list[str]:
        """What decides the last bits of a step beside its numbers: the optimizers' code, torch, and our library."""
        ours = any(isinstance(part, adamw.AdamW) for part in self.parts)
        return [*(f"{type(part).__module__}.{type(part).__qualname__}" for part in self.parts),
                f"torch {torch.__version__}", *([adamw.library_name()] if ours else [])]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts, one after the other."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self, clip: float = math.inf) -> Tensor:
        """Do one step of each, with gradients whose norm is ``clip`` at most; return the norm that they had."""
        if isinstance(self.parts[0], adamw.AdamW):  # it is alone, and scales gradients as it reads them
            norm = adamw.norm([p.grad for p in self.parameters() if p.grad is not None])
            self.parts[0].scale = min(clip / (norm + 1e-6), 1.0)  # torch's bound
            self.parts[0].step()
            return torch.tensor(norm, dtype=torch.float64)
        norm = nn.utils.clip_grad_norm_(self.parameters(), clip)
        for part in self.parts:
            part.step()
        return norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def parameters(self) -> list[Tensor]:
        """Return the parameters by their numbers."""
        return [p for group in self.param_groups for p in group["params"]]

    def _numbered(self) -> list[tuple[range, torch.optim.Optimizer]]:
        found, start = [], 0
        for part in self.parts:
            end = start + sum(len(group["params"]) for group in part.param_groups)
            found.append((range(start, end), part))
            start = end
        return found

    def moments(self) -> dict[int, dict[str, Tensor]]:
        """Return the state of each parameter by its number."""
        return {numbers.start + number: state for numbers, part in self._numbered()
                for number, state in part.state_dict()["state"].items()}

    def put_moments(self, moments: Mapping[int, dict[str, Tensor]]) -> None:
        """Put the states of :meth:`moments` back."""
        for numbers, part in self._numbered():
            ours = {number - numbers.start: moments[number] for number in numbers if number in moments}
            part.load_state_dict(part.state_dict() | {"state": ours})


def make_optimizer(model: nn.Module, training: Mapping[str, Any], shape: Mapping[str, Any] | None = None,
                   native: bool = False, captured: bool = False) -> Optimizers:
    """Return the optimizers of a recipe for a model's parameters; ``shape``, the model's sizes, is for a transfer.

    Only matrices decay: no scale of a norm and no activation parameter does. "adamw" is AdamW: torch's fused one, or
    with ``native`` our C++ where it serves all parameters. "muon" is Muon for the matrices inside the layers and AdamW
    for the embedding, the output weights and all that is no matrix. Its updates have the root mean square of AdamW's
    (arXiv:2502.16982), so that one rate serves both. ``captured``: a CUDA graph takes the steps.
    """
    named = dict(model.named_parameters())
    if "transfer" in training:
        assert shape is not None
        return Optimizers(_adamw(_transferred(named, training, shape), training, native, captured))
    muon = choice(training, "optimizer") == "muon"
    hidden = _inside(model, named) if muon else set()
    decayed = [p for name, p in named.items() if _decays(p) and name not in hidden]
    others = [p for p in named.values() if not _decays(p)]
    outer = _adamw([{"params": decayed, "weight_decay": training["weight_decay"]},
                    {"params": others, "weight_decay": 0.0}], training, native and not muon, captured)
    return Optimizers(*_muon([named[name] for name in named if name in hidden], training), outer)


def _adamw(groups: list[dict[str, Any]], training: Mapping[str, Any], native: bool, captured: bool = False
           ) -> torch.optim.AdamW:
    ours = native and adamw.serves([p for group in groups for p in group["params"]])
    kind = adamw.AdamW if ours else functools.partial(torch.optim.AdamW, fused=True, capturable=captured)
    if captured:  # a graph reads each group's rate from the GPU
        groups = [g | {"lr": torch.tensor(training["learning_rate"], device=g["params"][0].device)}
                  for g in groups if g["params"]]
    return kind(groups, lr=training["learning_rate"], betas=(choice(training, "beta1"), choice(training, "beta2")),
                eps=choice(training, "epsilon"))


def _transferred(named: Mapping[str, Tensor], training: Mapping[str, Any], shape: Mapping[str, Any]
                 ) -> list[dict[str, Any]]:
    """Return a group a role, with its factor on the rate, its epsilon, and its decay independent of the rate."""
    asked, found = training["transfer"], []
    longer = transfer.horizon(asked, training["steps"] * training["batch"] * shape["context"])
    for role, group in transfer.groups(asked, shape).items():
        params = [p for name, p in named.items() if transfer.role_in(shape, name) == role]
        factor = group.rate * longer
        # AdamW multiplies the decay by the rate.
        decay = training["weight_decay"] * asked["learning_rate"] / (training["learning_rate"] * factor)
        found.append({"params": params, "weight_decay": decay if group.decays else 0.0, "rate_factor": factor,
                      "eps": choice(training, "epsilon") * group.epsilon})
    return [group for group in found if group["params"]]


@torch.no_grad()
def scale_initial(model: nn.Module, training: Mapping[str, Any], shape: Mapping[str, Any]) -> None:
    """Give a model that was just made the initial values that its recipe's transfer wants."""
    if "transfer" not in training:
        return
    for name, p in model.named_parameters():
        p.mul_(transfer.initial_factor(training["transfer"], shape, name))


def set_rate(optimizer: Optimizers, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        value = rate * group.get("rate_factor", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def _decays(p: Tensor) -> bool:
    return p.ndim >= 2 and not getattr(p, "_no_weight_decay", False)


def _inside(model: nn.Module, named: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the matrices inside the layers."""
    layers: Any = getattr(model, "layers", None)  # their names, in a user's own model
    places = ("blocks.",)
    if layers is not None:
        paths = [name.rpartition(".") for name in layers]
        places = tuple(f"inner.{path}." if path and last.isdecimal() else f"inner.{path}{dot}{last}".rstrip(".") + "."
                       for path, dot, last in paths)
    outer = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return {name for name, p in named.items()
            if p.ndim == 2 and _decays(p) and name.startswith(places) and id(p) not in outer}


def _muon(matrices: Iterable[Tensor], training: Mapping[str, Any]) -> list[torch.optim.Optimizer]:
    matrices = list(matrices)
    if not matrices:
        return []
    kind = getattr(torch.optim, "Muon", None)
    if kind is None:
        raise UserError(f"recipe: optimizer muon must come with torch 2.9 or later; this is {torch.__version__}. "
                        "Install a later torch, or choose --optimizer adamw.")
    return [kind(matrices, lr=training["learning_rate"], weight_decay=training["weight_decay"],
                 momentum=choice(training, "momentum"), adjust_lr_fn="match_rms_adamw")]
