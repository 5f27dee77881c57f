"""Programs that others run: ONNX, AOTInductor, torch.jit, make_fx, pickles; first calls inside a compiler."""

import multiprocessing
import pickle
import sys

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import nonlin
from nonlin import functional as F
from nonlin.errors import UserError
from nonlin.functions import Definition, Parameter, get
from nonlin.functions.grammar import parse
from nonlin.nn import FeedForward


class _Calls(torch.nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, *inputs):
        return self.call(*inputs)


def _by_onnx(module, *inputs):
    reference = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    model = torch.onnx.export(module, inputs, dynamo=True, verbose=False).model_proto
    assert not any("nonlin" in (node.domain + node.op_type) for node in model.graph.node)
    names = [i.name for i in model.graph.input]
    (out,) = reference.ReferenceEvaluator(model).run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    return torch.from_numpy(np.array(out))


@pytest.mark.parametrize("name", ["gelu", "xielu", "mish", "laplace", "xatlu", "swiglu_oai"])
def test_onnx_of_an_activation(name):
    inputs = [torch.linspace(-4, 4, 24).reshape(3, 8) for _ in get(name).variables]
    torch.testing.assert_close(_by_onnx(_Calls(F.activation(name)), *inputs), F.activation(name)(*inputs),
                               rtol=1e-5, atol=1e-6)


def test_onnx_of_an_accelerated_model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        use_cache=False)).eval()
    ids = torch.arange(10)[None]
    want = model(ids).logits.detach()
    nonlin.accelerate(model)
    torch.testing.assert_close(_by_onnx(model, ids), want, rtol=1e-4, atol=1e-5)


def _forget_lowerings():
    lowering = sys.modules.get("torch._inductor.lowering")
    for op in [op for op in getattr(lowering, "lowerings", ()) if str(op).startswith("nonlin.")]:
        del lowering.lowerings[op]


@pytest.mark.parametrize("service", [None, "true"])  # of continuous integration, where Inductor is stricter
def test_aot_inductor(tmp_path, monkeypatch, service):
    monkeypatch.setenv("CI", service) if service else monkeypatch.delenv("CI", raising=False)
    _forget_lowerings()
    x = torch.randn(3, 8)
    block = FeedForward(8, 16).requires_grad_(False)
    module = _Calls(lambda x: block(F.gelu(x)) + F.swiglu_packed(torch.cat([x, x], -1)))
    program = torch.export.export(module, (x,))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "module.pt2"))
    torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), module(x))


def test_a_trace_is_checked_and_differentiable():
    block, x = FeedForward(8, 16), torch.randn(3, 8)
    traced = torch.jit.trace(block, x)
    x = torch.randn(5, 8, requires_grad=True)
    assert torch.equal(traced(x), block(x))
    (got,), (want,) = (torch.autograd.grad(f(x).sum(), x) for f in (traced, block))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("call", [F.gelu, lambda x: F.swiglu_packed(x), FeedForward(8, 16)])
def test_make_fx_of_transforms(call):
    x = torch.randn(3, 8)
    for f in (torch.func.functionalize(call), torch.func.grad(lambda x: call(x).sum())):
        torch.testing.assert_close(make_fx(f)(x)(x), f(x))


def test_transforms_inside_a_compiler():
    torch._dynamo.reset()
    x, block = torch.randn(3, 4), FeedForward(4, 6).requires_grad_(False)
    for f in (lambda x: torch.func.jvp(F.gelu, (x,), (torch.ones_like(x),))[1],
              lambda x: torch.func.jvp(block, (x,), (torch.ones_like(x),))[1],
              torch.func.grad(lambda x: block(x).sum()), torch.func.hessian(lambda x: F.gelu(x).sum())):
        torch.testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(x), f(x))


@pytest.mark.parametrize("name", ["elu", "never_called=x*sigmoid(7*x)"])
def test_a_first_call_inside_a_compiler(name):
    torch._dynamo.reset()
    name, _, formula = name.partition("=")
    if formula:
        nonlin.define(name, formula)
    x = torch.randn(5)
    got = torch.compile(lambda x: F.activation(name)(x), fullgraph=True, backend="eager")(x)
    assert torch.equal(got, F.activation(name)(x))


def test_a_mistake_inside_a_compiler_is_told_in_words():
    for call, x in ((F.gelu, torch.arange(3)), (F.swiglu_packed, torch.ones(3)),
                    (FeedForward(8, 16), torch.ones(3, 8, dtype=torch.float64))):
        torch._dynamo.reset()
        with pytest.raises(UserError) as plain:
            call(x)
        with pytest.raises(Exception, match="UserError") as compiled:
            torch.compile(lambda x, call=call: call(x), fullgraph=True, backend="eager")(x)
        assert str(plain.value) in str(compiled.value)


@pytest.mark.parametrize("call", [F.gelu, F.prelu, F.swiglu_packed, FeedForward(8, 16), FeedForward(8, 16, "relu")])
def test_backward_is_compiled(call):
    torch._dynamo.reset()
    for rows in (2, 300):
        x = torch.randn(rows, 8, requires_grad=True)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
            call(x).sum().backward()
        torch.testing.assert_close(x.grad, torch.autograd.grad(call(x).sum(), x)[0])


@pytest.mark.parametrize("name", ["gelu", "xielu", "swiglu", "solu", "traced_by_fx"])
def test_a_symbolic_trace_goes_through(name):
    if name == "traced_by_fx":
        nonlin.define(name, "x*sigmoid(6*x)")
    x, block = torch.randn(3, 8), torch.nn.Sequential(FeedForward(8, 16, name))
    traced = torch.fx.symbolic_trace(block)
    torch.testing.assert_close(traced(x), block(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(traced))(x), block(x))


def test_a_symbolic_trace_of_packed_tensors():
    x, packed = torch.randn(3, 8), _Calls(lambda x: F.swiglu_packed(x, layout="interleaved"))
    torch.testing.assert_close(torch.fx.symbolic_trace(torch.nn.Sequential(packed))(x), packed(x))


def _run(block, x):
    return block(x).detach()


def test_blocks_and_functions_go_through_pickle_and_to_a_spawned_process(tmp_path):
    nonlin.define("sent", "x*sigmoid(5*x)")
    x = torch.randn(3, 8)
    for block in (FeedForward(8, 16), FeedForward(8, 16, "xielu"), FeedForward(8, 16, "sent")):
        assert torch.equal(pickle.loads(pickle.dumps(block))(x), block(x))
        torch.save(block, tmp_path / "block.pt")
        assert torch.equal(torch.load(tmp_path / "block.pt", weights_only=False)(x), block(x))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert torch.equal(pool.apply(_run, (block, x)), block(x).detach())
    for function in (F.gelu, F.swiglu, F.swiglu_packed, F.prelu, F.polynorm, F.activation("leaky_relu(slope=0.3)"),
                     F.packed("swiglu_oai(alpha=1.5,limit=6.5)"), F.activation("sent")):
        assert pickle.loads(pickle.dumps(function)) is function
    assert pickle.loads(pickle.dumps(get("sent"))) is get("sent")


def test_what_is_no_dense_tensor_is_explained_and_jagged_ones_work():
    x = torch.randn(3, 8)
    jagged = torch.nested.nested_tensor([x[:1], x[1:]], layout=torch.jagged)
    for call in (F.gelu, F.swiglu_packed, lambda x: F.swiglu(x, x), FeedForward(8, 16)):
        torch.testing.assert_close(call(jagged).values(), call(x))
    assert (jagged + F.gelu(jagged)).values().shape == (3, 8)
    for bad, word in ((1.5, "be a tensor"), (x.to_sparse(), "be dense"), (x.to_sparse_csr(), "be dense"),
                      (torch.masked.masked_tensor(x, x > 0), "have no mask"),
                      (torch.nested.nested_tensor([x[:1], x[1:]]), "be dense or jagged")):
        for call in (F.gelu, F.prelu, lambda x: F.swiglu(x, x), F.swiglu_packed, F.solu, F.polynorm):
            with pytest.raises(UserError, match=word):
                call(bad)
    for bad in (1.5, "x", None, [1.0], torch.masked.masked_tensor(x, x > 0)):
        with pytest.raises(UserError, match="x must"):
            FeedForward(8, 16)(bad)
    with pytest.raises(UserError, match="16, 32 or 64 bits"):
        F.gelu(x.to(torch.float8_e4m3fn))
    assert torch.equal(F.prelu(x, slope=0.1), F.prelu(x, slope=torch.tensor([0.1])))
    with pytest.raises(UserError, match="slope must be a number or a tensor"):
        F.prelu(x, slope="steep")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_results_and_gradients_lie_as_their_inputs(dtype):
    for x in (torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.randn(4, 6).t(),
              torch.randn(2, 3, 4, 5, 6).permute(3, 0, 4, 1, 2)):
        x = x.to(dtype).requires_grad_()
        assert F.polynorm(x).stride() == F.solu(x).stride() == x.stride()
        for call in (F.gelu, F.prelu, lambda x: F.swiglu(x, x)):
            out = call(x)
            assert out.stride() == x.stride()
            assert torch.equal(out, call(x.detach().contiguous()))
            (got,) = torch.autograd.grad(out, x, torch.ones_like(out))
            assert got.stride() == x.stride()


def test_zeros_without_memory_are_zeros():
    """Torch makes them where a derivative is 0: they have no address that a kernel could read."""
    zeros = torch._efficientzerotensor((3, 8))
    for call in (F.gelu, F.xielu, F.prelu, lambda x: F.swiglu(x, x), lambda x: F.swiglu(x, torch.ones(3, 8)),
                 F.swiglu_packed, FeedForward(8, 16), FeedForward(8, 16, "gelu")):
        torch.testing.assert_close(call(zeros), call(torch.zeros(3, 8)))
        x = torch.randn(3, 8, requires_grad=True)
        out = call(x)
        (got,) = torch.autograd.grad(out, x, torch._efficientzerotensor(tuple(out.shape)), allow_unused=True)
        assert got is None or not got.count_nonzero()


def test_a_learnable_parameter_takes_no_place_of_a_module():
    made = Definition("odd", "pointwise", parse("forward*x", ("forward",)), parameters=(Parameter("forward", 1.0),))
    with pytest.raises(UserError, match="no module's attribute has"):
        nonlin.nn.Activation(made)
