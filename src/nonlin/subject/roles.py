"""Roles of a model's parameters for CompleteP, proved on the model: what writes into the residual stream.

Everything is told from one run in float64, not from names. The stream is followed from the embeddings through the
layers to the output weights. What each layer adds to it must be a sum of outputs of modules inside it, with constant
factors: these modules write. Scaling a writer's parameters must scale its output. D is the model's width.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nonlin.errors import UserError, rule
from nonlin.patching.identification import evaluating
from nonlin.subject.looking import Look
from nonlin.subject.naming import layer_of, pattern

_EXACT = 1e-5  # relative; some families' norms compute in float32 whatever they are given
_SURE = 4.0  # standard errors within which a standard deviation is taken as the shorter decimal


class Unproved(ValueError):
    """The reason why a model's roles cannot be told."""


def roles(model: Any, look: Look, own: Mapping[str, Any], fixed: Sequence[str]) -> dict[str, Any]:
    """Return {"parameters": {pattern: [role, std]}, "stream": its constant factors, "tied"}; the model is float64 then.

    A pattern is a name with its numbers left out; std is None for what is no matrix. ``fixed`` are the patterns of
    vectors that do not grow with the width. Raises UserError, which names the other rule, where the proof fails.
    """
    try:
        with evaluating(model.double()), torch.no_grad():
            return _Proof(model, look, own).roles(fixed)
    except Unproved as reason:
        raise UserError(rule(
            "ladder", "transfer", "be standard in this model: CompleteP must know what writes into its residual "
            f"stream, and {reason}", "completep", "Use --transfer standard.")) from reason


class _Seen:
    """The inputs and outputs of modules in one run."""

    def __init__(self, model: nn.Module, layers: Sequence[str]):
        self.inputs: dict[str, tuple[Any, Any]] = {}
        self.outputs: dict[str, Tensor] = {}
        self.handles = []
        for name, module in model.named_modules():
            if name in layers or (any(True for _ in module.parameters(recurse=False))):
                self.handles.append(module.register_forward_hook(self._hook(name), with_kwargs=True))

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            output = output if isinstance(output, Tensor) else output[0] if isinstance(output, (tuple, list)) else None
            if isinstance(output, Tensor) and output.is_floating_point():
                self.outputs[name] = output.detach().clone()
                self.inputs[name] = tuple(_kept(a) for a in args), {k: _kept(v) for k, v in kwargs.items()}

        return hook

    def stream_into(self, name: str) -> Tensor:
        """Return the stream that a module takes: its first tensor of real numbers."""
        args, kwargs = self.inputs[name]
        for value in (*args, kwargs.get("hidden_states"), kwargs.get("x"), kwargs.get("input")):
            if isinstance(value, Tensor) and value.is_floating_point():
                return value
        raise Unproved(f"{name} takes no stream")


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


class _Proof:
    def __init__(self, model: Any, look: Look, own: Mapping[str, Any]):
        self.model, self.modules = model, dict(model.named_modules())
        first = layer_of(own["blocks"][0]["names"][0])
        place, _, number = first.rpartition(".")
        if not number.isdecimal() or not isinstance(self.modules.get(place), nn.ModuleList):
            raise Unproved(f"{first} is not one of several layers")
        self.layers = [f"{place}.{i}" for i in range(len(self.modules[place]))]
        self.dim = own["dim"]
        seen = self.seen = _Seen(model, self.layers)
        try:
            self.logits = look.logits().detach()
        finally:
            for handle in seen.handles:
                handle.remove()
        if missing := [name for name in self.layers if name not in seen.outputs]:
            raise Unproved(f"{missing[0]} does not run")
        self.embeddings = {id(m.weight) for m in self.modules.values() if isinstance(m, nn.Embedding)}
        self.head: Any = getattr(model, "get_output_embeddings", lambda: None)()
        if self.head is None or getattr(self.head, "weight", None) is None:
            raise Unproved("it has no output weights of its own")
        self.head_name = next(name for name, m in self.modules.items() if m is self.head)
        self.tied = id(self.head.weight) in self.embeddings

    def roles(self, fixed: Sequence[str]) -> dict[str, Any]:
        """Return what :func:`roles` does."""
        start = self._start()
        writers = [self._writers(name) for name in self.layers]
        last, logits = self._end()
        found: dict[str, tuple[str, list[Tensor]]] = {}
        for name, p in self.model.named_parameters():
            role = self._role(name, p, set().union(*writers), last, fixed)
            known = found.setdefault(pattern(name), (role, []))
            if known[0] != role:
                raise Unproved(f"{name} has another role than that of other layers")
            known[1].append(p)
        stream = {"embedding": start, "logits": logits,
                  "layers": {pattern(name): factor for some in writers for name, factor in some.items()}}
        return {"parameters": {key: [role, _std(some) if some[0].ndim > 1 else None]
                               for key, (role, some) in found.items()}, "stream": stream, "tied": self.tied}

    def _outer(self) -> Iterator[str]:
        """Yield the modules outside the layers that have parameters."""
        inside = tuple(f"{name}." for name in self.layers)
        yield from (name for name in self.seen.outputs if not name.startswith(inside) and name not in self.layers)

    def _start(self) -> list[float]:
        """Return the factors with which the embeddings, or a norm after them, are the stream into the first layer."""
        into = self.seen.stream_into(self.layers[0])
        outer = {name: self.seen.outputs[name] for name in self._outer() if name != self.head_name}
        return list(_sum(into, outer, "the stream into its layers is no sum of embeddings").values())

    def _writers(self, layer: str) -> dict[str, float]:
        """Return the modules whose outputs are what a layer adds to the stream, with their factors."""
        seen, number = self.seen, self.layers.index(layer)
        into, out = seen.stream_into(layer), seen.outputs[layer]
        if number + 1 < len(self.layers) and not _equal(seen.stream_into(self.layers[number + 1]), out):
            raise Unproved(f"something stands between {layer} and the next layer")
        inside = {name: value for name, value in seen.outputs.items() if name.startswith(f"{layer}.")}
        added = _sum(out - into, inside, f"what {layer} adds to it is no sum of outputs of its modules")
        for name in added:
            self._must_scale(name)
        return added

    def _must_scale(self, name: str) -> None:
        """Raise Unproved where a module's parameters, scaled, do not scale its output."""
        args, kwargs = self.seen.inputs[name]
        twice = copy.deepcopy(self.modules[name])
        for p in twice.parameters():
            p.mul_(2)
        out = twice(*args, **kwargs)
        if not _equal(out, 2 * self.seen.outputs[name]):
            raise Unproved(f"the output of {name} ({type(twice).__name__}) does not grow with its weights")

    def _end(self) -> tuple[str, float]:
        """Return the norm that the output weights read, and the logits' factor over what these give."""
        seen, read = self.seen, self.seen.stream_into(self.head_name)
        factor = _sum(self.logits, {self.head_name: seen.outputs[self.head_name]},
                      "its logits are no multiple of what its output weights give")[self.head_name]
        last = next((name for name in self._outer() if seen.outputs[name].shape == read.shape
                     and _equal(seen.outputs[name], read)), None)
        if last is None or not _equal(seen.stream_into(last), seen.outputs[self.layers[-1]]):
            raise Unproved("its output weights do not read the norm of the last layer's stream")
        if self.tied:  # the norm takes the multiplier of the logits
            self._must_scale(last)
        return last, factor

    def _role(self, name: str, p: Tensor, writers: set[str], last: str, fixed: Sequence[str]) -> str:
        module = name.rpartition(".")[0]
        if id(p) in self.embeddings:
            return "embedding"
        if module == self.head_name:
            return "head" if p is self.head.weight else "head bias"
        if module == last:
            return "last norm"
        if not name.startswith(tuple(f"{layer}." for layer in self.layers)):
            if p.ndim > 1:
                raise Unproved(f"{name} stands outside its layers")
            return "first norm"
        if p.ndim > 1:
            return "residual" if module in writers else "hidden"
        if module in writers:
            matrix = any(q.ndim > 1 for q in self.modules[module].parameters(recurse=False))
            return "residual bias" if matrix else "residual norm"
        return "key norm" if pattern(name) in fixed else "norm"


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).norm()) <= _EXACT * float(b.norm())


def _sum(whole: Tensor, parts: Mapping[str, Tensor], otherwise: str) -> dict[str, float]:
    """Return the parts whose sum, with constant factors, is the whole; Unproved, for the reason, where it is none."""
    fit = {name: part.expand(whole.shape).flatten() for name, part in parts.items()
           if part.shape[-1] == whole.shape[-1] and part.numel() and whole.numel() % part.numel() == 0
           and part.ndim <= whole.ndim and float(part.norm()) > 0}
    if not fit:
        raise Unproved(otherwise)
    norms = torch.stack([part.norm() for part in fit.values()])
    columns = torch.stack(list(fit.values()), dim=1) / norms
    factors = torch.linalg.lstsq(columns, whole.flatten()[:, None], driver="gelsd").solution[:, 0]
    if float((columns @ factors - whole.flatten()).norm()) > _EXACT * float(whole.norm()):
        raise Unproved(otherwise)
    sizes = factors / float(whole.norm())
    return {name: float(f"{float(factor / norm):.5g}") for name, factor, norm, size in
            zip(fit, factors, norms, sizes, strict=True) if abs(float(size)) > 10 * _EXACT}


def _std(some: Sequence[Tensor]) -> float:
    """Return the standard deviation of a role's matrices: as the shorter decimal where that may be it."""
    whole = torch.cat([p.flatten() for p in some])
    std = float(whole.square().mean().sqrt())
    for digits in range(1, 6):
        short = float(f"{std:.{digits}g}")
        if abs(short - std) <= _SURE * std / (2 * whole.numel()) ** 0.5:
            return short
    return float(f"{std:.6g}")
