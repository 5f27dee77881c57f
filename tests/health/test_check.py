"""The command: table, JSON, page, exit status; what it runs on; and that a model is left as it was."""

import gzip
import json
import re
import shutil
import subprocess
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import nonlin
from nonlin import health
from nonlin.cli import program
from nonlin.errors import UserError
from nonlin.health import checking, inputs
from nonlin.patching import loading
from nonlin.report import health as pages
from tests.patching import real
from tests.patching.families import FAMILIES

pytest.importorskip("transformers", reason="transformers is not installed")
warnings.filterwarnings("ignore", module="transformers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A healthy folder and one with dead units, and where their pages go."""
    where = tmp_path_factory.mktemp("models")
    model = FAMILIES["llama"].build(mlp_bias=True)
    model.save_pretrained(where / "good")
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.bias[:8] = -50
    model.save_pretrained(where / "bad")
    return where


def run(*arguments):
    return CliRunner().invoke(program, ["check", *map(str, arguments), "--tokens", "256", "--context", "32"])


def test_healthy_model(folders, tmp_path):
    result = run(folders / "good", "--page", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "Nothing serious: no findings." in result.output and "random tokens" in result.output
    assert "model.layers.1.mlp" in result.output and "swiglu" in result.output


def test_sick_model_as_json_and_page(folders, tmp_path):
    page = tmp_path / "page.html"
    result = run(folders / "bad", "--json", "--gradients", "--page", page)
    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert record["findings"][0]["units"] == list(range(8)) and str(page) in result.stderr
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    text = page.read_text()
    assert "put out nothing and learn nothing" in text and "1 serious finding" in text
    assert text.count("<svg") == 8 and 'id="gradients"' in text
    fetched = re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', re.sub(r"<svg.*?</svg>", "", text, flags=re.S))
    assert fetched == []


def test_page_has_every_figure_and_escapes_text(tmp_path):
    record = health.check(FAMILIES["llama"].build(), tokens=128, context=32, gradients=True)
    record["alternatives"] = {"activation": "swiglu", "loss_nats": 2.0, "others": [
        {"activation": "geglu", "loss_nats": 1.5, "difference_nats": -0.5, "standard_error": 0.1}]}
    record["findings"] = [{"grade": "info", "text": "<script>alert(1)</script>", "action": "none"}]
    text = pages.write(record, tmp_path / "sub" / "page.html").read_text()
    assert all(f'id="{name}"' in text for name in ("measures", "units", "magnitudes", "gradients", "alternatives"))
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text


def test_page_in_a_browser(folders, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    record = health.check(folders / "bad", tokens=256, context=32, gradients=True)
    page = pages.write(record, tmp_path / "page.html")
    seen = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
                           "--virtual-time-budget=2000", "--dump-dom", page.as_uri()], capture_output=True, text=True,
                          timeout=60)
    assert "learn nothing on any of" in seen.stdout and "CONSOLE" not in seen.stderr


def test_user_errors_have_no_traceback(tmp_path):
    from nonlin.cli import main

    with pytest.raises(SystemExit) as status:
        main(["check", str(tmp_path / "nowhere")])
    assert status.value.code == 2


def test_ids_from_files(tmp_path):
    model = FAMILIES["llama"].build()
    np.save(tmp_path / "ids.npy", np.arange(64))
    (tmp_path / "ids.json").write_text(json.dumps(list(range(64))))
    records = [health.check(model, tmp_path / name, context=32) for name in ("ids.npy", "ids.json")]
    assert records[0]["tokens"] == 64 and not [n for n in records[0]["notes"] if "random" in n]
    assert records[0]["loss_nats"] == records[1]["loss_nats"] > 0


@pytest.mark.parametrize("content, message", [("[1, 2, 64]", "below the vocabulary"), ("[1.5]", "whole numbers"),
                                              ("{", "whole numbers"), ("[1]", "at least 2 tokens")])
def test_wrong_ids(tmp_path, content, message):
    (tmp_path / "ids.json").write_text(content)
    with pytest.raises(UserError, match=message):
        health.check(FAMILIES["llama"].build(), tmp_path / "ids.json")


def _archive(path):
    np.savez(path.with_suffix(".npz"), a=np.arange(4))
    path.with_suffix(".npz").rename(path)


def _lying(path):
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (100000000000000,), }"
    path.write_bytes(b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + bytes(64))


@pytest.mark.parametrize("name, write", [
    ("a.json", lambda path: path.write_text("[" * 200000)), ("a.json", lambda path: path.write_bytes(b"\xff\xfe[")),
    ("a.json", lambda path: path.write_text("[" + "9" * 5000 + "]")), ("a.json", lambda path: path.write_text("{}")),
    ("a.npy", _archive), ("a.npy", _lying), ("a.npy", lambda path: path.write_bytes(b"")),
    ("a.npy", lambda path: path.write_bytes(b"PK\x03\x04junk")),
    ("a.npy", lambda path: np.save(path, np.array([1, "a"], dtype=object)))])
def test_a_file_that_holds_no_ids_is_said_before_the_model_is_loaded(tmp_path, name, write, monkeypatch):
    write(tmp_path / name)
    monkeypatch.setattr(checking, "load", lambda *_, **__: pytest.fail("a model is loaded first"))
    with pytest.raises(UserError, match="must hold whole numbers, the token ids"):
        health.check("model", tmp_path / name)


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_an_empty_text_is_refused_and_not_replaced(tmp_path, content):
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(UserError, match=r"--text must hold text.*empty\.txt.*Pass another file"):
        health.check(FAMILIES["llama"].build(), tmp_path / "empty.txt", tokens=64, context=32)


def test_unreadable_text_and_a_model_that_takes_no_tokens(tmp_path):
    with pytest.raises(UserError, match="must be a readable file"):
        health.check(FAMILIES["llama"].build(), tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match=r"nonlin\.health\.watch"):
        health.check(torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)))


def test_model_is_left_as_it_was():
    model = FAMILIES["gpt2"].build().train()
    for p in list(model.parameters())[2:]:
        p.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    health.check(model, tokens=128, context=32, gradients=True)
    assert model.training and all(m.training for m in model.modules())
    assert [p.requires_grad for p in model.parameters()][:3] == [True, True, False]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name):
    family = FAMILIES[name]
    record = health.check(family.build(), tokens=256, context=32, gradients=True)
    assert len(record["blocks"]) == family.blocks and record["tokens"] == 256
    for block in record["blocks"]:
        assert block["activation"]["agrees"] is True and block["tokens"] == 256
        assert block["streams"]["residual"]["rms"] > 0 and block["streams"]["hidden"]["rms"] > 0
        assert block["gradients"]["rms"] > 0 and 0 < block["sparsity"] < 1
    assert [f for f in record["findings"] if f["grade"] == "serious"] == []


def test_sixteen_bits():
    record = health.check(FAMILIES["llama"].build().bfloat16(), tokens=256, context=32)
    assert record["dtype"] == "bfloat16" and record["blocks"][0]["activation"]["computed"] == "swiglu"
    assert [f for f in record["findings"] if f["grade"] == "serious"] == []


def test_real_encoder():
    record = health.check(real.minilm(), tokens=512, context=128)
    assert [b["activation"]["computed"] for b in record["blocks"]] == ["gelu"] * 6
    assert all(b["activation"]["agrees"] for b in record["blocks"])
    assert [f for f in record["findings"] if f["grade"] != "info"] == []
    assert "was not tried" in record["notes"][-1]


@pytest.mark.parametrize("name", ["ids.json", "ids.npy"])
def test_a_file_of_token_ids_is_read_once(name, tmp_path, monkeypatch):
    path, read, seen = tmp_path / name, inputs.read_ids, []
    np.save(path, np.arange(64)) if name.endswith("npy") else path.write_text(json.dumps(list(range(64))))
    monkeypatch.setattr(inputs, "read_ids", lambda *given: (seen.append(given), read(*given))[1])
    assert health.check(FAMILIES["llama"].build(), path, tokens=64, context=32)["tokens"] == 64
    assert len(seen) == 1


def test_a_path_that_no_page_can_have_is_said_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    nothing = nonlin.Checkup({})
    for path, word in ((tmp_path, "is a folder"), (tmp_path / "file" / "page.html", "is a file, and no folder")):
        for write in (nothing.write_page, nothing.open_page,
                      lambda out: nonlin.compare_studies([tmp_path / "a", tmp_path / "b"], out=out)):
            with pytest.raises(UserError, match=word):
                write(path)


class Broken:
    """A tokenizer of which every call fails, as those of damaged files do."""

    def __call__(self, text, **options):
        raise TypeError("no\nlimit")

    decode = build_inputs_with_special_tokens = __call__


@pytest.mark.parametrize("call", [
    lambda model, made: health.check(model, tokenizer=made), lambda model, made: nonlin.check(model, tokenizer=made),
    lambda model, made: nonlin.swap(model, "relu", text="abc", tokenizer=made),
    lambda model, made: nonlin.accelerate(model, sparse=True, calibration="abc", tokenizer=made)],
    ids=["health", "check", "swap", "accelerate"])
@pytest.mark.parametrize("made", [Broken(), lambda text, **options: {"input_ids": None}, object(), lambda text: [1]],
                         ids=["raises", "none", "no call", "another form"])
def test_a_tokenizer_that_makes_no_ids_is_one_error(call, made):
    with pytest.raises(UserError, match="tokenizer must make token ids of a text") as refused:
        call(FAMILIES["llama"].build(), made)
    assert "\n" not in str(refused.value)


def test_a_folder_whose_tokenizer_fails_is_checked_on_random_tokens(folders, monkeypatch):
    monkeypatch.setattr(loading, "_tokenizer", lambda *_: (Broken(), ""))
    made = health.check(folders / "bad", tokens=64, context=32)
    assert made["findings"] and any("raised TypeError: no limit" in note and "Random tokens" in note
                                    for note in made["notes"])


TEXT = "one two\n\nthree, as plain as can be. " * 9


@pytest.mark.parametrize(("name", "content"), [
    ("text.txt", TEXT.encode()), ("TEXT.GZ", gzip.compress(TEXT.encode())),
    ("text.jsonl", "".join(json.dumps({"text": one}) + "\n" for one in TEXT.split("\n\n")).encode()),
    ("text.jsonl.gz", gzip.compress(json.dumps({"text": TEXT}).encode()))])
def test_a_text_is_read_as_data_is(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert inputs._read_text(tmp_path / name, 200, "check")[0] == TEXT[:200]


def test_a_text_that_is_none_is_refused_and_what_is_left_out_is_said(tmp_path):
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 9)
    with pytest.raises(UserError, match="binary data"):
        inputs._read_text(tmp_path / "binary.txt", 200, "check")
    (tmp_path / "some.jsonl").write_text('{"text": "one"}\n{"text": null}\n')
    assert "line 2" in inputs._read_text(tmp_path / "some.jsonl", 200, "check")[2][0]
    for ids in ("ids.JSON", "ids.NPY"):
        assert inputs.holds_ids(tmp_path / ids)


class ByHand(nn.Module):
    """A small GPT as people write it: its tokens have another name, its output is a pair, and it generates."""

    def __init__(self, block_size=None, longest=64):
        super().__init__()
        torch.manual_seed(0)
        self.config, self.longest = SimpleNamespace(vocab_size=256, block_size=block_size), longest
        self.embedding, self.head = nn.Embedding(256, 16), nn.Linear(16, 256)
        self.mlp = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))

    def forward(self, idx, targets=None):
        assert idx.shape[1] <= self.longest, f"block size is only {self.longest}"
        x = self.embedding(idx)
        return self.head(x + self.mlp(x)), None

    def generate(self, idx, count):
        return idx


@pytest.mark.parametrize("gradients", [False, True])
def test_a_model_written_by_hand(gradients):
    """It was called by a name that it has not, and the error said that it takes no tokens."""
    record = health.check(ByHand(block_size=64), tokens=256, gradients=gradients)
    assert record["tokens"] == 256 and record["blocks"][0]["activation"]["computed"] == "gelu"
    with pytest.raises(UserError, match=r"run on sequences of 512 tokens; .*only 64.* Pass a smaller --context"):
        health.check(ByHand(), gradients=gradients)
    assert health.check(ByHand(), tokens=256, context=64)["tokens"] == 256
