"""Hooks on the projections of feed-forward blocks, and the statistics that they collect.

The input of the down projection is the hidden activation, the outputs of gate and up are the pre-activations. So a
block is observed whatever its code calls in between. Shapes: N tokens, D model width, H hidden width.
"""

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nonlin import functional, metrics
from nonlin.errors import told
from nonlin.functions import Definition
from nonlin.health.hooks import Hooks
from nonlin.health.steps import in_backward
from nonlin.health.streams import Stream
from nonlin.model import language_model
from nonlin.patching.blocks import Block, fed_forward, first_tensor, in_order
from nonlin.patching.identification import Identified, compare

_LAYER = re.compile(r"(.*\.\d+|\d+)(?=\.|$)")
_FEW = 64  # tokens on which every unit is tested; on the rest, those that showed no life
_SPARSITY = 16  # tokens a batch on which sparsity is counted


def layer_of(block: Block) -> str | None:
    """The name of the repeated layer that the block is in; None where it is in none.

    The last number of its path ends it: ``model.layers.3.mlp`` lies in ``model.layers.3``.
    """
    found = _LAYER.match(block.name)
    return found.group(1) if found else None


class Observed:
    """The statistics of one block, over all observed tokens of this process."""

    def __init__(self, answer: Identified, layer: str | None, units: int, device: torch.device):
        self.answer, self.block, self.layer = answer, answer.block, layer
        self._sizes = units, device
        self.calls = 0  # through the projections' hooks
        self.clear()

    @torch.inference_mode(False)
    def clear(self) -> None:
        """Forget what was taken in."""
        units, device = self._sizes
        answer = self.answer
        names = ("gate", "up", "hidden") if answer.block.gated else ("up", "hidden")
        self.streams = {name: Stream(units, device) for name in names}
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.residual: Stream | None = None
        # See metrics.response: as far as it had to be followed.
        self.response = torch.zeros(units, dtype=torch.float32, device=device)
        self.slope = torch.zeros_like(self.response)  # the derivative by the gate, likewise
        self.sparse = torch.zeros(2, dtype=wide, device=device)  # sum over batches, number of them
        self.gradients = torch.zeros(4, dtype=wide, device=device)  # sum of squares, values, zero ones, ones at all
        self.tokens = 0

    @property
    def definition(self) -> Definition | None:
        """The activation, where it is known for certain or by its likeliest name."""
        matches = self.answer.matches
        return matches[0].definition if matches else None

    def activation(self) -> Callable[..., Tensor]:
        """The activation as a function of tensors, with the parameters that were found."""
        match = self.answer.matches[0]
        values = {name: self.response.new_tensor([v]) for name, v in match.parameters.items()}
        return lambda *inputs: functional.activation(match.definition)(*inputs, **values)

    def take(self, inputs: tuple[Tensor, ...], hidden: Tensor, limit: int, units: slice = slice(None)) -> None:
        """Take in one call of the block: inputs (gate, up) or (up,), and the hidden activation, each (..., H)."""
        rows = [x.detach().reshape(-1, x.shape[-1])[:limit] for x in (*inputs, hidden)]
        if any(r.shape[0] != rows[-1].shape[0] for r in rows) or not rows[-1].shape[0]:
            return
        if self.answer.status == "unknown" and not self.tokens:
            self._identify_from(tuple(rows[:-1]), rows[-1])
        self._answers([x.float() for x in rows[:-1]], rows[-1], units)  # first: a call without answers counts nothing
        for stream, x in zip(self.streams.values(), rows, strict=True):
            stream.add(x, self.tokens, units)

    def _answers(self, inputs: list[Tensor], hidden: Tensor, units: slice) -> None:
        """Find dead units and saturated gates: test all on a few tokens, then those still in doubt on the rest."""
        if self.definition is None:
            self.response[units] = torch.maximum(self.response[units], hidden.float().abs().amax(0))
            return
        values = {k: self.response.new_tensor([v]) for k, v in self.answer.matches[0].parameters.items()}
        whole = self.definition.expr is None  # normalizes over the units: none can be left out
        for rows in (slice(0, _FEW), slice(_FEW, None)):
            for kept, least in ((self.response, metrics.DEAD), (self.slope, metrics.SATURATED)):
                doubt = torch.arange(hidden.shape[-1], device=hidden.device) if whole else (
                    kept[units] < least).nonzero().flatten()
                few = [x[rows][:, doubt] for x in inputs]
                if not few[0].numel() or (whole and kept is self.slope):
                    continue
                with torch.inference_mode(False):  # derivatives are asked for
                    few = [x.clone() if x.is_inference() else x for x in few]
                    seen = metrics.response(self.activation(), few) if kept is self.response else (
                        metrics.gate_derivatives(self.definition, few[0], values).amax(0))
                now = kept[units]
                now[doubt] = torch.maximum(now[doubt], seen)

    def _identify_from(self, inputs: tuple[Tensor, ...], hidden: Tensor) -> None:
        """Identify a block that could not run on chosen values from its own, as far as they reach."""
        if self.block.layout == "concatenated":
            inputs = (torch.cat(inputs, -1),)
        answer = compare(self.block, tuple(x.float().cpu() for x in inputs), hidden.cpu())
        if answer.status in ("found", "ambiguous") and answer.block == self.block:
            self.answer = answer

    def sparsity(self, hidden: Tensor, down: Tensor) -> None:
        """Take in the sparsity of a hidden activation (..., H) against the down projection (D, H)."""
        share = metrics.sparsity(hidden.detach().float(), down.detach().float(), tokens=_SPARSITY, exact=False)
        self.sparse += torch.tensor([share, 1.0], dtype=self.sparse.dtype, device=self.sparse.device)

    def gradient(self, gradient: Tensor, of_output: bool) -> None:
        """Take in a gradient of the loss: by the block's output, or by its first pre-activation."""
        g, at = gradient.detach().float(), 0 if of_output else 2
        value = g.square().sum() if of_output else (g == 0).sum()
        self.gradients[at] += value
        self.gradients[at + 1] += g.numel()

    def parts(self) -> list[tuple[Tensor, str]]:
        """The tensors that ranks are joined by, each with its rule."""
        streams = [*self.streams.values(), *([self.residual] if self.residual else [])]
        return [*(p for s in streams for p in s.parts()), (self.response, "max"), (self.slope, "max"),
                (self.sparse, "sum"), (self.gradients, "sum")]


class Collector:
    """Hooks on a model's blocks; between :meth:`attach` and :meth:`detach` everything that runs is taken in.

    ``tokens`` limits how many of a call's tokens are looked at, ``gradients`` adds hooks on the backward pass.
    Calls in another mode than ``training`` says are left out: an evaluation between two steps is no step.
    """

    def __init__(self, model: nn.Module, answers: list[Identified], gradients: bool = False, tokens: int = 2048,
                 training: bool = False):
        self.model, self.limit, self.gradients, self.training = model, tokens, gradients, training
        modules = dict(model.named_modules())
        self.observed: list[Observed] = []
        for answer in answers:
            block, device = answer.block, answer.block.down.weight.device
            name = layer_of(block)
            one = Observed(answer, name, block.hidden * (block.experts if block.stacked else 1), device)
            self.observed.append(one)
        self._modules = modules
        self._hooks = Hooks()
        self.lost = ""  # what was said of a call that could not be read

    def attach(self) -> None:
        """Put the hooks on; twice is once."""
        if self._hooks:
            return
        for one in self.observed:
            if one.block.stacked:
                self._hook_experts(one)
            elif isinstance(self._modules.get(one.layer or ""), language_model.Block):
                self._hook_own(one, self._modules[one.layer or ""])
            else:
                self._hook_projections(one)
            layer = self._modules.get(one.layer or "")
            if layer is not None and layer is not one.block.down.module and one.layer:
                self._after(layer, self._residual(one))

    def _guarded(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return the hook, which never ends the run that it observes: a call that it cannot read is left out."""
        def safe(*given: Any) -> Any:
            try:
                return hook(*given)
            except Exception as error:  # a transform of torch.func, a nested tensor: any code may call a block
                if not self.lost:
                    self.lost = f"a call of a feed-forward block was not observed ({told(error)}); the run went on"
                    warnings.warn(self.lost, stacklevel=2)

        return safe

    def _before(self, module: nn.Module, hook: Callable[..., Any], with_kwargs: bool = False) -> None:
        self._hooks.before(module, self._guarded(hook), with_kwargs=with_kwargs)

    def _after(self, module: nn.Module, hook: Callable[..., Any], with_kwargs: bool = False) -> None:
        self._hooks.after(module, self._guarded(hook), with_kwargs=with_kwargs)

    def _on_gradient(self, out: Tensor, hook: Callable[[Tensor], None]) -> None:
        if self.gradients and out.requires_grad:
            out.register_hook(self._guarded(hook))

    def detach(self) -> None:
        """Take the hooks off."""
        self._hooks.remove()

    def saw_anything(self) -> bool:
        """Whether any block has run."""
        return any(one.tokens for one in self.observed)

    def _skips(self, one: Observed) -> bool:
        if self.model.training and not self.training:
            self.training = True  # put into training mode since: what was seen before was an evaluation
            for other in self.observed:
                other.clear()
        return in_backward() or self.model.training != self.training

    def _hook_projections(self, one: Observed) -> None:
        block, pending = one.block, {}

        def came_in(role: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, out: Any) -> None:
                if not isinstance(out, Tensor):
                    return
                p = block.projections[role]
                if role == ("gate" if block.gated else "up"):
                    self._on_gradient(out, lambda g: one.gradient(p.output(g), of_output=False))
                if not in_backward():
                    # A copy: the activation may write into it.
                    seen = p.output(out.detach())
                    pending[role] = seen.reshape(-1, seen.shape[-1])[:self.limit].clone()

            return hook

        def goes_out(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs, hidden = tuple(pending.pop(role) for role in ("gate", "up") if role in pending), first_tensor(
                args, kwargs)
            pending.clear()
            if self._skips(one) or len(inputs) != len(one.streams) - 1 or hidden is None:
                return
            one.calls += 1
            hidden = hidden.detach().reshape(-1, hidden.shape[-1])
            one.take(inputs, hidden, self.limit)
            if not block.experts:  # experts that sort their tokens have several down projections
                one.sparsity(hidden, block.down.weight)
            one.tokens += hidden.shape[0]

        def came_out(module: nn.Module, args: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                self._on_gradient(out, lambda g: one.gradient(g, of_output=True))

        roles = [r for r in block.projections if r != "down"]
        for role in roles:
            self._after(block.projections[role].module, came_in(role))
        self._before(block.down.module, goes_out, with_kwargs=True)
        self._after(block.down.module, came_out)
        self._hook_fused(one)

    def _hook_fused(self, one: Observed) -> None:
        """Recompute a block that does not call its projections, from its input."""
        block, before = one.block, [0]

        def begins(module: nn.Module, args: tuple[Any, ...]) -> None:
            before[0] = one.calls

        def ends(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            x = first_tensor(args, kwargs)
            if self._skips(one) or one.calls != before[0] or one.definition is None:
                return
            if x is None or x.shape[-1] != block.dim or not isinstance(out, Tensor):
                return
            if block.experts:
                return
            self._on_gradient(out, lambda g: one.gradient(g, of_output=True))
            self.recompute(one, x)

        if block.module is not block.down.module:
            self._before(block.module, begins)
            self._after(block.module, ends, with_kwargs=True)

    @torch.no_grad()
    def recompute(self, one: Observed, x: Tensor, expert: int | None = None) -> None:
        """Take in what the block computes of x (..., D), from its weights."""
        block, seen = one.block, []
        rows = x.detach().reshape(-1, x.shape[-1])[:self.limit]

        def activation(*inputs: Tensor) -> Tensor:
            seen.append((inputs, one.activation()(*inputs)))
            return seen[0][1]

        fed_forward(block, rows, activation, expert)
        inputs, hidden = seen[0]
        units = slice(None) if expert is None else slice(expert * block.hidden, (expert + 1) * block.hidden)
        one.take(inputs, hidden, self.limit, units)
        down = block.down.weight if expert is None else block.down.weight[expert]
        one.sparsity(hidden, down)
        one.tokens += x.numel() // x.shape[-1] if expert is None else 0

    def _hook_experts(self, one: Observed) -> None:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            if isinstance(out, Tensor):
                self._on_gradient(out, lambda g: one.gradient(g, of_output=True))
            given = in_order(module, args, kwargs)
            if self._skips(one) or one.definition is None or len(given) < 2:
                return
            x, index = given[0].reshape(-1, one.block.dim), given[1]
            for expert in index.unique().tolist():
                if 0 <= expert < one.block.experts:
                    rows = (index.reshape(x.shape[0], -1) == expert).any(-1)
                    self.recompute(one, x[rows], expert)
            one.tokens += x.shape[0]

        self._after(one.block.module, hook, with_kwargs=True)

    def _hook_own(self, one: Observed, layer: nn.Module) -> None:
        """nonlin's own language model computes from its blocks' weights, and tells who asks what came of it."""

        def begins(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (*args[:4], [] if args[4] is None else args[4])

        def ends(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if self._skips(one):
                return
            inputs, hidden, fed = args[4][-1]
            if fed.requires_grad:
                self._on_gradient(fed, lambda g: one.gradient(g, of_output=True))
                self._on_gradient(inputs[0], lambda g: one.gradient(g, of_output=False))
            one.take(inputs, hidden, self.limit)
            one.sparsity(hidden, one.block.down.weight)
            one.tokens += hidden.numel() // hidden.shape[-1]

        self._before(layer, begins)
        self._after(layer, ends)

    def _residual(self, one: Observed) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            x = out[0] if isinstance(out, tuple) else out
            if self._skips(one) or not isinstance(x, Tensor) or x.shape[-1] != one.block.dim:
                return
            rows = x.detach().reshape(-1, x.shape[-1])
            if one.residual is None:
                one.residual = Stream(x.shape[-1], x.device)
            one.residual.add(rows[:self.limit], one.tokens - rows.shape[0])

        return hook
