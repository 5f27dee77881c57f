"""A recipe from the JSON of transformers.TrainingArguments: used, or named; hostile files are refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlin.errors import UserError
from nonlin.study.recipe import WORDS, recipe_values
from nonlin.training.arguments import read_training_arguments


@pytest.fixture
def read(tmp_path):
    """Return what a file of these fields says: ``read({"learning_rate": 1e-3})``."""
    def reading(fields, given=()):
        path = tmp_path / "arguments.json"
        path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
        return read_training_arguments(path, given)

    return reading


def test_the_file_that_transformers_writes(tmp_path, read):
    transformers = pytest.importorskip("transformers")
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), learning_rate=3e-3, per_device_train_batch_size=4, gradient_accumulation_steps=3,
        max_steps=700, warmup_steps=50, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 3e-4},
        weight_decay=0.02, adam_beta2=0.98, adam_epsilon=1e-9, max_grad_norm=0.5, label_smoothing_factor=0.1,
        neftune_noise_alpha=5.0, report_to=[], use_cpu=True)
    text = arguments.to_json_string()
    words, lines = read(text)
    assert words == {"learning_rate": 3e-3, "batch": 12, "accumulation": 3, "steps": 700, "warmup": 50,
                     "schedule": "cosine", "final_fraction": pytest.approx(0.1), "optimizer": "adamw",
                     "weight_decay": 0.02, "clip": 0.5, "beta1": 0.9, "beta2": 0.98, "epsilon": 1e-9,
                     "precision": "float32"}
    used = {"learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "warmup_steps",
            "lr_scheduler_type", "lr_scheduler_kwargs", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
            "max_grad_norm", "optim", "bf16", "fp16"}
    told = "\n".join(lines)
    for name in json.loads(text):
        assert (name in used) != (f"{name} = " in told), name  # used or named, never both
    assert lines[0].startswith("would change training, and nonlin does not do it: ")
    assert "label_smoothing_factor = 0.1" in lines[0] and "neftune_noise_alpha = 5.0" in lines[0]
    assert "no field that nonlin knows" not in told  # the table of reasons is whole for this transformers


def test_a_least_rate_without_a_peak_is_named(read):
    words, lines = read({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 3e-4}})
    assert words["final_fraction"] == 0.0 and "lr_scheduler_kwargs.min_lr = 0.0003" in "\n".join(lines)


@pytest.mark.parametrize(("fields", "expected"), [
    ({"bf16": True}, {"precision": "bfloat16"}), ({"bf16": False}, {"precision": "float32"}),
    ({"warmup_ratio": 0.1}, {"warmup": 0.1}), ({"warmup_steps": 0.05}, {"warmup": 0.05}),
    ({"warmup_steps": 100, "warmup_ratio": 0.1}, {"warmup": 100}), ({"warmup_steps": 0}, {"warmup": 0.0}),
    ({"max_steps": -1}, {}), ({"max_grad_norm": 0.0}, {"clip": 0.0}), ({"optim": "muon"}, {"optimizer": "muon"}),
    ({"learning_rate": None}, {}),
    ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 9},
     {"schedule": "wsd", "decay": 0.0, "warmup": 9}),
    ({"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {
        "num_decay_steps": 30, "decay_type": "linear", "min_lr_ratio": 0.1}},
     {"schedule": "wsd", "decay": 30, "final_fraction": 0.1})])
def test_fields_and_their_words(read, fields, expected):
    words, lines = read(fields)
    assert {k: v for k, v in words.items() if k in expected or k != "schedule"} == expected
    assert lines == []


def test_a_decay_of_another_shape_is_named(read):
    _, lines = read({"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_stable_steps": 10}})
    assert lines[0].startswith("would change") and "lr_scheduler_kwargs.decay_type = \"cosine\"" in lines[0]
    assert "num_stable_steps = 10" in lines[0]
    _, lines = read({"lr_scheduler_type": "constant", "warmup_steps": 10})
    assert lines == ["a constant rate has no warm-up: warmup_steps = 10"]


@pytest.mark.parametrize(("fields", "words"), [
    ({"optim": "adafactor"}, r"optim must be one of .*; got \"adafactor\". Choose --optimizer"),
    ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type must be one of .*Choose --schedule"),
    ({"fp16": True}, "fp16 must be false.*--precision bfloat16"), ({"learning_rate": "1e-3"}, "must be a number"),
    ({"learning_rate": True}, "must be a number"), ({"max_steps": 1.5}, "must be a whole number"),
    ({"weight_decay": -0.1}, "weight_decay must be a number from 0 on"),
    ({"bf16": "yes"}, "bf16 must be true or false"),
    ({"optim": ["adamw_torch"]}, "optim must be a text"), ({"lr_scheduler_kwargs": "x"}, "must be an object"),
    ({"per_device_train_batch_size": 0}, "must be a whole number from 1 on"), ({"adam_beta2": 2}, "from 0 to 1"),
    ("{", "no JSON"), ("[1]", "no object"), ('{"seed": 1, "seed": 2}', "a name comes twice"),
    ('{"learning_rate": NaN}', "NaN is no number"), ('{"learning_rate": 1e999}', "a number is beyond"),
    ("[" * 5000, "no JSON|deeply"), ('{"a":' * 80 + "1" + "}" * 80, "deeply"),
    (json.dumps({f"f{i}": 1 for i in range(1001)}), "at most 1000 fields"), (" " * (1 << 20) + "{}", "larger than"),
    ("\x80\x02cos\nsystem\n", "no JSON")], ids=range(22))
def test_mistakes_and_hostile_files(read, fields, words):
    with pytest.raises(UserError, match=words):
        read(fields)


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(UserError, match=r"must be the JSON of transformers\.TrainingArguments"):
            read_training_arguments(path)


def test_a_word_of_the_call_counts_and_the_field_is_named(read):
    words, lines = read({"optim": "adafactor", "learning_rate": 1.0, "fp16": True},
                        ("optimizer", "learning_rate", "precision"))
    assert not {"optimizer", "learning_rate", "precision"} & set(words)
    assert lines[0] == 'the call says it: optim = "adafactor", fp16 = true, learning_rate = 1.0'


def test_a_name_cannot_write_on_the_terminal(read):
    _, lines = read({"\x1b[2Jx\n" + "y" * 500: "\x07" + "z" * 500})
    (line,) = lines
    assert line.startswith("no field that nonlin knows: ") and line.isprintable() and len(line) < 200


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=6)
KNOWN = ("learning_rate", "max_steps", "optim", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
         "warmup_ratio", "bf16", "fp16", "seed", "adam_beta1", "gradient_accumulation_steps", "max_grad_norm")


@settings(max_examples=60, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=6), JSON, max_size=6))
def test_any_object_is_a_recipe_or_one_plain_error(tmp_path_factory, fields):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(fields))
    try:
        values = recipe_values(dict.fromkeys(WORDS), path, 64)
    except UserError as error:
        assert str(error).startswith("recipe: ") and "\n" not in str(error)
        return
    told = "\n".join(values["left_out"])
    assert told.replace("\n", "").isprintable()
    for name in fields:
        if name not in KNOWN and name.isprintable():
            assert f"{name} = " in told, name


def test_the_call_then_the_file_then_the_defaults(tmp_path):
    path = tmp_path / "arguments.json"
    path.write_text(json.dumps({"learning_rate": 0.002, "weight_decay": 0.3, "optim": "adamw_torch", "seed": 3}))
    asked = dict.fromkeys(WORDS) | {"learning_rate": 0.02, "batch": "512tokens", "warmup": 30}
    found = recipe_values(asked, path, 64)
    assert found["learning_rate"] == 0.02 and found["batch"] == 8 and found["steps"] is None
    assert found["training"] == {"weight_decay": 0.3, "warmup_steps": 30}
    assert [line.split(":")[0] for line in found["left_out"]] == [
        "the call says it", "a study has its own seeds, length, text and evaluation"]
    assert recipe_values(dict.fromkeys(WORDS), None, 64)["training"] == {}


@pytest.mark.parametrize(("word", "value", "says"), [
    ("batch", "100tokens", "multiple of the context of 64 tokens.*--batch 128tokens"), ("batch", "8 rows", "--batch 8"),
    ("batch", "0tokens", "multiple"), ("warmup", 10.5, "share below 1 or a whole number"),
    ("decay", float("inf"), "share below 1")])
def test_words_that_make_no_recipe(word, value, says):
    with pytest.raises(UserError, match=says):
        recipe_values(dict.fromkeys(WORDS) | {word: value}, None, 64)
