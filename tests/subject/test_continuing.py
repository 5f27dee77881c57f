"""Tokens one after another: as by a model that keeps nothing, and each read once where it keeps keys and values."""

import pytest
import torch

from nonlin.functions import get
from nonlin.subject.continuing import Continuing
from nonlin.subject.model import OwnModel

transformers = pytest.importorskip("transformers")
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 64}


def _model(name, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options)
    inner = getattr(transformers, f"{name}ForCausalLM" if name != "GPT2" else "GPT2LMHeadModel")(config).eval()
    return OwnModel(inner, {"use_cache": True}, get("gelu"), (), (), 16)


def _llama(**own):
    model = _model("Llama", **SIZES)
    return OwnModel(model.inner, {"use_cache": True} | own, get("gelu"), (), (), 16)


MODELS = {
    "llama": _llama,
    "gpt2": lambda: _model("GPT2", vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "mistral, a sliding window": lambda: _model("Mistral", sliding_window=4, **SIZES),
    "mamba, which keeps states of its own": lambda: _model("Mamba", vocab_size=50, hidden_size=16, num_hidden_layers=2,
                                                           state_size=4),
    "llama, documents": lambda: _llama(packing={"rule": "documents", "end": 0}),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_all_tokens_of_the_context(name):
    model, read = MODELS[name](), []
    model.inner.register_forward_pre_hook(lambda _, args: read.append(args[0].shape[1]))
    tokens = torch.randint(50, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    continuing = Continuing(model, 16)
    for count in range(3, 17):
        torch.testing.assert_close(continuing.logits(tokens[:count]), model(torch.tensor([tokens[:count]]))[0, -1],
                                   rtol=1e-3, atol=1e-4)
    for count in range(17, 41):
        found = continuing.logits(tokens[:count])
        starts = range(max(0, count - 16), count - 7)  # the newer half of the context, or more
        near = [(found - model(torch.tensor([tokens[start:count]]))[0, -1]).abs().max() for start in starts]
        assert min(near) < 1e-3
    assert (1 in read) is ("mamba" not in name)


@torch.no_grad()
def test_each_token_is_read_once():
    model, read = _llama(), []
    model.inner.register_forward_pre_hook(lambda _, args: read.append(args[0].shape[1]))
    continuing = Continuing(model, 16)
    for count in range(5, 26):
        continuing.logits(list(range(count)))
    assert read == [5, 1, 6] + [1] * 10 + [8] + [1] * 8  # the second call is proven by all of its tokens


@torch.no_grad()
@pytest.mark.parametrize("fault", ["wrong", "raises", "none"])
def test_what_keeps_badly_keeps_nothing(fault):
    model = _llama()
    forward = model.inner.forward

    def broken(*args, past_key_values=None, **rest):
        out = forward(*args, past_key_values=past_key_values, **rest)
        if past_key_values is not None and fault == "wrong":
            out.logits = out.logits + 1
        if past_key_values is not None and fault == "raises":
            raise RuntimeError("lost")
        if fault == "none":
            out.past_key_values = None
        return out

    model.inner.forward = broken
    continuing = Continuing(model, 16)
    for count in range(3, 9):
        want = model(torch.tensor([list(range(count))]))[0, -1]
        torch.testing.assert_close(continuing.logits(list(range(count))), want)
    assert not continuing.keeps
