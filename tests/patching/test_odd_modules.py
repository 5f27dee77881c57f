"""What people may hand over: odd modules, weights, arguments. Equal where accepted, one clear line where not."""

import copy
import json
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import nonlin
from nonlin import health
from nonlin.errors import UserError
from nonlin.health import alternatives
from nonlin.patching import describe_blocks, find_blocks, identify_all, load
from nonlin.patching.anew import same_function
from nonlin.patching.patch import recipe_of
from tests.patching.families import FAMILIES

pytest.importorskip("transformers", reason="transformers is not installed")


class Gated(nn.Module):
    """A gated block whose activation is a function or a module."""

    def __init__(self, hidden=40, act=F.silu):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up, self.down = nn.Linear(16, hidden), nn.Linear(16, hidden), nn.Linear(hidden, 16)
        self.act = act

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))


def tied():
    block = Gated()
    block.up.weight = block.gate.weight
    return block


def without_a_bias():
    block = Gated()
    block.up.bias = None
    return block


def hooked():
    block = Gated()
    block.up.register_forward_hook(lambda module, args, out: out * 2)
    return block


def pruned():
    block = Gated()
    prune.random_unstructured(block.up, "weight", 0.5)
    return block


def normed():
    block = Gated()
    parametrizations.weight_norm(block.up)
    return block


def used_twice():
    block = Gated()
    return nn.Sequential(block, block)


def plain(*between):
    return nn.Sequential(nn.Linear(16, 32), *between, nn.Linear(32, 16))


ODD = {"tied": tied, "no bias on one": without_a_bias, "hooked": hooked, "pruned": pruned, "weight norm": normed,
       "used twice": used_twice, "one unit": lambda: Gated(1), "square": lambda: Gated(16),
       "nested": lambda: nn.Sequential(nn.Sequential(Gated(), nn.Sequential(Gated())), nn.Identity()),
       "frozen": lambda: Gated().requires_grad_(False),
       "dropout between": lambda: plain(nn.GELU(), nn.Dropout(0.1)).eval(),
       "norm before": lambda: nn.Sequential(nn.LayerNorm(16), *plain(nn.GELU())),
       "zero weights": lambda: nn.Sequential(Gated(), Gated())}


@pytest.mark.parametrize("name", ODD)
def test_what_is_changed_is_equal_and_comes_back(name):
    model = ODD[name]()
    if name == "zero weights":
        with torch.no_grad():
            for p in model[1].parameters():
                p.zero_()
    x = torch.randn(2, 3, 16, requires_grad=True)

    def run():
        model.zero_grad()
        x.grad = None
        out = model(x)
        out.square().sum().backward()
        return [out.detach(), x.grad.clone(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    before, classes = run(), [type(m) for m in model.modules()]
    try:
        report = nonlin.accelerate(model)
    except UserError as error:
        assert "the model is as it was. 1 × " in str(error) and "\\n" not in str(error)
        assert [type(m) for m in model.modules()] == classes
    else:
        assert report.changed and any(recipe_of(m) is not None for m in model.modules())
    for after in (run(), (nonlin.restore(model), run())[1]):
        assert len(after) == len(before)
        for got, want in zip(after, before, strict=True):
            torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5 * float(want.abs().max()) + 1e-9)
    assert [type(m) for m in model.modules()] == classes


def written_into(gate, up):
    """silu(gate) * up, in the memory of both products."""
    return up.mul_(F.silu(gate, inplace=True))


class Pair(nn.Module):
    """A block whose activation is a function of its one product, or of both."""

    def __init__(self, function, gated=False):
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(16, 40) if gated else None
        self.up, self.down, self.function = nn.Linear(16, 40), nn.Linear(40, 16), function

    def forward(self, x):
        gate = () if self.gate is None else (self.gate(input=x),)
        return self.down(input=self.function(*gate, self.up(input=x)))


#: Activations that write into their input, and calls that name their argument.
IN_PLACE = {"relu": (lambda: Pair(F.relu_), "relu"), "module": (lambda: Pair(nn.ReLU(inplace=True)), "relu"),
            "silu": (lambda: Pair(nn.SiLU(inplace=True)), "silu"), "named": (lambda: Pair(F.gelu), "gelu"),
            "hardswish": (lambda: Pair(nn.Hardswish(inplace=True)), "hardswish"),
            "gated": (lambda: Pair(written_into, gated=True), "swiglu")}


@pytest.mark.parametrize("name", IN_PLACE)
def test_an_activation_that_writes_into_its_input_is_read_as_any_other(name):
    make, activation = IN_PLACE[name]
    model, x = make(), torch.randn(64, 16)
    with torch.no_grad():
        (model.up if model.gate is None else model.gate).bias[3] = -1000  # this unit is dead
    for _ in range(2):  # what is kept between calls is not written into
        assert [b.activation for b in describe_blocks(model)] == [activation]
        assert describe_blocks(nn.Sequential(*plain(nn.SiLU())))[0].activation == "silu"
    want = model(x)
    with health.watch(model) as watched:
        model(x)
    block, first = watched.record()["blocks"][0], model.up if model.gate is None else model.gate
    assert block["activation"]["computed"] == activation and block["dead"]["units"] == [3]
    seen = block["streams"]["up" if model.gate is None else "gate"]
    assert seen["rms"] == pytest.approx(float(first(x).square().mean().sqrt()), rel=1e-5)
    assert nonlin.accelerate(model).changed[0].activation == activation
    torch.testing.assert_close(model(x), want)


def test_other_activations_are_tried_on_what_the_projections_gave():
    found = []
    for act in (nn.ReLU(), nn.ReLU(inplace=True)):
        model, ids = FAMILIES["nemotron"].build(), torch.randint(3, 60, (2, 16), generator=torch.manual_seed(0))
        for layer in model.model.layers:
            layer.mlp.act_fn = act
        answers = identify_all(model, find_blocks(model))
        found.append(alternatives.compare(model, answers, ids))
    assert found[0] == found[1] and found[0]["activation"] == "relu"


def test_functions_that_write_into_their_input_are_compared():
    assert not same_function(nn.ReLU(inplace=True), nn.Identity())
    assert not same_function(nn.Identity(), nn.ReLU(inplace=True)) and same_function(F.relu_, F.relu)


class Apart(nn.Linear):
    """A linear layer that returns its bias beside its product, as tensor-parallel ones do."""

    def forward(self, x):
        return F.linear(x, self.weight), self.bias


class Packs(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = Apart(16, 40), Apart(40, 16)

    def forward(self, x):
        hidden, bias = self.up(x)
        out, last = self.down(F.gelu(hidden + bias))
        return out + last


def test_watching_projections_that_return_more_than_a_product_stops_no_training():
    model = Packs()
    with health.watch(model, gradients=True) as watched:
        model(torch.randn(4, 16)).sum().backward()
    with pytest.raises(UserError, match="has not run"):
        watched.findings()


def damaged(number):
    block = Gated()
    with torch.no_grad():
        block.up.weight[0, 0] = number
    return block


@pytest.mark.parametrize("make", [
    lambda: damaged(float("nan")), lambda: damaged(float("inf")), lambda: Gated().to("meta"),
    lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(Gated())),
    lambda: nn.TransformerEncoderLayer(16, 2, 40),
    lambda: torch.jit.script(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)))],
    ids=["nan", "inf", "meta", "quantized", "inside its layer", "scripted"])
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_proved_is_refused(make, request):
    model, case = make(), request.node.callspec.id
    with pytest.raises(UserError, match="accelerate: ") as refused:
        nonlin.accelerate(model)
    if case in ("nan", "inf"):
        assert "its weights hold infinite numbers or nan" in str(refused.value)
    assert not any(recipe_of(m) for m in model.modules())


@pytest.mark.parametrize("call", [nonlin.accelerate, nonlin.restore, lambda m: nonlin.swap(m, "relu"), health.watch],
                         ids=["accelerate", "restore", "swap", "watch"])
def test_what_is_no_module(call):
    with pytest.raises(UserError, match="must be a torch module; got 'model'"):
        call("model")


def test_check_of_what_is_no_model():
    with pytest.raises(UserError, match="must be a path or a torch module; got None"):
        health.check(None)


@pytest.mark.parametrize(("text", "word"), [
    (torch.tensor([1]), "at least two tokens"), (torch.tensor([1, 2, 99999]), "token ids below 64"),
    (torch.tensor([1.0, 2.0]), "whole numbers")])
def test_swap_names_what_is_wrong_with_its_text(text, word):
    model = FAMILIES["llama"].build()
    with pytest.raises(UserError, match=word):
        nonlin.swap(model, "relu", text=text)
    assert model.config.hidden_act == "silu"


@pytest.mark.parametrize("options", [{"tokens": 1}, {"context": 1}])
def test_check_needs_two_tokens(options):
    with pytest.raises(UserError, match="be at least 2"):
        health.check(FAMILIES["llama"].build(), **options)


@pytest.mark.parametrize(("content", "tokens"), [("[1, 2, 3]", 3), ("[[1, 2], [3, 4]]", 4)])
def test_text_shorter_than_the_context(tmp_path, content, tokens):
    (tmp_path / "ids.json").write_text(content)
    assert health.check(FAMILIES["llama"].build(), tmp_path / "ids.json", context=512)["tokens"] == tokens


@pytest.mark.parametrize("content", ["[]", "[[1, 2], [3]]", '{"a": 1}'])
def test_ids_that_are_none(tmp_path, content):
    (tmp_path / "ids.json").write_text(content)
    with pytest.raises(UserError, match=r"ids\.json|at least 2 tokens"):
        health.check(FAMILIES["llama"].build(), tmp_path / "ids.json")


@pytest.fixture
def sharded(tmp_path):
    FAMILIES["llama"].build().save_pretrained(tmp_path, max_shard_size="10KB")
    return tmp_path


def test_a_sharded_folder_is_read_and_one_without_a_shard_is_not(sharded):
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 2
    same = FAMILIES["llama"].build().state_dict()
    assert all(torch.equal(same[k], v) for k, v in load(sharded).model.state_dict().items())
    shards[1].unlink()
    with pytest.raises(UserError, match=f"without {shards[1].name}"):
        load(sharded)


@pytest.mark.parametrize("index", ["{", "[]", "{}"])
def test_a_damaged_index(sharded, index):
    (sharded / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"JSON|weight_map"):
        load(sharded)


def test_weights_of_other_shapes_than_the_configuration(sharded):
    config = json.loads((sharded / "config.json").read_text())
    (sharded / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(UserError):
        load(sharded)


def test_a_device_that_is_not_there(sharded):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    for device in ("cuda", "banana"):
        with pytest.raises(UserError, match=f"this torch have; got '{device}'"):
            load(sharded, device=device)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0.0])
def test_a_record_of_a_broken_model_is_json_and_a_page(number, tmp_path):
    from nonlin.report import health as pages

    model = FAMILIES["llama"].build()
    with torch.no_grad():
        if number:
            model.model.layers[0].mlp.up_proj.weight[0, 0] = number
        else:
            for p in model.parameters():
                p.zero_()
    record = health.check(model, tokens=64, context=32, gradients=True)
    json.dumps(record, allow_nan=False)
    assert "<svg" in pages.write(record, tmp_path / "page.html").read_text()
    assert {f["grade"] for f in record["findings"]} >= {"serious"}


def test_an_accelerated_model_is_checked_as_the_untouched_one():
    model = FAMILIES["llama"].build()
    twin = copy.deepcopy(model)
    nonlin.accelerate(twin)
    a, b = (health.check(m, tokens=64, context=32, gradients=True)["blocks"] for m in (model, twin))
    for mine, theirs in zip(b, a, strict=True):
        assert mine["activation"]["computed"] == "swiglu" and mine["tokens"] == 64
        assert mine["streams"]["hidden"]["rms"] == pytest.approx(theirs["streams"]["hidden"]["rms"], rel=1e-5)
        assert mine["gradients"]["rms"] == pytest.approx(theirs["gradients"]["rms"], rel=1e-4)


def test_an_activation_module_that_blocks_share_is_swapped_in_each():
    act = nn.SiLU()
    model = nn.Sequential(Gated(act=act), Gated(act=act))
    x = torch.randn(3, 16)
    before = model(x)
    with warnings.catch_warnings(action="ignore"):
        assert len(nonlin.swap(model, "relu").changed) == 2
    expected = x
    for block in model:
        expected = block.down(torch.relu(block.gate(expected)) * block.up(expected))
    torch.testing.assert_close(model(x), expected)
    nonlin.restore(model)
    assert torch.equal(model(x), before) and model[0].act is model[1].act is act
