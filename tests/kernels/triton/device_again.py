"""Functions called again on tensors like those before: their launches are ready."""

import pytest
import torch

from nonlin import functional
from nonlin.errors import UserError
from nonlin.functions import get
from nonlin.kernels.triton import backend as triton_backend
from tests.kernels.ffn import blocks
from tests.kernels.triton.device import DEVICE

pytestmark = pytest.mark.usefixtures("served")


def _apart(*shape):
    """Return a tensor with gaps."""
    return torch.randn(*shape[:-1], shape[-1] + 1, device=DEVICE)[..., 1:].detach()


@pytest.fixture
def made(monkeypatch):
    """Return the launches that Triton makes anew, by their passes."""
    made = []
    for each in ("forward", "backward"):
        real = getattr(triton_backend, each)
        monkeypatch.setattr(triton_backend, each, lambda *a, real=real, each=each, **k: made.append(each) or
                            real(*a, **k))
    return made


@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_a_function_called_again_launches_again(name, made):
    function, count = getattr(functional, name), len(get(name).variables)
    inputs = [_apart(6, 9).requires_grad_() for _ in range(count)]
    gradient, found = torch.randn(6, 9, device=DEVICE), []
    for _ in range(3):
        out = function(*inputs)
        assert out.requires_grad and not function(*(x.detach() for x in inputs)).requires_grad
        with torch.no_grad():
            assert torch.equal(function(*inputs), out) and not function(*inputs).requires_grad
        with torch.inference_mode():
            assert function(*inputs).is_inference()
        found.append([out.detach(), *torch.autograd.grad(out, inputs, gradient)])
    assert made == ["forward", "backward"]
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))
    wide = [x.detach().double().requires_grad_() for x in inputs]
    slopes = torch.autograd.grad(blocks.REFERENCE[name](*wide), wide, gradient.double(), create_graph=True)
    got = torch.autograd.grad(function(*inputs), inputs, gradient, create_graph=True)
    for first, want in zip((got, found[0][1:]), (slopes, slopes), strict=True):
        assert all(torch.allclose(a.double(), b, atol=1e-5) for a, b in zip(first, want, strict=True))
    second = torch.autograd.grad(sum(d.sum() for d in got), inputs)
    wanted = torch.autograd.grad(sum(d.sum() for d in slopes), wide)
    assert all(torch.allclose(a.double(), b, atol=1e-5) for a, b in zip(second, wanted, strict=True))
    assert torch.equal(torch.func.vmap(function)(*inputs), found[0][0])
    _, tangent = torch.func.jvp(function, tuple(x.detach() for x in inputs), tuple(torch.ones(6, 9, device=DEVICE)
                                                                                  for _ in inputs))
    ones = torch.autograd.grad(function(*inputs), inputs, torch.ones(6, 9, device=DEVICE))
    assert torch.allclose(tangent, sum(ones), atol=1e-5)


def test_a_function_called_again_refuses_what_it_refused():
    gate, up = _apart(6, 9), _apart(6, 9)
    for _ in range(2):
        functional.swiglu(gate, up), functional.gelu(gate)
    with pytest.raises(UserError, match="dense or jagged"):
        functional.gelu(torch.nested.nested_tensor([gate[0], up[1, :3]]))
    with pytest.raises(UserError, match="swiglu: inputs"):
        functional.swiglu(gate)
    with pytest.raises(UserError, match="dtype"):
        functional.swiglu(gate, up.double())
    with pytest.raises(UserError, match="tensor"):
        functional.swiglu(gate, 3)
    kept = []
    torch.func.grad(lambda x: (kept.append(x[:, 1:]), x.sum())[1])(torch.randn(6, 10, device=DEVICE))
    torch.testing.assert_close(functional.gelu(kept[0]), functional.gelu(kept[0] * 1))  # it outlives its transform
