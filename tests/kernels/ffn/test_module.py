"""The module around the operation: names and state, layers replaced or hooked, other people's weights, processes."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from nonlin.errors import UserError
from nonlin.kernels import feed_forward
from nonlin.nn import Activation, FeedForward
from tests import two_ranks
from tests.kernels.ffn.blocks import assert_close, reference


def _textbook(block, x):
    def weights(name):
        return [getattr(getattr(block, k), name) if getattr(block, k) is not None else None
                for k in ("gate", "up", "down")]

    return reference(block.activation.definition.name, x, *weights("weight"), *weights("bias"),
                     parameters=tuple(block.activation.parameters()))


def test_names_and_state_are_what_they_were():
    keys = [f"{layer}.{kind}" for layer in ("gate", "up", "down") for kind in ("weight", "bias")]
    assert list(FeedForward(4, 8, "swiglu", bias=True).state_dict()) == keys
    assert list(FeedForward(4, 8, "prelu").state_dict()) == ["activation.slope", "up.weight", "down.weight"]
    assert FeedForward(4, 8, "gelu").gate is None and isinstance(FeedForward(4, 8).up, nn.Linear)
    assert FeedForward(4, 8).memory == "lean" and "memory=minimal" in repr(FeedForward(4, 8, memory="minimal"))
    with pytest.raises(UserError, match="memory must be one of fast, lean, minimal; got 'small'"):
        FeedForward(4, memory="small")


class _LoRA(nn.Module):
    """As peft's: a frozen layer and a low-rank addition."""

    def __init__(self, base):
        super().__init__()
        self.base, self.a, self.b = base, nn.Linear(base.in_features, 2, False), nn.Linear(2, base.out_features, False)

    @property
    def weight(self):  # peft's has one too: whoever reads it loses the addition
        return self.base.weight

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


@pytest.mark.parametrize("layer", ["gate", "up", "down"])
def test_a_replaced_layer_is_honoured(layer):
    block, x = FeedForward(6, 8, "swiglu").double(), torch.randn(3, 6, dtype=torch.float64)
    for parameter in block.parameters():
        parameter.requires_grad_(False)
    before = block(x)
    lora = _LoRA(getattr(block, layer)).double()
    setattr(block, layer, lora)
    assert block.explain().reason == f"{layer} is a _LoRA" and "its modules" in str(block.explain())
    merged = FeedForward(6, 8, "swiglu").double()
    for name in ("gate", "up", "down"):
        part = getattr(block, name)
        weight = part.weight + (lora.b.weight @ lora.a.weight if name == layer else 0)
        getattr(merged, name).weight = nn.Parameter(weight.detach())
    assert_close(block(x).detach(), _textbook(merged, x).detach())
    assert not torch.allclose(block(x), before)
    block(x).sum().backward()
    assert lora.b.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("layer", ["gate", "up", "down", "activation"])
def test_hooks_are_called_and_their_changes_kept(layer):
    block, x = FeedForward(6, 8, "swiglu").double(), torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    plain = block(x)
    part, seen = getattr(block, layer), []
    hooks = [part.register_forward_hook(lambda m, i, o: seen.append("forward") or 2 * o),
             part.register_full_backward_hook(lambda m, gi, go: seen.append("backward"))]
    changed = block(x)
    changed.sum().backward()
    assert seen == ["forward", "backward"] and not torch.allclose(changed, plain)
    assert block.explain().reason == f"{layer} has hooks"
    for hook in hooks:
        hook.remove()
    assert torch.equal(block(x), plain) and "one operation" in str(block.explain())
    hook = part.register_forward_pre_hook(lambda m, i: seen.append("before"))
    block(x)
    hook.remove()
    with nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(type(m).__name__)):
        block(x)
        assert "all modules" in str(block.explain())
    assert seen[2] == "before" and seen.count("Linear") == 3


def test_parametrized_patched_and_wrapped_layers_are_honoured():
    x = torch.randn(3, 6, dtype=torch.float64)
    block = FeedForward(6, 8, "swiglu").double()
    nn.utils.parametrizations.weight_norm(block.up)
    with torch.no_grad():
        block.up.parametrizations.weight.original0.mul_(3)
    assert "up is a Parametrized" in str(block.explain())
    assert_close(block(x).detach(), _textbook(block, x).detach())
    block = FeedForward(6, 8, "swiglu").double()
    old = block.down.forward
    block.down.forward = lambda x: old(x) + 1  # as accelerate does
    assert block.explain().reason == "down has a forward of its own"
    assert_close(block(x).detach(), _textbook(block, x).detach() + 1)


class _Doubled(torch.Tensor):
    """A weight whose product is twice what its numbers say, by overriding ``F.linear`` as quantized tensors do."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, *bias = (t.as_subclass(torch.Tensor) if isinstance(t, torch.Tensor) else t for t in args)
            return F.linear(x, 2 * weight, *bias)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_tensor_subclass_is_called_not_read():
    block, x = FeedForward(6, 8, "swiglu").double().requires_grad_(False), torch.randn(3, 6, dtype=torch.float64)
    plain = block(x)
    block.down.weight = nn.Parameter(block.down.weight.detach().as_subclass(_Doubled), requires_grad=False)
    assert_close(block(x), 2 * plain)
    assert block.explain().reason == "down keeps its weight as a _Doubled"


def test_a_sparse_weight_is_called():
    block, x = FeedForward(6, 8, "swiglu").double(), torch.randn(3, 6, dtype=torch.float64)
    want = block(x).detach()
    block.up.weight = nn.Parameter(block.up.weight.detach().to_sparse_csr())
    assert block.explain().reason == "up keeps its weight sparse"
    assert_close(block(x).detach(), want)


def test_a_patched_class_or_function_is_called(monkeypatch):
    block, x = FeedForward(6, 8, "swiglu").double().requires_grad_(False), torch.randn(3, 6, dtype=torch.float64)
    plain, forward, linear = block(x), nn.Linear.forward, F.linear
    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", lambda self, x: forward(self, x) + (self is block.down))
        assert_close(block(x), plain + 1)
        assert "forward of its own" in block.explain().reason
    with monkeypatch.context() as patch:
        patch.setattr(F, "linear", lambda x, w, b=None: linear(x, w, b) + (w is block.down.weight))
        assert_close(block(x), plain + 1)
    for cls in (nn.Linear, nn.Module):
        with monkeypatch.context() as patch:
            patch.setattr(cls, "__call__", lambda self, *x, call=cls.__call__: call(self, *x) + (self is block.down))
            assert_close(block.forward(x), plain + 1)
    assert torch.equal(block(x), plain)


class _TwiceDown(TorchFunctionMode):
    """Doubles the down projection by overriding ``F.linear``, as modes that simulate quantization do."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return 2 * out if func is F.linear and args[1] is self.weight else out


def test_a_mode_that_overrides_torchs_functions_is_heard():
    block, x = FeedForward(6, 8, "swiglu").double(), torch.randn(3, 6, dtype=torch.float64)
    plain = block(x).detach()
    with _TwiceDown(block.down.weight):
        assert_close(block(x).detach(), 2 * plain)
        assert block.explain().reason == "_TwiceDown may override torch's functions"
    with torch.device("cpu"):  # this one overrides none of them
        assert "one operation" in str(block.explain())


def test_quantized_layers_are_honoured():
    block, x = FeedForward(16, 32, "swiglu"), torch.randn(3, 16)
    want = block(x)
    quantized = torch.ao.quantization.quantize_dynamic(block, {nn.Linear}, dtype=torch.qint8)
    got = quantized(x)
    assert "gate is a Linear" in str(quantized.explain())
    assert float((got - want).abs().max() / want.abs().max()) < 0.1 and not torch.equal(got, want)


def test_the_operation_and_the_modules_agree_for_every_kind():
    for name in ("swiglu", "gelu", "xielu", "leaky_relu"):
        block, x = FeedForward(6, 8, name, bias=True).double(), torch.randn(3, 6, dtype=torch.float64)
        got = block(x)
        with nn.modules.module.register_module_forward_hook(lambda m, i, o: None):
            assert_close(block(x).detach(), got.detach(), what=name)


def test_training_steps_are_those_of_torchs_own_block():
    block = FeedForward(6, 8, "swiglu", bias=True).double()
    twin = nn.ModuleDict({k: nn.Linear(*s, dtype=torch.float64) for k, s in
                          (("gate", (6, 8)), ("up", (6, 8)), ("down", (8, 6)))})
    twin.load_state_dict(block.state_dict())
    optimizers = [torch.optim.AdamW(m.parameters(), 1e-2) for m in (block, twin)]
    for _ in range(5):
        x = torch.randn(4, 6, dtype=torch.float64)
        block(x).square().mean().backward()
        twin["down"](F.silu(twin["gate"](x)) * twin["up"](x)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for mine, theirs in zip(block.parameters(), twin.parameters(), strict=True):
        assert_close(mine.detach(), theirs.detach(), terms=10**6)  # Adam divides by small numbers


def _same_step(module, call, x):
    """Compare output and every gradient of a Hugging Face block with ``call``'s, from the same weights."""
    upstream = torch.randn(*x.shape[:-1], x.shape[-1], dtype=x.dtype)
    leaves = [x, *module.parameters()]
    want = module(x)
    theirs = torch.autograd.grad(want, leaves, upstream)
    got = call(x)
    mine = torch.autograd.grad(got, leaves, upstream)
    assert_close(got.detach(), want.detach())
    for a, b, name in zip(mine, theirs, ["x", *(n for n, _ in module.named_parameters())], strict=True):
        assert_close(a, b, what=name)


def test_the_weights_of_hugging_face_blocks_serve_where_they_lie():
    transformers = pytest.importorskip("transformers")
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
    from transformers.models.llama.modeling_llama import LlamaMLP
    from transformers.models.phi3.modeling_phi3 import Phi3MLP

    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 2}
    llama = LlamaMLP(transformers.LlamaConfig(**sizes)).double()
    _same_step(llama, lambda x: feed_forward(
        x, llama.gate_proj.weight, llama.up_proj.weight, llama.down_proj.weight, activation="swiglu"), x)
    phi = Phi3MLP(transformers.Phi3Config(**sizes, pad_token_id=0)).double()
    _same_step(phi, lambda x: feed_forward(
        x, None, phi.gate_up_proj.weight, phi.down_proj.weight, activation="swiglu", layout="concatenated"), x)
    gpt2 = GPT2MLP(12, transformers.GPT2Config(n_embd=8, n_head=2, resid_pdrop=0.0)).double()
    _same_step(gpt2, lambda x: feed_forward(
        x, None, gpt2.c_fc.weight.t(), gpt2.c_proj.weight.t(), up_bias=gpt2.c_fc.bias, down_bias=gpt2.c_proj.bias,
        activation="gelu_tanh"), x)


def test_an_expert_of_gpt_oss():
    transformers = pytest.importorskip("transformers")
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    experts = GptOssExperts(transformers.GptOssConfig(
        hidden_size=8, intermediate_size=12, num_local_experts=2, num_experts_per_tok=1)).double()
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(5, 8, dtype=torch.float64)
    got = feed_forward(x, None, experts.gate_up_proj[1].t(), experts.down_proj[1].t(),
                       up_bias=experts.gate_up_proj_bias[1], down_bias=experts.down_proj_bias[1],
                       activation="swiglu_oai", layout="interleaved")
    want = experts._apply_gate(x @ experts.gate_up_proj[1] + experts.gate_up_proj_bias[1])
    want = want @ experts.down_proj[1] + experts.down_proj_bias[1]
    # Theirs is float64 throughout but for the constant 1.702, which is the same number.
    assert_close(got.detach(), want.detach())


def test_two_processes_under_ddp_and_fsdp2(tmp_path):
    two_ranks.run(Path(__file__).with_name("distributed_worker.py"), tmp_path)


@pytest.mark.parametrize("activation", ["swiglu", "gelu", "solu", "polynorm"])
def test_an_input_that_does_not_fit_is_one_error_whatever_the_activation(activation):
    block = FeedForward(4, 8, activation)
    x = torch.randn(2, 4)
    for wrong in (x.double(), x.half(), x.long(), x > 0, x.to(torch.complex64), x.to(torch.float8_e5m2), x.to("meta")):
        with pytest.raises(UserError, match="tensors must share one device and one float dtype"):
            block(wrong)
    for wrong, must in ((torch.ones(2, 3), "up must have shape|gate must have shape"), ([1.0], "x must be a tensor"),
                        (torch.tensor(1.0), r"x and down must be"), (None, "x must be a tensor"),
                        (x.to_sparse(), "x must be dense")):
        with pytest.raises(UserError, match=must):
            block(wrong)
    with pytest.raises(UserError, match="tensors must share"):  # torch's linear layer returns memory that is not set
        FeedForward(4, 8, activation, device="meta")(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(x).dtype == torch.bfloat16
    block.up.double()
    with pytest.raises(UserError, match="tensors must share"):
        block(x)


@pytest.mark.parametrize("activation", ["swiglu", "gelu", "prelu", "solu"])
def test_one_row_without_others_is_differentiated_in_every_way(activation):
    block = FeedForward(4, 8, activation, bias=True)
    x, tangent = torch.randn(4), torch.randn(4)
    weights = dict(block.named_parameters())

    def call(weights, x):
        return torch.func.functional_call(block, weights, (x,))

    def rows(weights, x):
        return call(weights, x.unsqueeze(0)).squeeze(0)

    directions = {name: torch.randn_like(w) for name, w in weights.items()}
    value, wanted = torch.func.jvp(rows, (weights, x), (directions, tangent))
    for made in (torch.func.jvp(call, (weights, x), (directions, tangent)),
                 (lambda out, line: (out, line(directions, tangent)))(*torch.func.linearize(call, weights, x))):
        torch.testing.assert_close(made, (value, wanted), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.func.jacfwd(block)(x), torch.func.jacrev(block)(x), rtol=1e-5, atol=1e-6)
    _, line = torch.func.linearize(block, x)
    torch.testing.assert_close(line(tangent), torch.func.jvp(block, (x,), (tangent,))[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arguments", [
    {"dim": "4"}, {"dim": 1.5}, {"dim": 10**30}, {"dim": True}, {"dim": None}, {"hidden": 2.5}, {"hidden": 0},
    {"hidden": 10**12}, {"dtype": "float32"}, {"dtype": torch.int64}, {"dtype": torch.complex64},
    {"dtype": torch.float8_e5m2}])
def test_what_makes_no_block_is_one_error(arguments):
    name, = arguments
    with pytest.raises(UserError, match=rf"^FeedForward: {name} must be"):
        FeedForward(**{"dim": 4} | arguments)
    if name == "dtype":
        with pytest.raises(UserError, match=r"^Activation: dtype must be"):
            Activation("prelu", **arguments)


@pytest.mark.parametrize("other", [nn.GELU(), nn.PReLU(), nn.Tanh()])
def test_another_module_in_the_activations_place_is_called(other):
    block = FeedForward(4, 8, "silu")
    block.activation = other
    x = torch.randn(2, 4)
    wanted = block.down(other(block.up(x)))
    assert torch.equal(block(x), wanted) and type(other).__name__ in str(block.explain())
    with torch.no_grad():
        assert torch.equal(block(x), wanted)
