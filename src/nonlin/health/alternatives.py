"""Were these weights trained with this activation? The text's loss with others in its place tells.

A model is built from its configuration, so that it computes what the configuration says even where that is not what
the weights learned. Training fits weights to their activation: with another, the loss rises.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nonlin import functional
from nonlin.health.inputs import losses
from nonlin.patching.blocks import first_tensor
from nonlin.patching.identification import Identified

PLAIN = ("relu", "gelu", "silu", "relu_squared")
GATED = ("swiglu", "geglu", "reglu", "bilinear")
"""The activations tried: one of each kind, since the text cannot distinguish gelu from its approximations."""


class _Replaced:
    """While active, every block applies another activation to its pre-activations."""

    def __init__(self, answers: list[Identified], name: str):
        self.answers, self.function, self.calls = answers, functional.activation(name), 0
        self._handles: list[Any] = []

    def __enter__(self) -> "_Replaced":
        for answer in self.answers:
            self._hook(answer)
        return self

    def _hook(self, answer: Identified) -> None:
        block, pending = answer.block, {}

        def keep(role: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, out: Tensor) -> None:
                pending[role] = block.projections[role].output(out).clone()  # the activation may write into it

            return hook

        def replace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
            self.calls += 1
            inputs = (pending["gate"], pending["up"]) if block.gated else (pending["up"],)
            old = first_tensor(args, kwargs)
            made = self.function(*inputs)
            made = made if old is None else made.to(old.dtype)
            return tuple(made if v is old else v for v in args), {k: made if v is old else v for k, v in kwargs.items()}

        for role in block.projections:
            if role != "down":
                self._handles.append(block.projections[role].module.register_forward_hook(keep(role)))
        self._handles.append(block.down.module.register_forward_pre_hook(replace, with_kwargs=True))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


@torch.no_grad()
def compare(model: nn.Module, answers: list[Identified], sequences: Tensor) -> dict[str, Any] | str:
    """Return {activation, loss_nats, others: [{activation, loss_nats, difference_nats, standard_error}]}, by loss.

    ``sequences`` (b, T) are tokens of text. Returns the reason if it cannot be done. Differences are paired, token by
    token, and their error is that of their mean as if tokens were independent.
    """
    names = {a.definition.name for a in answers if a.definition}
    if len(names) != 1 or any(a.definition is None or a.block.experts for a in answers):
        return "its blocks have experts, or more than one activation"
    own = losses(model, sequences).double()
    if not bool(own.isfinite().all()):
        return "the text's loss is infinite or not a number"
    found = []
    for name in GATED if answers[0].block.gated else PLAIN:
        if name in names:
            continue
        with _Replaced(answers, name) as replaced:
            other = losses(model, sequences).double()
        if replaced.calls < len(answers):
            return "its blocks compute without calling their projections"
        difference = other - own
        if not bool(difference.isfinite().all()):
            continue  # no loss at all is no rival
        found.append({"activation": name, "loss_nats": float(other.mean()), "difference_nats": float(difference.mean()),
                      "standard_error": float(difference.std() / math.sqrt(difference.numel()))})
    return {"activation": names.pop(), "loss_nats": float(own.mean()), "tokens": own.numel(),
            "others": sorted(found, key=lambda o: o["loss_nats"])}
