"""The one operation against torch's own layers in float64: values, gradients, layouts, dtypes, odd tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nonlin
from nonlin.errors import UserError
from nonlin.functions import get
from nonlin.functions.numeric import numeric
from nonlin.kernels import feed_forward
from tests.kernels.ffn.blocks import REFERENCE, assert_close, case, gradients, reference

MEMORY = ("fast", "lean", "minimal")


def _compare(one, got, want, upstream=None, terms=64, other=None):
    """Compare output and all gradients; ``other`` is the case that ``want`` was made from."""
    assert_close(got.detach(), want.detach(), terms, "output")
    upstream = torch.randn(want.shape, dtype=torch.float64) if upstream is None else upstream
    mine = gradients(got, one.leaves(), upstream.to(got.dtype))
    theirs = gradients(want, (other or one).leaves(), upstream)
    # Where a derivative crosses zero its terms cancel: a gradient is as exact as a hundredth of the largest of all.
    largest = max((float(g.abs().max()) for g in theirs.values() if g is not None and g.numel()), default=0.0)
    for key, gradient in theirs.items():
        # A learnable parameter's is a sum over every element, of terms about as large as 1.
        summed = want.numel() / want.shape[-1] * one.tensors["down"].shape[1] if key in one.parameters else 1e-30
        assert_close(mine[key], gradient, terms, key, least=max(summed**0.5, largest / 100))


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_values_and_gradients(name, bias, memory):
    one = case(name, bias=bias)
    _compare(one, one.ours(memory=memory), one.torchs())


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("name", ["swiglu", "xielu", "leaky_relu"])
def test_float32(name, memory):
    one = case(name, shape=(2, 40), dim=64, hidden=96, out=64, dtype=torch.float32)
    exact = one.copy(torch.float64)
    _compare(one, one.ours(memory=memory), exact.torchs(), terms=400, other=exact)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["swiglu", "gelu", "leaky_relu", "xielu"])
def test_sixteen_bits_are_no_less_exact_than_torchs_own_block(name, dtype, memory):
    one = case(name, shape=(64,), dim=48, hidden=64, out=48, dtype=dtype)
    exact, upstream = one.copy(torch.float64), torch.randn(64, 48).to(dtype)
    want = exact.torchs()
    truth = {"output": want.detach()} | gradients(want, exact.leaves(), upstream.double())

    def errors(out):
        got = {"output": out.detach()} | gradients(out, one.leaves(), upstream)
        return {k: float((got[k].double() - truth[k]).square().mean().sqrt()) for k in truth}

    mine, eager = errors(one.ours(memory=memory)), errors(one.torchs())
    for key, error in mine.items():
        # Both sum the same products and round apart: the ratio of two such means of n squares varies by 1/sqrt(n).
        # A learnable parameter is one number, whose error is one draw: there a rounding of the result is granted.
        count = truth[key].numel()
        unit = float(truth[key].abs().max()) * torch.finfo(dtype).eps if count == 1 else 0.0
        bound = (1 + 3 / count**0.5) * eager[key] + unit
        assert error <= bound, f"{key}: {error:.3g} against torch's {eager[key]:.3g}"


def _packed(one, layout, first):
    """Return (call, leaves) of the same block with gate and up in one tensor, made without nonlin's own code."""
    t = one.tensors

    def join(gate, up):
        if gate is None:
            return None
        parts = (gate, up) if first == "gate" else (up, gate)
        joined = torch.cat(parts) if layout == "concatenated" else torch.stack(parts, 1).reshape(-1, *gate.shape[1:])
        return joined.detach().clone().requires_grad_()

    return {"x": t["x"], "gate": None, "up": join(t["gate"], t["up"]), "down": t["down"],
            "up_bias": join(t["gate_bias"], t["up_bias"]), "down_bias": t["down_bias"]}, join


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("first", ["gate", "up"])
@pytest.mark.parametrize("layout", ["concatenated", "interleaved"])
def test_packed_layouts(layout, first, bias, transposed, memory):
    one = case("swiglu_oai", bias=bias)
    tensors, join = _packed(one, layout, first)
    if transposed:  # as gpt-oss and GPT-2 store them: (inputs, outputs)
        for key in ("up", "down"):
            tensors[key] = tensors[key].detach().t().contiguous().requires_grad_()
    call = dict(tensors)
    if transposed:
        call |= {key: tensors[key].t() for key in ("up", "down")}
    got = feed_forward(**call, activation="swiglu_oai", memory=memory, layout=layout, first=first)
    want = one.torchs()
    assert_close(got.detach(), want.detach(), what="output")
    upstream = torch.randn(want.shape, dtype=torch.float64)
    mine = gradients(got, {k: t for k, t in tensors.items() if t is not None}, upstream)
    theirs = gradients(want, one.leaves(), upstream)
    expected = {"x": theirs["x"], "up": join(theirs["gate"], theirs["up"]), "down": theirs["down"]}
    if bias:
        expected |= {"up_bias": join(theirs["gate_bias"], theirs["up_bias"]), "down_bias": theirs["down_bias"]}
    for key, gradient in expected.items():
        flip = transposed and key in ("up", "down")
        assert_close(mine[key].t() if flip else mine[key], gradient.detach(), what=key)
        assert mine[key].is_contiguous()  # as the stored weight lies, so that nothing copies it again


@pytest.mark.parametrize("name", ["swiglu", "relu"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_shape_and_strides(name, data):
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    sizes = {k: data.draw(st.integers(1, 9)) for k in ("dim", "hidden", "out")}
    one = case(name, shape, **sizes, seed=data.draw(st.integers(0, 99)))
    memory = data.draw(st.sampled_from(MEMORY))
    wider = torch.randn(*shape, 2 * sizes["dim"], dtype=torch.float64)
    x = data.draw(st.sampled_from([
        lambda: wider[..., ::2], lambda: wider[..., : sizes["dim"]].flip(-1),
        lambda: wider.narrow(-1, 0, 1).expand(*shape, sizes["dim"]),
        lambda: wider[..., : sizes["dim"]].movedim(-1, 0).contiguous().movedim(0, -1)]))()
    one.tensors["x"] = x.detach().requires_grad_()
    upstream = data.draw(st.sampled_from([
        lambda y: torch.ones((), dtype=y.dtype).expand(y.shape), lambda y: torch.randn(*y.shape, 2).double()[..., 0],
        lambda y: torch.randn(*reversed(y.shape)).double().permute(*reversed(range(y.ndim)))]))
    want = one.torchs()
    _compare(one, one.ours(memory=memory), want, upstream(want))


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("shape", [(0,), (2, 0), ()])
def test_no_tokens_and_one_token(shape, memory):
    one = case("swiglu", shape)
    got = one.ours(memory=memory)
    assert got.shape == (*shape, 4)
    for key, gradient in gradients(got, one.leaves()).items():
        assert gradient.shape == one.leaves()[key].shape
        assert shape == () or (key == "x" or not gradient.any())


@pytest.mark.parametrize("memory", MEMORY)
def test_an_input_used_twice_and_a_weight_used_twice(memory):
    one = case("swiglu", dim=6, hidden=6, out=6)
    t = one.tensors
    twice = {**t, "gate": t["up"], "down": t["up"].t()}

    def loss(call):
        y = call(t["x"])
        return (call(y) * t["x"]).sum()

    ours = loss(lambda x: feed_forward(**{**twice, "x": x}, activation="swiglu", memory=memory))
    want = loss(lambda x: reference("swiglu", **{**twice, "x": x}))
    leaves = {k: t[k] for k in ("x", "up", "up_bias", "down_bias")}
    for (key, a), b in zip(gradients(ours, leaves).items(), gradients(want, leaves).values(), strict=True):
        assert_close(a, b, what=key)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("name", ["swiglu", "gelu", "relu", "leaky_relu"])
def test_a_second_backward_finds_what_the_first_found(name, memory):
    kept = []

    def pack(t):
        kept.append((t, t.detach().clone()))
        return t

    one = case(name)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = one.ours(memory=memory)
    upstream = torch.randn_like(out)
    before = upstream.clone()
    first, second = (gradients(out, one.leaves(), upstream) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert torch.equal(upstream, before) and all(torch.equal(t, was) for t, was in kept)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("name", ["swiglu", "geglu", "gelu", "relu", "leaky_relu"])
def test_bad_numbers_stay_in_their_rows(name, memory):
    one = case(name, (6,), bias=False)
    upstream = torch.randn(6, 4, dtype=torch.float64)
    clean = one.ours(memory=memory)
    clean_dx = gradients(clean, {"x": one.tensors["x"]}, upstream)["x"]
    with torch.no_grad():
        one.tensors["x"][1], one.tensors["x"][3, 2], one.tensors["x"][4] = float("nan"), float("inf"), -1e300
    out = one.ours(memory=memory)
    dx = gradients(out, {"x": one.tensors["x"]}, upstream)["x"]
    for row in (0, 2, 5):
        assert_close(out[row].detach(), clean[row].detach())
        assert_close(dx[row], clean_dx[row])
    assert bool(torch.isnan(out[1]).all())
    if name not in ("relu", "leaky_relu"):  # a smooth derivative at nan is nan; a step's is anyone's choice
        assert bool(torch.isnan(dx[1]).all())


@pytest.mark.parametrize("memory", MEMORY)
def test_infinities_take_the_activations_limits(memory):
    one = torch.ones(1, 1)
    x = torch.tensor([[float("inf")], [float("-inf")], [float("nan")], [1.0]])
    for name, want in (("silu", [float("inf"), 0.0]), ("relu", [float("inf"), 0.0]), ("gelu", [float("inf"), 0.0]),
                       ("leaky_relu", [float("inf"), float("-inf")]), ("relu6", [6.0, 0.0])):
        x.requires_grad_()
        out = feed_forward(x, None, one, one, activation=name, memory=memory)
        assert out[:2, 0].tolist() == want and torch.isnan(out[2]), name
        (dx,) = torch.autograd.grad(out.sum(), x)
        slopes = {"leaky_relu": [1.0, 0.01], "relu6": [0.0, 0.0]}.get(name, [1.0, 0.0])
        assert dx[:2, 0].tolist() == pytest.approx(slopes), name


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("name", ["relu", "relu6", "hardtanh", "leaky_relu", "identity", "fatrelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_derivative_told_from_the_output_is_the_inputs(name, dtype, memory):
    """Through unit weights: every 16-bit number, the least subnormals of leaky_relu's negative side aside.

    The derivative is that at the product's result. Bfloat16 instructions flush subnormals to zero there
    (docs/feed-forward.md), so the test asks the machine what the product returns.
    """
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(dtype if dtype != torch.float32 else torch.bfloat16).to(dtype).reshape(-1, 1)
    x = x[x.isfinite()].reshape(-1, 1)
    if name == "leaky_relu" and memory != "minimal" and dtype != torch.float16:
        # x times the slope must not vanish: 0.01 x is a number while |x| is over 100 x the least subnormal.
        x = x[(x == 0) | (x.abs() > 2e-38 if dtype == torch.bfloat16 else x.abs() > 1e-42)].reshape(-1, 1)
    one = torch.ones(1, 1, dtype=dtype)
    x = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(feed_forward(x, None, one, one, activation=name, memory=memory).sum(), x)
    seen = torch.nn.functional.linear(x.detach(), one)
    assert not seen[seen != x.detach()].any(), "a product by one changes subnormals to zero, and nothing else"
    want = torch.from_numpy(numeric(get(name), 1)(seen.double().numpy()).copy()).to(dtype)
    # hardtanh's and relu6's bounds and fatrelu's threshold are decided alike in every dtype that holds x exactly.
    assert torch.equal(got, want)


def test_users_own_and_anonymous_definitions():
    nonlin.define("steep_gate", "gate*sigmoid(3*gate)*up")
    one = case("swiglu")
    got = feed_forward(**one.tensors, activation="steep_gate")
    gate, up = (torch.nn.functional.linear(one.tensors["x"], one.tensors[k], one.tensors[f"{k}_bias"])
                for k in ("gate", "up"))
    hidden = gate * torch.sigmoid(3 * gate) * up
    want = torch.nn.functional.linear(hidden, one.tensors["down"], one.tensors["down_bias"])
    _compare(one, got, want)
    again = feed_forward(**one.tensors, activation=get("steep_gate"), memory="minimal")
    assert torch.equal(again, got)


def test_parameters_left_out_are_at_their_start_and_keep_their_precision():
    one = case("prelu", dtype=torch.bfloat16)
    slope = torch.tensor([0.2511], requires_grad=True)
    got = feed_forward(**one.tensors, activation="prelu", parameters={"slope": slope})
    got.float().sum().backward()
    assert slope.grad.dtype == torch.float32 and slope.grad.abs() > 0
    assert torch.equal(feed_forward(**one.tensors, activation="prelu"),
                       feed_forward(**one.tensors, activation="prelu", parameters={"slope": torch.tensor([0.25])}))
    # 0.2511 is no bfloat16 number; rounded to one it would be 0.251 and give other outputs.
    x = torch.tensor([[-1024.0]], dtype=torch.bfloat16)
    one_ = torch.ones(1, 1, dtype=torch.bfloat16)
    for value in (0.2511, 0.25146484375):
        out = feed_forward(x, None, one_, one_, activation="prelu", parameters={"slope": torch.tensor([value])})
        assert float(out) == float(torch.tensor(-1024.0 * value).bfloat16())


def test_wrong_calls_are_explained():
    one = case("swiglu", bias=False, requires_grad=False)
    t = one.tensors
    for change, match in [
        ({"memory": "least"}, "memory must be one of fast, lean, minimal; got 'least'"),
        ({"layout": "packed"}, "layout must be one of separate"), ({"first": "down"}, "first must be one of gate, up"),
        ({"activation": "solu"}, "must be pointwise or gated; got 'solu'"), ({"activation": "swigul"}, "Did you mean"),
        ({"gate": None}, "gate must be given"), ({"activation": "gelu"}, "gate must be None"),
        ({"layout": "concatenated"}, "gate must be None"),
        ({"activation": "gelu", "gate": None, "layout": "interleaved"}, "layout must be separate where gelu has no"),
        ({"gate": t["gate"].t()}, r"gate must have shape \(6, 7\)"), ({"down": t["down"].t()}, "must have shape"),
        ({"down": t["down"][0]}, "x and down must be"), ({"up_bias": torch.zeros(3)}, "up_bias must have shape"),
        ({"x": t["x"].float()}, "one float dtype"), ({"x": t["x"].long()}, "one float dtype"),
        ({"parameters": {"beta": torch.ones(1)}}, "parameters must be among: none"),
    ]:
        with pytest.raises(UserError, match=match):
            feed_forward(**{**t, "activation": "swiglu", **change})
    with pytest.raises(UserError, match="slope must have one element"):
        feed_forward(t["x"], None, t["up"], t["down"], activation="prelu", parameters={"slope": torch.ones(6)})


@pytest.mark.parametrize("name", sorted(n for n in nonlin.names() if get(n).expr is not None and n not in REFERENCE))
def test_the_rest_of_the_catalog_runs_through_the_operation(name):
    one = case(name)
    inputs = [torch.nn.functional.linear(one.tensors["x"], one.tensors[k], one.tensors[f"{k}_bias"])
              for k in (("gate", "up") if get(name).gated else ("up",))]
    hidden = nonlin.functional.activation(name)(*inputs, **one.parameters)
    _compare(one, one.ours(), torch.nn.functional.linear(hidden, one.tensors["down"], one.tensors["down_bias"]))
