"""Small fully connected networks, many replicas at once: what the claims about plain networks are tested on.

Shapes: R replicas, N samples, W width. Each replica has weights of its own seed and a learning rate of its own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nonlin.files import finite
from nonlin.functions import get
from nonlin.kernels.transformer.engine import engine as engine_named
from nonlin.nn import Activation
from nonlin.training import recipe

BETA1, BETA2, EPS = 0.9, 0.99, 1e-8


def proper_gain(name: str) -> float:
    """Return the factor on weights of standard deviation 1/sqrt(inputs) that keeps the second moment at one.

    From the definition's second moment under a unit normal; for a gated one the other input is a unit normal too.

    >>> round(proper_gain("relu") ** 2, 6), round(proper_gain("identity"), 6)
    (2.0, 1.0)
    """
    return 1 / math.sqrt(get(name).properties.second_moment)


class Networks:
    """R networks of the same shape: hidden layers of an activation, a linear output.

    ``gain`` scales the weights behind each hidden layer (None: :func:`proper_gain`); the first layer reads inputs
    of unit variance, and its weights have gain 1.
    """

    def __init__(self, activation: str, inputs: int, width: int, depth: int, outputs: int, seeds: Sequence[int],
                 gain: float | None = None, bias: bool = True, engine: str = "torch"):
        self.activation, self.bias, self.engine = Activation(activation), bias, engine_named(engine)
        for parameter in self.activation.parameters():
            parameter.requires_grad_(False)  # a learned one would be shared by the replicas
        gain = proper_gain(activation) if gain is None else gain
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        gates = 2 if get(activation).gated else 1
        self.layers: list[list[tuple[Tensor, Tensor | None]]] = []
        for i in range(depth + 1):
            last, fan_in, fan_out = i == depth, inputs if i == 0 else width, outputs if i == depth else width
            scale = (1.0 if i == 0 else gain) / math.sqrt(fan_in)
            self.layers.append([self._linear(generators, fan_in, fan_out, scale, last)
                                for _ in range(1 if last else gates)])

    def _linear(self, generators: list[torch.Generator], fan_in: int, fan_out: int, scale: float, last: bool
                ) -> tuple[Tensor, Tensor | None]:
        weight = torch.stack([torch.randn(fan_in, fan_out, generator=g) * scale for g in generators])
        bias = None
        if self.bias:  # spread over the inputs' range, so that kinks lie apart in one dimension too
            spread = 0.0 if last else 0.5
            bias = torch.stack([torch.randn(1, fan_out, generator=g) * spread for g in generators]).requires_grad_()
        return weight.requires_grad_(), bias

    def parameters(self) -> list[Tensor]:
        """Return all weights and biases, each with the replicas first."""
        return [t for layer in self.layers for pair in layer for t in pair if t is not None]

    def forward(self, x: Tensor, watch: list[tuple[Tensor, ...]] | None = None) -> Tensor:
        """Return outputs (R, N, outputs) of x (N, inputs); into ``watch`` go each hidden layer's inputs."""
        h: Tensor = x
        for i, layer in enumerate(self.layers):
            parts = tuple(torch.matmul(h, w) if b is None else torch.matmul(h, w) + b for w, b in layer)
            if i == len(self.layers) - 1:
                return parts[0]
            if watch is not None:
                watch.append(parts)
            h = self.engine.activation(self.activation, *parts)
        raise AssertionError("the last layer returns")


def train(networks: Networks, x: Tensor, y: Tensor, rates: Sequence[float], steps: int, batch: int, seed: int,
          loss: Callable[[Tensor, Tensor], Tensor], probe: Callable[[int], None] = lambda step: None) -> None:
    """Train all replicas by Adam with linear warm-up and decay; ``probe`` is called after every step.

    ``loss`` gives one number a replica (R,) of outputs (R, N, ...) and targets (N, ...). All replicas see the
    same batches. A replica whose gradient is no number keeps its weights as they are from then on.
    """
    parameters = networks.parameters()
    rate_R = torch.tensor(rates).view(-1, 1, 1)
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = torch.randint(len(x), (batch,), generator=generator)
        loss_R = loss(networks.forward(x[rows]), y[rows])
        gradients = torch.autograd.grad(loss_R.sum(), parameters)
        share = recipe.learning_rate({"steps": steps, "learning_rate": 1.0, "warmup_fraction": 0.05}, step)
        with torch.no_grad():
            good = torch.stack([g.flatten(1).isfinite().all(1) for g in gradients]).all(0).view(-1, 1, 1)
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                g = torch.where(good, g, torch.zeros(()))
                m.mul_(BETA1).add_(g, alpha=1 - BETA1)
                v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
                update = (m / (1 - BETA1 ** (step + 1))) / ((v / (1 - BETA2 ** (step + 1))).sqrt() + EPS)
                p.sub_(torch.where(good, rate_R * share * update, torch.zeros(())))
        probe(step + 1)


def squared_error(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each replica (R,)."""
    return (outputs - target).square().flatten(1).mean(1)


def cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy of each replica (R,); target (N,) holds classes."""
    rows = outputs.log_softmax(-1).gather(-1, target.expand(len(outputs), -1).unsqueeze(-1))
    return -rows.flatten(1).mean(1)


def hard_functions(x: Tensor) -> Tensor:
    """Return three fixed functions of points x (N, 2) in the square from -1 to 1: (N, 3).

    A wave, sin(6 x1) cos(5 x2); a jump, the sign of x1 x2; a narrow pair of hills, one up and one down.
    """
    a, b = x[:, 0], x[:, 1]
    hills = torch.exp(-20 * ((a - 0.4).square() + (b + 0.3).square())) - torch.exp(
        -20 * ((a + 0.5).square() + (b - 0.2).square()))
    return torch.stack([torch.sin(6 * a) * torch.cos(5 * b), torch.sign(a * b), 2 * hills], dim=1)


FUNCTIONS = ("a wave", "a jump", "two hills")


def points(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return points (count, 2), uniform in the square from -1 to 1."""
    return 2 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 1


def relative_errors(outputs: Tensor, target: Tensor) -> Tensor:
    """Return each replica's root-mean-square error by target over the target's standard deviation: (R, outputs)."""
    return (outputs - target).square().mean(-2).sqrt() / target.std(0, correction=0)


def finite_values(values: Any) -> Any:
    """Return JSON values of tensors, lists and numbers, with None where a number is not finite."""
    if isinstance(values, Tensor):
        values = values.tolist()
    if isinstance(values, dict):
        return {key: finite_values(v) for key, v in values.items()}
    return [finite_values(v) for v in values] if isinstance(values, list) else finite(values)
