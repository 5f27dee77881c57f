"""A subject's model in training: loss, logits, and what its feed-forward blocks compute.

Shapes: B batch, T time, V vocabulary, D model width, H hidden width.
"""

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nonlin.errors import UserError, rule
from nonlin.functions import Definition
from nonlin.subject.blocks import Replaced
from nonlin.subject.naming import layer_of
from nonlin.subject.packing import positions
from nonlin.subject.watching import Watching, hooks


class OwnModel(nn.Module):
    """The user's model with an arm's blocks.

    ``forward(tokens)`` gives logits, ``loss(tokens, targets)`` nats per token. ``inner`` is the model itself. Under
    ``dtype`` bfloat16 the products are computed by autocast.
    """

    def __init__(self, inner: nn.Module, own: Mapping[str, Any], definition: Definition, replaced: Sequence[Replaced],
                 widths: Sequence[int], context: int, dtype: str = "float32"):
        super().__init__()
        self.inner, self.own, self.definition, self.context = inner, own, definition, context
        self.widths = list(widths)
        self.replaced, self.dtype = tuple(replaced), getattr(torch, dtype)
        self.options = {"use_cache": False} if own.get("use_cache") else {}
        packing = own.get("packing", {})
        self.end: int | None = packing["end"] if packing.get("rule") == "documents" else None
        self._compiled: Any = None
        self._hooked: list[Any] = []

    def compile_steps(self) -> None:
        """Let torch.compile make the steps that nothing watches."""
        self._compiled = torch.compile(self.inner, dynamic=False)

    @property
    def gated(self) -> bool:
        """Whether the arm's blocks have a gate."""
        return self.replaced[0].definition.gated

    def outside(self) -> str:
        """Return the hash of every tensor that is no block's: names, values, and which names are one tensor."""
        owned = {name for block in self.replaced for name in block.owned}
        return outside_hash(self.inner, owned)

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers that hold the blocks, in order."""
        return [self.inner.get_submodule(name) for name in self.layers]

    @property
    def layers(self) -> list[str]:
        """The names of the layers that hold the blocks, in order."""
        return list(dict.fromkeys(layer_of(block.name) for block in self.replaced))

    def forward(self, tokens_BT: Tensor, watch: Any = None) -> Tensor:
        """Return logits (B, T, V); into ``watch`` goes what each block computed."""
        return self._answer(tokens_BT, watch)[0]

    def _answer(self, tokens_BT: Tensor, watch: Any) -> tuple[Tensor, Tensor | None]:
        """Return the logits, and the router's loss where the configuration asks for one."""
        # Evaluations and watched steps are few, and would be compiled apart.
        steps = self._compiled is not None and watch is None and self.training and torch.is_grad_enabled()
        run: Any = self._compiled if steps else self.inner
        where = {} if self.end is None else {"position_ids": positions(tokens_BT, self.end)}
        with self._watching(watch), torch.autocast(tokens_BT.device.type, torch.bfloat16,
                                                   enabled=self.dtype is torch.bfloat16):
            out = run(tokens_BT, **self.options, **where)
        if isinstance(out, Tensor):
            return out, None
        logits = out.logits if hasattr(out, "logits") else out[0]
        return logits, getattr(out, "aux_loss", None)

    def cross_entropy(self, logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats per token, computed in float32."""
        return nn.functional.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten())

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, watch: Any = None) -> Tensor:
        """Return the mean cross-entropy in nats per token; in training, with the router's loss if there is one."""
        weight = self.own.get("router_loss") if self.training else None
        if not weight:
            return self.cross_entropy(self(tokens_BT, watch), targets_BT)  # called: FSDP2 gathers weights at a call
        logits, router = self._answer(tokens_BT, watch)
        loss = self.cross_entropy(logits, targets_BT)
        return loss if router is None else loss + weight * router

    @contextlib.contextmanager
    def _watching(self, watch: Any) -> Iterator[None]:
        self._unhook()
        if watch is None:
            yield
            return
        watching = Watching(watch)
        for block in self.replaced:
            self._hooked += hooks(block, watching)
        try:
            yield
        finally:
            watching.closed = True
            if not (self.own.get("checkpointing") and torch.is_grad_enabled()):
                self._unhook()  # else the next pass does: the backward one recomputes the layers, in the same way

    def _unhook(self) -> None:
        for handle in self._hooked:
            handle.remove()
        self._hooked.clear()


def outside_hash(model: nn.Module, owned: Collection[str]) -> str:
    """Return the hash of all tensors of a model but the owned: names, values, and which names are one tensor."""
    whole, ties = hashlib.sha256(), dict[int, str]()
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    inside = {id(value) for name, value in tensors if name in owned}  # a block that layers share has several names
    for name, value in sorted(tensors, key=lambda pair: pair[0]):
        if id(value) in inside:
            continue
        first = ties.setdefault(id(value), name)
        whole.update(f"{name}={first}:{value.dtype}{tuple(value.shape)}".encode())
        if first == name:
            whole.update(memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return whole.hexdigest()


def must_fit_context(context: int, own: Mapping[str, Any]) -> None:
    """Raise UserError for a context beyond the model's positions."""
    most = own.get("positions")
    if most is not None and context > most:
        raise UserError(rule("compare", "context", f"be at most the model's {most:,} positions", context,
                             f"Take --context {most}, or another configuration."))
