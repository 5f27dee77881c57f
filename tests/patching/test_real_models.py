"""SmolLM2-135M and MiniLM-L6, accelerated: the same text, the same embeddings, within bf16's noise."""

import copy
import math

import pytest
import torch

import nonlin
from nonlin.patching.patch import recipe_of
from tests.patching import real

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
# How far the logarithm of one text's error, accelerated over untouched, scatters about its mean (docs/decisions/0050).
SCATTER = 0.24
TEXTS = ["The capital of France is", "def add(a, b):\n    return", "Water boils at a temperature of"]


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("gguf", reason="gguf is not installed")
    pytest.importorskip("accelerate", reason="accelerate (Hugging Face) is not installed")
    return nonlin.patching.load(real.smollm2())


@pytest.fixture(scope="module")
def minilm():
    return nonlin.patching.load(real.minilm())


@pytest.fixture
def restored():
    """Whatever a test accelerates is restored after it."""
    models = []
    yield models.append
    for model in models:
        nonlin.restore(model)


def _distance(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def _generate(loaded, prompt):
    text = loaded.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                                add_generation_prompt=True)
    ids = loaded.tokenizer(text, return_tensors="pt")
    out = loaded.model.generate(**ids, max_new_tokens=16, do_sample=False, pad_token_id=0)
    return loaded.tokenizer.decode(out[0, ids["input_ids"].shape[1]:])


def test_smollm2_generates_the_same_text(smollm2, restored):
    prompt = "What is the capital of France?"
    before = _generate(smollm2, prompt)
    assert "Paris" in before
    report = nonlin.accelerate(smollm2.model)
    restored(smollm2.model)
    assert len(report.changed) == 30 and not report.left_alone
    assert {c.activation for c in report.changed} == {"swiglu"}
    assert _generate(smollm2, prompt) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_smollm2_logits_and_gradients(smollm2, restored, dtype):
    """float32 within its rounding; bfloat16 no further from float32 than the untouched model is.

    Thirty layers turn a rounding into an error of another size for every text, so that over n texts a ratio of 1 is
    seen as up to exp(3 SCATTER / sqrt(n)). What the roundings are is judged block by block, below.
    """
    bound = math.exp(3 * SCATTER / math.sqrt(len(TEXTS)))
    model, texts = smollm2.model, [smollm2.tokenizer(t, return_tensors="pt")["input_ids"] for t in TEXTS]
    names = [f"model.layers.{i}.mlp.{p}_proj.weight" for i in (0, 15, 29) for p in ("gate", "up", "down")]

    def run():
        """The texts' logits, and some of their gradients."""
        logits, grads = [], []
        for ids in texts:
            model.zero_grad(set_to_none=True)
            out = model(ids, labels=ids)
            out.loss.backward()
            logits.append(out.logits.detach().float().flatten())
            grads += [model.get_parameter(n).grad.float().flatten() for n in names]
        return torch.cat(logits), torch.cat([g / g.norm() for g in grads])

    truth = run()
    model.to(dtype)
    try:
        before = run()
        nonlin.accelerate(model)
        restored(model)
        after = run()
    finally:
        nonlin.restore(model)
        model.to(torch.float32)
        model.zero_grad(set_to_none=True)
    for exact, theirs, ours in zip(truth, before, after, strict=True):
        if dtype == torch.float32:
            assert _distance(ours, theirs) < 2e-5
        else:
            assert _distance(ours, exact) < bound * _distance(theirs, exact)


def test_smollm2_in_bfloat16_block_by_block(smollm2):
    """A block rounds five times untouched (gate, up, silu, product, output), and four times where the last but one is
    not in between: its errors are sqrt(4/5) of the untouched block's."""
    model, seen = smollm2.model, {}
    handles = [layer.mlp.register_forward_pre_hook(lambda _, args, i=i: seen.__setitem__(i, args[0].detach()))
               for i, layer in enumerate(model.model.layers)]
    with torch.no_grad():
        model(smollm2.tokenizer(" ".join(TEXTS), return_tensors="pt")["input_ids"])
    for handle in handles:
        handle.remove()
    squares = torch.zeros(2, dtype=torch.float64)
    for i, layer in enumerate(model.model.layers):
        block, x = copy.deepcopy(layer.mlp).bfloat16(), seen[i].bfloat16()
        with torch.no_grad():
            exact = copy.deepcopy(block).double()(x.double())
            theirs = block(x)
            nonlin.accelerate(block)
            ours = block(x)
        squares += torch.tensor([_distance(ours, exact), _distance(theirs, exact)]) ** 2
    ratio = float((squares[0] / squares[1]).sqrt())
    assert ratio == pytest.approx(math.sqrt(4 / 5), abs=0.04)  # one rounding more or less is a tenth


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_minilm_gives_the_same_embeddings(minilm, restored, dtype):
    batch = minilm.tokenizer(TEXTS, return_tensors="pt", padding=True)

    def embed():
        with torch.no_grad():
            hidden = minilm.model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    truth = embed()
    minilm.model.to(dtype)
    try:
        before = embed()
        report = nonlin.accelerate(minilm.model)
        restored(minilm.model)
        assert len(report.changed) == 6 and {c.activation for c in report.changed} == {"gelu"}
        after = embed()
    finally:
        nonlin.restore(minilm.model)
        minilm.model.to(torch.float32)
    noise = 2e-6 if dtype == torch.float32 else 1.3 * float((before - truth).norm())
    assert float((after - (before if dtype == torch.float32 else truth)).norm()) < noise
    similar = before @ before.T - after @ after.T
    assert float(similar.abs().max()) < (1e-6 if dtype == torch.float32 else 1e-2)


def test_swapping_smollm2_measures_what_it_costs(smollm2, restored):
    text = " ".join(["The quick brown fox jumps over the lazy dog.", *TEXTS])
    with pytest.warns(UserWarning, match="nats per token before"):
        report = nonlin.swap(smollm2.model, "relu", text=text, tokenizer=smollm2.tokenizer)
    restored(smollm2.model)
    assert report.loss_nats_before + 2 < report.loss_nats_after
    assert smollm2.model.config.hidden_act == "relu"
    nonlin.restore(smollm2.model)
    assert smollm2.model.config.hidden_act == "silu" and not any(recipe_of(m) for m in smollm2.model.modules())
