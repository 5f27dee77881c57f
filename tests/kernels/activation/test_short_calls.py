"""Calls on plain tensors run in C (cpu/call.h) and give the operation's bits; others take the general way."""

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from nonlin import functional
from nonlin.functions import define, get, names
from nonlin.functions.registry import serialize
from nonlin.kernels.activation import fast_path, ops
from nonlin.kernels.cpu import backend as cpu_backend
from tests.kernels.activation.references import must_be_given_back

catalog = fast_path._catalog()
pytestmark = pytest.mark.skipif(catalog is None, reason="the compiled module has no calls for this torch")
NAMES = [n for n in names() if get(n).expr is not None]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def _tensors(name, shape, dtype):
    torch.manual_seed(2)
    definition = get(name)
    inputs = [torch.randn(shape).to(dtype).requires_grad_() for _ in definition.variables]
    wide = torch.promote_types(dtype, torch.float32)
    return inputs, [torch.tensor([q.initial + 0.1], dtype=wide, requires_grad=True) for q in definition.parameters]


def _named(name, learned):
    return {q.name: tensor for q, tensor in zip(get(name).parameters, learned, strict=True)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradients_have_the_operations_bits(name, dtype):
    for shape in ((7,), (3, 5, 11), (), (0, 4)):
        inputs, learned = _tensors(name, shape, dtype)
        out = functional.activation(name)(*inputs, **_named(name, learned))
        assert type(out.grad_fn).__name__ == "_ShortBackward"
        wanted = ops.activation(serialize(get(name)), [*inputs, *learned])
        assert torch.equal(out, wanted) and out.shape == wanted.shape and out.dtype == wanted.dtype
        upstream = torch.randn(shape).to(dtype)
        got = torch.autograd.grad(out, (*inputs, *learned), upstream)
        for a, b in zip(got, torch.autograd.grad(wanted, (*inputs, *learned), upstream), strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype and a.shape == b.shape
        with torch.no_grad():
            assert torch.equal(functional.activation(name)(*inputs, **_named(name, learned)), wanted)


@pytest.mark.parametrize("name", ["gelu", "swiglu", "prelu"])
def test_many_numbers(name):
    inputs, learned = _tensors(name, (3, cpu_backend.PIECE), torch.float32)
    out = functional.activation(name)(*inputs, **_named(name, learned))
    wanted = ops.activation(serialize(get(name)), [*inputs, *learned])
    assert torch.equal(out, wanted)
    upstream = torch.randn_like(out)
    got = torch.autograd.grad(out, (*inputs, *learned), upstream)
    assert all(map(torch.equal, got, torch.autograd.grad(wanted, (*inputs, *learned), upstream)))


def _not_plain():
    x = torch.linspace(-2, 2, 12)
    return {"every other": x[::2], "transposed": x.view(3, 4).t(), "negative view": torch._neg_view(x),
            "detached negative view": torch._neg_view(x).data, "zeros without memory": torch._efficientzerotensor(4),
            "of no memory": x.to("meta"), "integers": torch.arange(3), "sparse": x.to_sparse(), "nothing": None,
            "a class of its own": x.as_subclass(type("Own", (torch.Tensor,), {})),
            "nested": torch.nested.nested_tensor([x], layout=torch.jagged)}


@pytest.mark.parametrize("what", _not_plain())
def test_what_is_not_plain_is_refused(what):
    x = _not_plain()[what]
    seen = catalog.look(x)
    assert seen is None or (what == "integers" and seen[1] not in fast_path._NUMBERS.values())
    one = torch.ones(1, 1)
    assert not catalog.fit(x, None, one, one, None, None, None)
    assert catalog.fit(one, None, one, one, None, None, None)


@pytest.mark.parametrize("what", ["every other", "transposed", "negative view", "detached negative view",
                                  "zeros without memory", "a class of its own"])
def test_what_is_not_plain_is_computed_by_its_numbers(what):
    x = _not_plain()[what]
    wanted = torch.sigmoid(x.resolve_neg() + torch.zeros(())).as_subclass(type(x))
    torch.testing.assert_close(functional.sigmoid(x), wanted)
    torch.testing.assert_close(functional.bilinear(x, x), (x * x).as_subclass(type(x)))


def test_a_plain_tensor_is_known_by_its_memory():
    for x in (torch.randn(64), torch.nn.Parameter(torch.randn(2, 3)), torch.randn(()), torch.randn(4, 1)[:, :1],
              torch.randn(6)[2:]):
        assert catalog.look(x) == (x.numel(), 6, x.data_ptr())


def test_parameters_by_number_by_name_and_left_out():
    x = torch.randn(9)
    slope = torch.full((1,), 0.25)
    wanted = torch.nn.functional.prelu(x, slope)
    for given in ({"slope": slope}, {"slope": 0.25}, {}, {"slope": slope.double()}, {"slope": slope.squeeze()}):
        assert torch.equal(functional.prelu(x, **given), wanted)
    x.requires_grad_()
    for given in ({"slope": 0.25}, {}, {"slope": slope}):
        out = functional.prelu(x, **given)
        torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], torch.where(x > 0, 1.0, 0.25))
    two = functional.activation("xielu")
    p, n = torch.tensor([0.3]), torch.tensor([0.7])
    assert torch.equal(two(x, alpha_n=n, alpha_p=p), two(x, alpha_p=p, alpha_n=n))
    assert not torch.equal(two(x, alpha_n=n, alpha_p=p), two(x, alpha_p=n, alpha_n=p))


class _Seen(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_the_operation_and_the_gradient_of_a_call_before_it():
    x = torch.randn(5, requires_grad=True)
    out = functional.silu(x)
    watching = _Seen()
    watching.names = []
    with watching:
        got, = torch.autograd.grad(out, x, torch.ones(5))
        functional.silu(x)
    assert any("activation_backward" in name for name in watching.names)
    assert any("nonlin.activation.default" in name for name in watching.names)
    torch.testing.assert_close(got, torch.autograd.grad(torch.nn.functional.silu(x).sum(), x)[0])


@pytest.mark.parametrize("name", ["gelu", "swiglu", "prelu"])
def test_gradients_of_gradients_and_batches_of_gradients(name):
    inputs, learned = _tensors(name, (4,), torch.float64)
    tensors = (*inputs, *learned)

    def call(*given):
        out = functional.activation(name)(*given[:len(inputs)], **_named(name, given[len(inputs):]))
        assert type(out.grad_fn).__name__ == "_ShortBackward"
        return out

    assert torch.autograd.gradcheck(call, tensors) and torch.autograd.gradgradcheck(call, tensors)
    whole, = torch.autograd.grad(call(*tensors), inputs[:1], torch.eye(4, dtype=torch.float64), is_grads_batched=True)
    single = [torch.autograd.grad(call(*tensors), inputs[:1], row)[0] for row in torch.eye(4, dtype=torch.float64)]
    torch.testing.assert_close(whole, torch.stack(single))


def test_what_is_saved_passes_through_hooks_and_is_checked_for_changes():
    x = torch.randn(6, requires_grad=True)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(1) or t.double(), lambda t: t.float()):
        out = functional.silu(x)
    assert packed and torch.allclose(torch.autograd.grad(out.sum(), x)[0],
                                     torch.autograd.grad(torch.nn.functional.silu(x).sum(), x)[0])
    y = x * 1
    out = functional.silu(y)
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_references_are_given_back():
    x, up, slope = torch.randn(8, requires_grad=True), torch.randn(8), torch.ones(1, requires_grad=True)
    watched = (x, up, slope, torch.empty_like, torch.is_grad_enabled, functional.prelu)

    def run(times):
        for _ in range(times):
            functional.swiglu(x, up).backward(torch.ones(8))
            functional.prelu(x, slope=slope).backward(torch.ones(8))
            functional.silu(up), functional.prelu(x[::2], slope=slope)

    must_be_given_back(watched, run, 300)


def test_a_torch_that_lacks_a_function_takes_the_general_way(monkeypatch):
    monkeypatch.setattr(fast_path, "_SYMBOLS", (*fast_path._SYMBOLS, "aoti_torch_of_another_version"))
    assert fast_path._catalog.__wrapped__() is None
    monkeypatch.setattr(fast_path, "_catalog", lambda: None)

    def general(x):
        return x

    assert fast_path.shortened(get("silu"), general) is general
    assert not fast_path.fit([torch.ones(1, 1)] * 4 + [None] * 3)


def test_torch_is_asked_once_and_a_mode_at_that_time_changes_no_answer():
    with FakeTensorMode():
        assert fast_path._catalog.__wrapped__() is not None


def test_tensors_elsewhere_compile_no_kernel_for_the_processor(monkeypatch):
    asked = []
    monkeypatch.setattr(cpu_backend, "entry", lambda *about: asked.append(about))
    call = functional.activation(define("elsewhere", "x*sigmoid(5*x)"))
    assert call(torch.ones(3, device="meta")).shape == (3,) and not asked
    call(torch.ones(3))
    assert asked


def test_calls_of_another_dtype_do_not_compile_a_traced_call_anew():
    made = []
    call = functional.activation(define("traced_once", "x*sigmoid(7*x)"))
    compiled = torch.compile(lambda x: call(x) * 2, backend=lambda graph, _: made.append(1) or graph.forward)
    compiled(torch.ones(3))
    call(torch.ones(3)), call(torch.ones(3, dtype=torch.float64))
    compiled(torch.ones(3))
    assert len(made) == 1


def test_a_tensor_around_another_is_computed_by_its_numbers():
    x = torch.randn(5)
    around = torch._to_functional_tensor(x)
    assert catalog.look(around) is None
    torch.testing.assert_close(torch._from_functional_tensor(functional.silu(around)), torch.nn.functional.silu(x))
    left = []
    torch.func.grad(lambda y: (left.append(y), y.sum())[1])(x)
    torch.testing.assert_close(functional.silu(left[0]), torch.nn.functional.silu(x))


def test_a_tensor_that_left_vmap_is_an_error_and_ends_no_process():
    """torch throws in C++ when it is asked about such a tensor."""
    script = ("import torch; from nonlin import functional; left = []\n"
              "torch.vmap(lambda y: (left.append(y), y.sum())[1])(torch.randn(3, 2))\n"
              "functional.silu(left[0])")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 1 and "escaped from inside a function being vmapped" in done.stderr, done.stderr[-2000:]


def test_calls_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match="saved takes"):
        catalog.saved(None, None, None)
    with pytest.raises(ValueError, match="one or two inputs"):
        catalog.Short(3, (), (), None, None)
    with pytest.raises(KeyError):
        catalog.Short(1, (), (), None, None) and catalog.watch({})
    fast_path._catalog.__wrapped__()  # bound again
