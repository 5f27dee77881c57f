"""The operation under everything that torch wraps around it, with values against torch's own layers."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from nonlin.functions import get
from nonlin.kernels import feed_forward
from nonlin.kernels.ffn import ops as ffn_ops
from nonlin.nn import FeedForward
from tests.kernels.ffn.blocks import assert_close, case, gradients, reference

MEMORY = ("fast", "lean", "minimal")
# The operation is opaque to a compiler's last stage, whose compile takes seconds: one test goes through it.
TRACED = "aot_eager"
NAMES = ("swiglu", "gelu", "leaky_relu", "xielu")


def _call(one, **options):
    """Return a function of the case's tensors alone, and those tensors."""
    leaves = one.leaves()

    def call(*values):
        given = dict(zip(leaves, values, strict=True))
        tensors = {k: given.get(k) for k in one.tensors}
        return feed_forward(**tensors, activation=one.name, parameters={k: given[k] for k in one.parameters}, **options)

    return call, tuple(leaves.values())


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_first_and_second(name, bias, memory):
    call, values = _call(case(name, (2,), 3, 4, 2, bias=bias), memory=memory)
    assert torch.autograd.gradcheck(call, values)
    assert torch.autograd.gradgradcheck(call, values)


@pytest.mark.parametrize("layout", ["concatenated", "interleaved"])
@pytest.mark.parametrize("first", ["gate", "up"])
def test_gradcheck_packed(layout, first):
    torch.manual_seed(1)
    x, up, down, up_bias = (torch.randn(s, dtype=torch.float64, requires_grad=True)
                            for s in ((2, 3), (3, 8), (4, 2), (8,)))

    def call(x, up, down, up_bias):
        return feed_forward(x, None, up.t(), down.t(), up_bias=up_bias, activation="swiglu", layout=layout, first=first)

    assert torch.autograd.gradcheck(call, (x, up, down, up_bias))
    assert torch.autograd.gradgradcheck(call, (x, up, down, up_bias))


@pytest.mark.parametrize("frozen", ["gate", "up", "down", "x"])
def test_a_second_derivative_with_something_frozen(frozen):
    one = case("swiglu")
    one.tensors[frozen].requires_grad_(False)

    def second(out):
        leaves = {k: t for k, t in one.leaves().items() if t.requires_grad}
        first = torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out), create_graph=True)
        return gradients(sum(g.square().sum() for g in first), leaves)

    got, want = second(one.ours()), second(one.torchs())
    for key, gradient in want.items():
        mine = torch.zeros_like(one.tensors[key]) if got[key] is None else got[key]
        assert_close(mine, torch.zeros_like(mine) if gradient is None else gradient, what=key)


@pytest.mark.parametrize("keep", ["nothing", "inputs", "output", "all"])
@pytest.mark.parametrize("name,layout", [("swiglu", "separate"), ("swiglu", "interleaved"), ("xielu", "plain")])
def test_opcheck(name, layout, keep):
    if keep == "output" and name != "xielu":
        pytest.skip("no gated derivative is told from its output")
    if keep == "output":
        name = "relu"
    one = case(name, dtype=torch.float32)
    t = dict(one.tensors)
    if layout == "interleaved":
        t |= {"up": torch.randn(7, 12).t().requires_grad_(), "up_bias": torch.randn(12, requires_grad=True),
              "gate": None, "gate_bias": None}
    learned = torch.cat(list(one.parameters.values())).detach().requires_grad_() if one.parameters else None
    torch.library.opcheck(ffn_ops.forward_op, (*t.values(), learned, name, layout, False, keep))
    _, pre, hidden = ffn_ops.forward_op(*(None if v is None else v.detach() for v in (*t.values(), learned)),
                                          name, layout, False, keep)
    kept = [pre if keep in ("inputs", "all") else None, hidden if keep in ("output", "all") else None]
    needs = [True, t["gate"] is not None, True, True, t["gate_bias"] is not None, True, True, learned is not None]
    for wanted in (needs, [False, False, True, False, False, False, True, False]):
        torch.library.opcheck(ffn_ops.backward_op, (
            torch.randn(3, 5, 4), t["x"], t["gate"], t["up"], t["down"], t["gate_bias"], t["up_bias"], None,
            learned, *kept,
            name, layout, False, wanted))


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("name", NAMES)
def test_torch_compile_without_a_break(name, memory):
    one = case(name)
    call, values = _call(one, memory=memory)
    got, want = torch.compile(call, fullgraph=True, backend=TRACED)(*values), one.torchs()
    assert_close(got.detach(), want.detach())
    for (key, gradient), mine in zip(gradients(want, one.leaves()).items(), gradients(got, one.leaves()).values(),
                                     strict=True):
        assert_close(mine, gradient, what=key)


def test_torch_compile_by_inductor_among_other_operations():
    block, x = FeedForward(6, 8, "swiglu", bias=True).double(), torch.randn(3, 6, dtype=torch.float64)

    def call(x, block=block):
        return (block(x * 2) + x).square().sum()

    got, want = torch.compile(call, fullgraph=True)(x), call(x)
    assert_close(got.detach(), want.detach())
    leaves = dict(block.named_parameters())
    for mine, (key, gradient) in zip(gradients(got, leaves).values(), gradients(want, leaves).items(), strict=True):
        assert_close(mine, gradient, what=key)


def test_torch_compile_with_changing_tokens_compiles_once():
    block = FeedForward(6, 8, "swiglu").double()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=counter)
    for tokens in (3, 7, 19):
        x = torch.randn(2, tokens, 6, dtype=torch.float64)
        want = reference("swiglu", x, block.gate.weight, block.up.weight, block.down.weight)
        assert_close(compiled(x).detach(), want.detach())
    assert counter.frame_count == 1


def test_torch_compile_of_a_packed_view_and_a_definition():
    packed, down = torch.randn(7, 12, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    x, swiglu = torch.randn(3, 7, dtype=torch.float64), get("swiglu")

    def call(x):
        return feed_forward(x, None, packed.t(), down, activation=swiglu, layout="interleaved")

    want = reference("swiglu", x, packed.t()[::2], packed.t()[1::2], down)
    assert_close(torch.compile(call, fullgraph=True, backend=TRACED)(x), want)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("name", NAMES)
def test_autocast(name, memory, compiled):
    """Output and input gradient are those of the block in bfloat16 throughout, parameters in float32."""
    block = FeedForward(48, 64, name, bias=True, memory=memory)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    twin = copy.deepcopy(block)
    for layer in (twin.gate, twin.up, twin.down):
        _ = layer and layer.bfloat16()
    x = torch.randn(9, 48)
    call = torch.compile(block, fullgraph=True, backend=TRACED) if compiled else block
    with torch.autocast("cpu", torch.bfloat16):
        got = call(x)
        assert got.dtype == torch.bfloat16
    got.sum().backward()
    want = twin(x.bfloat16())
    want.sum().backward()
    assert torch.equal(got, want)
    for (key, mine), theirs in zip(block.named_parameters(), twin.parameters(), strict=True):
        assert mine.grad.dtype == torch.float32 and torch.equal(mine.grad, theirs.grad.float()), key
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert block(x).dtype == torch.float32


def test_autocast_leaves_float64_alone_and_backward_may_run_inside():
    one = case("swiglu")
    with torch.autocast("cpu", torch.bfloat16):
        got = one.ours()
        mine = gradients(got, one.leaves())
    want = gradients(one.torchs(), one.leaves())
    for key in want:
        assert_close(mine[key], want[key], what=key)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["swiglu", "relu"])
def test_activation_checkpointing(name, reentrant, memory):
    one = case(name)
    call, values = _call(one, memory=memory)
    got, want = checkpoint(call, *values, use_reentrant=reentrant), one.torchs()
    got.sum().backward()
    for key, gradient in gradients(want, one.leaves()).items():
        assert_close(one.leaves()[key].grad, gradient, what=key)


def test_checkpointing_under_autocast_and_compile():
    # Many tokens: few are torch's layers in eager mode, and those round the gradient by x once more.
    block, x = FeedForward(6, 8, "swiglu"), torch.randn(20, 6, requires_grad=True)

    def step(call):
        block.zero_grad()
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            out = call(x)
        out.float().square().sum().backward()
        return [x.grad.clone(), *(p.grad.clone() for p in block.parameters())]

    want = step(block)
    for call in (lambda x: checkpoint(block, x, use_reentrant=False),
                 torch.compile(lambda x: checkpoint(block, x, use_reentrant=False), fullgraph=True, backend=TRACED)):
        assert all(torch.equal(a, b) for a, b in zip(step(call), want, strict=True))


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("name", NAMES)
def test_func_grad(name, memory):
    one = case(name, requires_grad=False)
    call, values = _call(one, memory=memory)
    got = torch.func.grad(lambda *v: call(*v).square().sum(), argnums=tuple(range(len(values))))(*values)
    twin = one.copy(torch.float64)
    want = gradients(twin.torchs().square().sum(), twin.leaves())
    for mine, (key, gradient) in zip(got, want.items(), strict=True):
        assert_close(mine, gradient, what=key)


def test_func_hessian_by_reverse_mode():
    one = case("swiglu", (2,), requires_grad=False)
    call, values = _call(one)

    def loss(f):
        return lambda x: f(x).square().sum()

    ours = torch.func.jacrev(torch.func.jacrev(loss(lambda x: call(x, *values[1:]))))(values[0])
    twin = {k: v for k, v in one.tensors.items() if k != "x"}
    want = torch.autograd.functional.hessian(loss(lambda x: reference("swiglu", x, **twin)), values[0])
    assert_close(ours, want)


@pytest.mark.parametrize("name", ["swiglu", "xielu", "relu"])
def test_vmap_over_inputs_over_weights_and_per_sample_gradients(name):
    one = case(name, (4, 3), requires_grad=False)
    call, (x, *rest) = _call(one)
    assert_close(torch.func.vmap(lambda x: call(x, *rest))(x), one.torchs())
    assert_close(torch.func.vmap(lambda x: call(x, *rest), in_dims=1)(x), one.torchs().transpose(0, 1))
    ups = torch.stack([one.tensors["up"], 2 * one.tensors["up"]])
    at = list(one.leaves()).index("up") - 1

    def with_up(up):
        return call(x, *rest[:at], up, *rest[at + 1:])

    want = torch.stack([reference(name, **{**one.tensors, "up": up}, parameters=tuple(one.parameters.values()))
                        for up in ups])
    assert_close(torch.func.vmap(with_up)(ups), want)
    each = torch.func.vmap(torch.func.grad(lambda up, x: call(x, *rest[:at], up, *rest[at + 1:]).square().sum()),
                           (None, 0))(one.tensors["up"], x)
    for i in range(4):
        up = one.tensors["up"].clone().requires_grad_()
        out = reference(name, **{**one.tensors, "x": x[i], "up": up}, parameters=tuple(one.parameters.values()))
        assert_close(each[i], torch.autograd.grad(out.square().sum(), up)[0])


def test_functional_call_with_replaced_weights():
    block, x = FeedForward(6, 8, "geglu").double(), torch.randn(3, 6, dtype=torch.float64)
    weights = {k: torch.randn_like(v) for k, v in block.named_parameters()}
    got = torch.func.functional_call(block, weights, (x,))
    assert_close(got, reference("geglu", x, *(weights[f"{k}.weight"] for k in ("gate", "up", "down"))))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["swiglu", "xielu"])
def test_export(name, strict, tmp_path):
    block = FeedForward(6, 8, name, bias=True).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    tokens = torch.export.Dim("tokens", min=2)
    made = torch.export.export(block, (x,), dynamic_shapes={"x": {0: tokens}}, strict=strict)
    assert "nonlin.feed_forward" in str(made.graph)
    torch.export.save(made, tmp_path / "block.pt2")
    loaded = torch.export.load(tmp_path / "block.pt2").module()
    x = torch.randn(9, 6, dtype=torch.float64)
    assert torch.equal(loaded(x), block(x))


def test_a_users_formula_survives_export_to_a_process_that_never_defined_it(tmp_path):
    import subprocess
    import sys

    import nonlin

    nonlin.define("steep", "x*sigmoid(3*x)")
    block, x = FeedForward(6, 8, "steep"), torch.randn(4, 6)
    torch.export.save(torch.export.export(block, (x,)), tmp_path / "block.pt2")
    torch.save((x, block(x).detach()), tmp_path / "want.pt")
    code = ("import sys, torch, nonlin.kernels.ffn.ops\nx, want = torch.load(sys.argv[2])\n"
            "got = torch.export.load(sys.argv[1]).module()(x)\nassert torch.equal(got, want), (got, want)\n")
    subprocess.run([sys.executable, "-c", code, tmp_path / "block.pt2", tmp_path / "want.pt"], check=True)


@pytest.mark.parametrize("name", ["swiglu", "xielu"])
def test_meta_device(name):
    block = FeedForward(6, 8, name, bias=True, device="meta")
    x = torch.empty(2, 3, 6, device="meta", requires_grad=True)
    out = block(x)
    assert out.device.type == "meta" and out.shape == (2, 3, 6)
    out.sum().backward()
    assert x.grad.shape == x.shape and all(p.grad.shape == p.shape for p in block.parameters())


def test_inference_mode():
    one = case("swiglu", requires_grad=False)
    with torch.inference_mode():
        got = one.ours()
    assert got.is_inference()
    assert_close(got.clone(), one.torchs())
