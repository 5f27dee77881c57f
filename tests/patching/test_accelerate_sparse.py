"""``nonlin.accelerate(model, sparse=True)`` on transformers' models: equal tokens, stated errors, refusals, undoing."""

import copy
import pickle

import pytest
import torch
import transformers

import nonlin
from nonlin.kernels.cpu import build
from nonlin.patching import sparse
from nonlin.patching.finding import find_blocks
from nonlin.patching.patch import _SPARSE, recipe_of
from tests.patching.families import FAMILIES

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
TEXT = torch.randint(3, 60, (1000,), generator=torch.Generator().manual_seed(3))


def _model(name="llama", zeros=True, **changes):
    """A model whose blocks have about 85 % zeros, by a bias on the gate where they have one."""
    model = FAMILIES[name].build(**({"hidden_act": "relu", "mlp_bias": True} if name == "llama" else {}) | changes)
    with torch.no_grad():
        for block in find_blocks(model):
            first = block.gate or block.up
            first.weight.copy_(torch.randn(first.weight.shape, generator=torch.Generator().manual_seed(1)))
            if zeros and first.bias is not None:
                first.bias.fill_(-4.0)
    return model


def _sparse_blocks(model):
    return [m.__dict__[_SPARSE] for m in model.modules() if _SPARSE in m.__dict__]


def _counting(model, monkeypatch):
    """Count the calls that sparse products served."""
    served = []
    call = sparse.products.Units.__call__
    monkeypatch.setattr(sparse.products.Units, "__call__",
                        lambda self, *a: (out := call(self, *a), served.append(out is not None))[0])
    return served


@pytest.mark.parametrize("name", ["llama", "nemotron", "t5"])
def test_the_same_tokens_are_generated(name, monkeypatch):
    model = _model(name)
    twin = copy.deepcopy(model)
    report = nonlin.accelerate(twin, sparse="always")
    assert all(one.exact and one.tokens == 8 and one.error == 0 and one.skipped > 0.3 for one in report.sparse)
    served = _counting(twin, monkeypatch)
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(5))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(twin.generate(ids, **options), model.generate(ids, **options))
    assert served.count(True) >= 20 and served.count(False) >= 2  # decoding, and the prompt


def test_bfloat16_logits_are_as_close_as_before():
    model = _model()
    truth = copy.deepcopy(model.bfloat16()).double()
    twin = copy.deepcopy(model)
    nonlin.accelerate(twin, sparse="always")
    with torch.no_grad():
        ours, theirs, exact = (m(TEXT[None, :4]).logits.double() for m in (twin, model, truth))
    assert float((ours - exact).norm()) <= 1.05 * float((theirs - exact).norm())


def _rows(model, ids):
    """The inputs and outputs of the blocks of a model on tokens."""
    seen = []
    handles = [b.module.register_forward_hook(lambda _, args, out: seen.append((args[0][0], out[0])))
               for b in find_blocks(model)]
    with torch.no_grad():
        model(ids[None])
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("act", ["gelu", "silu"])
def test_the_stated_error_holds_on_other_tokens(act):
    model = _model(zeros=False, hidden_act=act)
    twin = copy.deepcopy(model)
    report = nonlin.accelerate(twin, sparse="always", calibration=TEXT, error=0.1)
    assert all(0.02 < one.error <= 0.1 and one.skipped > 0.05 and not one.exact for one in report.sparse if one.tokens)
    assert any(one.tokens for one in report.sparse)
    other = torch.randint(3, 60, (256,), generator=torch.Generator().manual_seed(9))
    blocks = dict(twin.named_modules())
    for one, (x, y) in zip(report.sparse, _rows(model, other), strict=True):
        if not one.tokens:
            continue
        with torch.no_grad():
            got = torch.cat([blocks[one.name](x[n:n + 1]) for n in range(len(x))])
            errors = (got - y).norm(dim=-1) / y.norm(dim=-1)
        assert float(errors.mean()) <= 0.1
        assert float(errors.mean()) == pytest.approx(one.error, rel=0.25)  # as reported, and not far below


def test_a_share_is_reached():
    report = nonlin.accelerate(_model(zeros=False, hidden_act="silu"), sparse="always", share=0.4,
                               calibration=[TEXT[:500], TEXT[500:]])
    for one in report.sparse:
        assert one.skipped == pytest.approx(0.4, abs=0.03) and one.error > 0 and one.observed == "your text"
    assert "% of hidden units skipped" in str(report) and "on tokens held out" in str(report)


def test_a_fit_that_does_not_hold_is_refused(monkeypatch):
    monkeypatch.setattr(sparse._Float, "of_error", lambda self, error: self.of_share(0.9))  # the planted fault
    model = _model(zeros=False, hidden_act="silu")
    with pytest.raises(nonlin.UserError, match=r"above the 0\.05 that was asked for"):
        nonlin.accelerate(model, sparse="always", calibration=TEXT, error=0.05)
    assert not any(recipe_of(m) for m in model.modules())


def test_text_is_read_with_a_tokenizer():
    def tokenizer(text):
        return {"input_ids": [ord(c) % 60 for c in text]}

    report = nonlin.accelerate(_model(), sparse="always", calibration=["some text " * 9, "and more " * 9],
                               tokenizer=tokenizer)
    assert all(one.observed == "your text" for one in report.sparse)


def test_a_module_of_ones_own_takes_its_inputs():
    block = nonlin.nn.FeedForward(16, 64, "relu")
    report = nonlin.accelerate(block, sparse="always", calibration=torch.randn(4, 50, 16))
    assert report.sparse[0].observed == "your inputs" and report.sparse[0].tokens == 8
    x = torch.randn(1, 16)
    with torch.no_grad():
        expected = block.down(torch.relu(block.up(x)))
        torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-6)


def _pays(answers):
    def timed(able, count):
        return [answers[count] for _ in able]
    return timed


def test_a_block_is_sparse_as_far_as_it_pays(monkeypatch):
    monkeypatch.setattr(sparse, "timed", _pays({1: 2.0, 2: 1.5, 4: 0.9, 8: 3.0}))
    model = _model()
    report = nonlin.accelerate(model, sparse=True)
    assert [one.tokens for one in report.sparse] == [2, 2] and report.sparse[0].ratios == {1: 2.0, 2: 1.5, 4: 0.9}
    assert [u.tokens for u in _sparse_blocks(model)] == [2, 2]
    assert "sparse up to 2 tokens" in str(report) and "2.00 times as fast" in str(report)


def test_where_it_does_not_pay_blocks_stay_dense(monkeypatch):
    monkeypatch.setattr(sparse, "timed", _pays({1: 0.8}))
    model = _model()
    report = nonlin.accelerate(model, sparse=True)
    assert not _sparse_blocks(model) and "does not pay here" in str(report) and "0.80 times as fast" in str(report)
    assert all(one.tokens == 0 and "0.80" in one.reason for one in report.sparse)
    assert len(report.changed) == 2


def test_timing_takes_both_arms():
    model = _model()
    report = nonlin.accelerate(model, sparse=True)
    assert all(one.ratios[1] > 0 for one in report.sparse)
    assert len(_sparse_blocks(model)) == sum(one.tokens > 0 for one in report.sparse)


@pytest.mark.parametrize(("arguments", "says"), [
    ({"sparse": "sometimes"}, "sparse must be True, False or"),
    ({"calibration": TEXT}, "calibration must come with sparse=True"),
    ({"sparse": True, "share": 0.5}, "share must come with calibration"),
    ({"sparse": True, "calibration": TEXT, "share": 0.5, "error": 0.1}, "not both"),
    ({"sparse": True, "calibration": TEXT, "share": 40}, "between 0 and 1"),
    ({"sparse": True, "calibration": TEXT[:9]}, "at least 32 tokens"),
    ({"sparse": True, "calibration": "a text"}, "tokenizer must be given"),
    ({"sparse": True, "calibration": 7}, "texts or tensors"),
    ({"sparse": True, "calibration": TEXT + 600, "share": 0.5}, "token ids below"),
])
def test_mistakes_are_said_and_change_nothing(arguments, says):
    model = _model(zeros=False, hidden_act="silu")
    with pytest.raises(nonlin.UserError, match=says):
        nonlin.accelerate(model, **arguments)
    assert not any(recipe_of(m) for m in model.modules())


def test_without_zeros_or_an_error_it_is_refused():
    model = _model(hidden_act="silu")
    with pytest.raises(nonlin.UserError, match="swiglu is zero on no set"):
        nonlin.accelerate(model, sparse=True)
    assert not any(recipe_of(m) for m in model.modules())


def test_without_a_compiler_it_is_refused(monkeypatch):
    sparse.products.library.cache_clear()
    try:
        monkeypatch.setattr(build, "compiler", lambda: None)
        with pytest.raises(nonlin.UserError, match=r"no C\+\+ compiler"):
            nonlin.accelerate(_model(), sparse="always")
    finally:
        monkeypatch.undo()
        sparse.products.library.cache_clear()


def test_restore_leaves_nothing_behind():
    model = _model()
    ids = TEXT[None, :3]
    with torch.no_grad():
        before = model(ids).logits
    contents = [sorted(m.__dict__) for m in model.modules()]
    names = list(model.state_dict())
    nonlin.accelerate(model, sparse="always")
    assert list(model.state_dict()) == names and len(_sparse_blocks(model)) == 2
    nonlin.restore(model)
    assert [sorted(m.__dict__) for m in model.modules()] == contents
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)


def test_saving_copying_and_pickling(tmp_path):
    model = _model()
    nonlin.accelerate(model, sparse="always")
    ids = TEXT[None, :3]
    with torch.no_grad():
        expected = model(ids).logits
        model.save_pretrained(tmp_path)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        assert all(torch.equal(loaded.state_dict()[n], v) for n, v in model.state_dict().items())
        size = len(pickle.dumps(model))
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert len(_sparse_blocks(twin)) == 2 and all(u.copied_bytes == 0 for u in _sparse_blocks(twin))
            assert torch.equal(twin(ids).logits, expected)
    nonlin.restore(model)
    nonlin.accelerate(model)
    assert size - len(pickle.dumps(model)) < 2000  # no second copy of a weight


def test_training_is_dense_and_its_steps_are_seen(monkeypatch):
    model = _model()
    nonlin.accelerate(model, sparse="always")
    served = _counting(model, monkeypatch)
    model(TEXT[None, :4]).logits.square().sum().backward()
    assert served == [False, False]
    grads = [b.down.weight.grad for b in find_blocks(model)]
    assert all(g is not None and g.any() for g in grads)
    torch.optim.SGD(model.parameters(), 0.01).step()
    with torch.no_grad():
        got = model(TEXT[None, :4]).logits
        assert served[2:] == [True, True]
        nonlin.restore(model)
        torch.testing.assert_close(got, model(TEXT[None, :4]).logits, rtol=1e-4, atol=1e-4)


def test_compiled_it_is_dense_without_a_graph_break(monkeypatch):
    model = _model(num_hidden_layers=1)
    nonlin.accelerate(model, sparse="always")
    served = _counting(model, monkeypatch)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        got = compiled(TEXT[None, :4], use_cache=False).logits
        assert served == []
        torch.testing.assert_close(got, model(TEXT[None, :4]).logits, rtol=1e-4, atol=1e-4)


def test_another_activation_ends_it():
    model = _model()
    nonlin.accelerate(model, sparse="always")
    with pytest.warns(UserWarning):
        nonlin.swap(model, "gelu")
    assert not _sparse_blocks(model)


def test_a_hook_on_a_projection_fires():
    model = _model()
    nonlin.accelerate(model, sparse="always")
    seen = []
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        model(TEXT[None, :2])
    assert seen == [1]


def test_a_fault_of_the_users_run_is_the_users():
    """These blocks are proved without it: it runs to observe, and its fault is no reason for random numbers."""
    def run():
        raise RuntimeError("this model is asleep")

    with pytest.raises(RuntimeError, match="asleep"):
        nonlin.accelerate(_model(), run=run, sparse="always")
