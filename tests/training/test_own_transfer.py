"""CompleteP in architectures of the user's own: roles that are proved, initial values, and coordinate checks."""

import functools

import pytest
import torch

from nonlin.data import batch
from nonlin.errors import UserError
from nonlin.ladder.rates import CompleteP
from nonlin.subject import describe
from nonlin.subject.sizes import sizes
from nonlin.training import Run, transfer
from nonlin.training.optimizer import make_optimizer
from tests.subject.tiny import configuration
from tests.training.test_transfer import trend

RESIDUAL = {"qwen3": ("self_attn.o_proj", "mlp.down_proj"), "llama": ("self_attn.o_proj", "mlp.down_proj"),
            "gpt2": ("attn.c_proj", "mlp.c_proj")}


@functools.cache
def architecture(name, **changes):
    values = configuration(name, vocab_size=256, **changes)
    return sizes({"wanted": {"config": values}, "vocabulary": 256, "context": 16, "head_width": 8, "largest": 3e5})


@functools.cache
def described(name, layers, dim, arms=("gelu",), **changes):
    """Return the description of a family's model at a size, its parameters' roles proved there."""
    found = architecture(name, **changes)
    row = {"heads": dim // 8, "kv_heads": dim // 8}
    if (known := next((r for r in found["rows"] if r["dim"] == dim), None)) is not None:
        row = {key: known[key] for key in row}
    wanted = {"config": found["config"], "fixed": found["fixed"],
              "shape": {"layers": layers, "dim": dim, "head_width": 8} | row}
    return describe({"wanted": wanted, "vocabulary": 256, "context": 16, "rows": 4, "match": "params", "seed": 1,
                     "arms": [{"name": arm} for arm in arms]})


@pytest.fixture
def sized(config):
    """Return a run's configuration: ``sized("qwen3", dim=64, layers=8)``, with CompleteP from 2 layers of width 16."""

    def make(name, dim=16, layers=2, arm="gelu", carried=True, arms=("gelu",), **training):
        made = config(arm, steps=20, **({"learning_rate": 0.005, "clip": 0.0} | training))
        found, base = described(name, layers, dim, arms), described(name, 2, 16, arms)["own"]
        widths = next(one["widths"] for one in found["arms"] if one["name"] == arm)
        made["model"] = {"layers": layers, "dim": dim, "context": 16, "vocabulary": 256, "own": found["own"],
                         "widths": widths, "hidden": widths[0]}
        if carried:
            shape = {"layers": 2, "dim": 16, "heads": 2, "kv_heads": 2, "std": transfer.standard_deviations(base)}
            made["training"]["transfer"] = transfer.transfer_of("completep", shape, made["training"]["learning_rate"])
            transfer.check_model(made["training"]["transfer"], made["training"], made["model"])
        return made

    return make


@pytest.mark.parametrize("name", ["qwen3", "gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_what_writes_into_the_stream_is_found(name):
    roles = described(name, 2, 16)["own"]["roles"]
    by_role = {}
    for key, (role, std) in roles["parameters"].items():
        by_role.setdefault(role, set()).add(key)
        assert (std is None) == (role not in ("embedding", "head", "hidden", "residual"))
    assert {key.split("*.")[1].removesuffix(".weight") for key in by_role["residual"]} == set(RESIDUAL[name])
    assert roles["tied"] == (name == "gpt2") and set(roles["stream"]["layers"].values()) == {1.0}
    assert len(by_role.get("key norm", ())) == (2 if name == "qwen3" else 0)
    assert len(by_role.get("residual bias", ())) == (2 if name == "gpt2" else 0)


@pytest.mark.parametrize("name, changes, words", [
    ("gemma2", {}, "does not grow with its weights"), ("gemma", {}, "does not grow|factor")])
def test_a_proof_that_fails_names_the_reason_and_the_other_rule(name, changes, words):
    import transformers

    values = configuration("llama", vocab_size=256) | {"architectures": None}
    made = transformers.AutoConfig.for_model(name, **{key: values[key] for key in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings")})
    wanted = {"config": made.to_dict(), "fixed": []}
    with pytest.raises(UserError, match=f"(?s)transfer must be standard.*{words}.*--transfer standard"):
        describe({"wanted": wanted, "vocabulary": 256, "context": 16, "rows": 4, "match": "params", "seed": 1,
                  "arms": [{"name": "gelu"}]})


def test_a_norm_after_the_branch_is_its_multiplier():
    """In OLMo 2 the scale of the matrix is lost in the norm that follows it."""
    import transformers

    values = configuration("llama", vocab_size=256)
    made = transformers.AutoConfig.for_model("olmo2", **{key: values[key] for key in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")})
    found = describe({"wanted": {"config": made.to_dict(), "fixed": []}, "vocabulary": 256, "context": 16, "rows": 4,
                      "match": "params", "seed": 1, "arms": [{"name": "gelu"}]})["own"]["roles"]["parameters"]
    roles = {key.split("*.")[-1]: role for key, (role, _) in found.items()}
    assert roles["post_attention_layernorm.weight"] == roles["post_feedforward_layernorm.weight"] == "residual norm"
    assert roles["self_attn.o_proj.weight"] == roles["mlp.down_proj.weight"] == "hidden"


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_initial_values_are_the_rules_whatever_the_family_draws(sized, dataset, name):
    """GPT-2 draws what writes into the stream by the depth already; the rule's are from the base's."""
    base = dict(Run(sized(name, carried=False), dataset).model.named_parameters())
    made = sized(name, dim=64, layers=8)
    large = dict(Run(made, dataset).model.named_parameters())

    def std(parameters, ending):
        return float(torch.cat([p.detach().flatten() for n, p in parameters.items() if n.endswith(ending)]).std())

    inside = {"qwen3": ("q_proj.weight", "up_proj.weight"), "gpt2": ("c_attn.weight", "c_fc.weight")}[name]
    for ending in (*(f"{one}.weight" for one in RESIDUAL[name]), inside[0]):
        factor = 1 / 2 / (4 if ending.split(".weight")[0] in RESIDUAL[name] else 1)
        assert std(large, ending) == pytest.approx(factor * std(base, ending), rel=0.12), ending
    embedding = next(n for n in base if transfer.role_in(made["model"], n) == "embedding")
    assert std(large, embedding) == pytest.approx(std(base, embedding), rel=0.1)
    last = [p for n, p in large.items() if transfer.role_in(made["model"], n) == "last norm" and "weight" in n]
    assert float(last[0].detach().mean()) == pytest.approx(0.25 if name == "gpt2" else 1.0)


def test_every_parameter_of_every_arm_is_in_a_group(sized, dataset):
    """A gate that the family has not, a pointwise block in place of a gated one, an activation that learns."""
    arms = ("gelu", "swiglu", "prelu")
    for name in ("qwen3", "gpt2"):
        for arm in arms:
            made = sized(name, dim=32, layers=4, arm=arm, arms=arms)
            run = Run(made, dataset)
            grouped = [p for group in run.optimizer.param_groups for p in group["params"]]
            assert len(grouped) == len({id(p) for p in grouped}) == len(list(run.model.parameters()))
            roles = {n: transfer.role_in(made["model"], n) for n, _ in run.model.named_parameters()}
            assert {role for n, role in roles.items() if "down_proj.weight" in n or "mlp.c_proj.weight" in n} == {
                "residual"}
            assert {role for n, role in roles.items() if "gate" in n and n.endswith("weight")} <= {"hidden"}
            assert ("activation" in roles.values()) == (arm == "prelu")


def test_at_its_base_a_transfer_changes_nothing(sized, dataset):
    made = sized("gpt2")
    one, other = Run(made, dataset), Run(sized("gpt2", carried=False), dataset)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    rates = {group["rate_factor"] for group in one.optimizer.param_groups}
    assert rates == {1.0} and {group["eps"] for group in one.optimizer.param_groups} == {1e-8}


def changes(config, dataset, steps=5):
    """Return how much a few steps change (the stream after the last layer, the logits), root mean squares."""
    run = Run(config, dataset)
    tokens = torch.from_numpy(batch(dataset, 1000, 8, 16, 1)[0])
    seen = []
    layers = run.model.blocks
    handle = layers[-1].register_forward_hook(lambda m, i, out: seen.append(out if isinstance(out, torch.Tensor)
                                                                            else out[0]))

    def look():
        with torch.no_grad():
            logits = run.model(tokens)
        return seen.pop().detach(), logits

    before = look()
    for _ in range(steps):
        run.step()
        seen.clear()
    after = look()
    handle.remove()
    return [float((a - b).square().mean().sqrt()) for a, b in zip(after, before, strict=True)]


def trends(make, among, dataset):
    measured = [changes(make(size), dataset) for size in among]
    return [trend([m[i] for m in measured], [float(s) for s in among]) for i in (0, 1)]


WIDTHS, DEPTHS = (16, 32, 64, 128), (2, 4, 8, 16)
FAMILIES = ["qwen3", "gpt2", pytest.param("llama", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", FAMILIES)
def test_activations_change_alike_at_every_width_and_depth(sized, dataset, name):
    wide = trends(lambda dim: sized(name, dim=dim), WIDTHS, dataset)
    deep = trends(lambda layers: sized(name, layers=layers), DEPTHS, dataset)
    assert all(abs(one) < 0.25 for one in (*wide, *deep)), (wide, deep)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_rate_for_all_parameters_does_not(sized, dataset, name):
    wide = trends(lambda dim: sized(name, dim=dim, carried=False), WIDTHS, dataset)
    deep = trends(lambda layers: sized(name, layers=layers, carried=False), DEPTHS, dataset)
    assert max(wide) > 0.4 and max(deep) > 0.4, (wide, deep)


def test_a_writer_that_is_missed_is_seen_with_the_depth(sized, dataset, monkeypatch):
    whole = transfer.role_in

    def forgetful(model, name):
        found = whole(model, name)
        return "hidden" if found == "residual" else found

    monkeypatch.setattr(transfer, "role_in", forgetful)
    deep = trends(lambda layers: sized("qwen3", layers=layers), DEPTHS, dataset)
    assert max(deep) > 0.3, deep


def test_a_ladders_rule_says_what_the_base_was_drawn_with():
    from nonlin.ladder import design

    one = design.rung(50e3, "tuned", 16, design.Settings())
    own = described("gpt2", 2, 16)["own"]
    made = CompleteP().training(one, one, 0.01, own)["transfer"]
    assert made["base"]["std"]["transformer.h.*.attn.c_proj.weight"] == pytest.approx(0.01, rel=0.2)
    transfer.check(made)
    with pytest.raises(UserError, match="optimizer must be adamw"):
        transfer.check_model(made, {"optimizer": "muon"}, {"own": own})


def test_decay_is_independent_of_the_rate(sized, dataset):
    made = sized("qwen3", dim=64, layers=8)
    model = Run(made, dataset).model
    optimizer = make_optimizer(model, made["training"], made["model"])
    shares = [0.005 * group["rate_factor"] * group["weight_decay"] for group in optimizer.param_groups
              if group["weight_decay"]]
    assert shares and all(one == pytest.approx(0.005 * 0.1) for one in shares)
