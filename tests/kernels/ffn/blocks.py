"""A feed-forward block in plain torch, in the words of torch alone, and a case to compare it with ours on."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nonlin.functions import get
from nonlin.kernels import feed_forward


def _xielu(x, alpha_p, alpha_n):
    # The reference is whole: where() keeps the exponential of the other side out of the gradient.
    low = torch.minimum(x, torch.full_like(x, -1e-6))
    return torch.where(x > 0, F.softplus(alpha_p) * x * x + x / 2,
                       (0.5 + F.softplus(alpha_n)) * (torch.expm1(low) - x) + x / 2)


POINTWISE = {
    "identity": lambda x: x, "relu": F.relu, "relu6": F.relu6, "hardtanh": F.hardtanh,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.01), "gelu": F.gelu, "silu": F.silu, "mish": F.mish, "elu": F.elu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu_squared": lambda x: F.relu(x) ** 2,
    "softplus": F.softplus, "sigmoid": torch.sigmoid, "prelu": F.prelu, "xielu": _xielu,
    "swish_beta": lambda x, beta: x * torch.sigmoid(beta * x),
}
GATED = {
    "swiglu": lambda g, u: F.silu(g) * u, "geglu": lambda g, u: F.gelu(g) * u, "reglu": lambda g, u: F.relu(g) * u,
    "geglu_tanh": lambda g, u: F.gelu(g, approximate="tanh") * u, "glu": lambda g, u: torch.sigmoid(g) * u,
    "bilinear": lambda g, u: g * u, "drelu": lambda g, u: F.relu(g) * F.relu(u),
    "swiglu_oai": lambda g, u: g.clamp(max=7) * torch.sigmoid(1.702 * g.clamp(max=7)) * (u.clamp(-7, 7) + 1),
}
REFERENCE = POINTWISE | GATED


def reference(name, x, gate, up, down, gate_bias=None, up_bias=None, down_bias=None, parameters=()):
    """Return the block's output by torch's own layers and functions."""
    inputs = [F.linear(x, up, up_bias)]
    if gate is not None:
        inputs.insert(0, F.linear(x, gate, gate_bias))
    return F.linear(REFERENCE[name](*inputs, *parameters), down, down_bias)


@dataclass
class Case:
    """One block: its tensors by name (gate None where plain, biases None where there are none)."""

    name: str
    tensors: dict
    parameters: dict = field(default_factory=dict)

    def leaves(self):
        return {k: t for k, t in (self.tensors | self.parameters).items() if t is not None}

    def copy(self, dtype, requires_grad=True):
        def change(t):
            return None if t is None else t.detach().clone().to(dtype).requires_grad_(requires_grad)

        return Case(self.name, {k: change(t) for k, t in self.tensors.items()},
                    {k: change(t) for k, t in self.parameters.items()})

    def ours(self, **options):
        return feed_forward(**self.tensors, activation=self.name, parameters=self.parameters, **options)

    def torchs(self):
        return reference(self.name, **self.tensors, parameters=tuple(self.parameters.values()))


def case(name, shape=(3, 5), dim=7, hidden=6, out=4, bias=True, dtype=torch.float64, requires_grad=True, seed=0,
         device="cpu"):
    """Return random tensors for a block of that activation; parameters are off their start."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size, scale=1.0):
        return (torch.randn(size, generator=generator, dtype=torch.float64) * scale).to(device, dtype)

    gated = get(name).gated
    tensors = {
        "x": draw(*shape, dim), "gate": draw(hidden, dim, scale=dim**-0.5) if gated else None,
        "up": draw(hidden, dim, scale=dim**-0.5), "down": draw(out, hidden, scale=hidden**-0.5),
        "gate_bias": draw(hidden) if bias and gated else None, "up_bias": draw(hidden) if bias else None,
        "down_bias": draw(out) if bias else None}
    parameters = {q.name: torch.tensor([q.initial + 0.1], dtype=dtype, device=device) for q in get(name).parameters}
    made = Case(name, tensors, parameters)
    for tensor in made.leaves().values():
        tensor.requires_grad_(requires_grad)
    return made


def gradients(out: Tensor, leaves: dict, upstream: Tensor | None = None) -> dict:
    """Return the gradient by each leaf that requires one, None where it has no part in the output."""
    wanted = {k: t for k, t in leaves.items() if t.requires_grad}
    upstream = torch.ones_like(out) if upstream is None else upstream
    got = torch.autograd.grad(out, list(wanted.values()), upstream, allow_unused=True, retain_graph=True)
    return dict(zip(wanted, got, strict=True))


def assert_close(got, want, terms=64, what="", least=1e-30):
    """Within the rounding of a sum of ``terms`` products in got's dtype (a random walk; 16 is the safety factor).

    Relative to the largest number wanted, or to ``least``: a sum that cancels is as exact as its terms are.
    """
    assert got.shape == want.shape, f"{what}: {tuple(got.shape)} for {tuple(want.shape)}"
    if not want.numel():
        return
    bound = 16 * torch.finfo(got.dtype).eps * terms**0.5
    error = (got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(least)
    assert float(error) <= bound, f"{what}: relative error {float(error):.3g} over {bound:.3g}"
