"""A study's text from the command line: several sources, a validation text, a model's tokenizer, odd names."""

import json
import os
from pathlib import Path

import pytest

from nonlin.cli import main
from nonlin.data import tokenizing
from tests.cli.programs import SMALL, results


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder whose name is no UTF-8, with two sources of text and a third to judge by."""
    folder = os.fsencode(tmp_path_factory.mktemp("texts")) + b"/caf\xe9"
    for name in (b"one", b"two", b"held"):
        os.makedirs(folder + b"/" + name)
        for i in range(12):
            with open(folder + b"/" + name + b"/%d.txt" % i, "wb") as file:
                file.write(b"".join(b"%d %s the quick %d fox jumps\n" % (i, name, j) for j in range(200)))
    with open(folder + b"/records.ndjson", "w") as file:
        file.write('{"text": null}\n' + "\n".join(json.dumps({"text": f"{i} more words"}) for i in range(9)))
    return os.fsdecode(folder)


def test_sources_weights_validation_a_tokenizer_and_names_that_are_no_utf8(nonlin, texts, tmp_path):
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(tokenizing.train([b"the quick fox jumps one two held 0 1 2 3 4 5 6 7 8 9 " * 50], 2600, 280))
    out = os.fsdecode(os.fsencode(tmp_path) + b"/study-\xff")
    command = ["compare", "--data", f"{texts}/one", "--data", f"{texts}/two", "--weights", "3,1", "--validation",
               f"{texts}/held", "--validation", f"{texts}/records.ndjson", "--tokenizer", tokenizer, "--activations",
               "gelu,silu", *SMALL, "--out", out, "--json"]
    done = nonlin.call(*command)
    found = json.loads(done.stdout)
    assert found["status"] == "complete"
    data = found["data"]
    assert data["weights"] == [3.0, 1.0] and len(data["validation"]) == 2 and data["tokenizer"].startswith("sha256:")
    assert "Data: 1 records without text left out" in done.stderr and "line 1" in done.stderr
    info = json.loads(Path(out, "data", "dataset.json").read_text())
    assert [part["share"] for part in info["parts"]["train"]] == [0.75, 0.25]
    assert info["vocabulary"] == 280 and os.path.exists(os.path.join(out, "report.html"))
    os.truncate(os.path.join(out, "data", "train.bin"), 100)
    again = nonlin.call("compare", "--resume", "--out", out)
    assert "caf\\xe9" in again.stderr + found["data"]["description"]
    assert results(Path(out))["arms"] == found["arms"]
    tokenizer.write_text(tokenizing.train([b"another text of other words " * 99], 2700, 300))
    os.truncate(os.path.join(out, "data", "train.bin"), 100)
    assert "must be the tokenizer that the study began with" in nonlin.call(
        "compare", "--resume", "--out", out, status=2).stderr


@pytest.mark.parametrize(("options", "words"), [
    (["--weights", "1,x"], "weights must be numbers"), (["--weights", "1,2"], "for each of the 1 sources"),
    (["--validation", "nowhere.txt"], "nowhere.txt"), (["--tokenizer", "nowhere.json"], "tokenizer must be")])
def test_mistakes_with_text_are_one_error(nonlin, texts, tmp_path, options, words):
    done = nonlin.call("compare", "--data", f"{texts}/one", *SMALL, "--out", tmp_path / "out", *options, status=2)
    assert words in done.stderr


@pytest.mark.parametrize("call", [["report", "NAME"], ["compare", "--data", "NAME"], ["watch", "NAME"], ["NAME"],
                                  ["compare-studies", "NAME", "NAME"], ["compare", "--NAME"], ["check", "NAME"],
                                  ["compare", "--activations", "NAME"], ["sample", "NAME"], ["show", "NAME"],
                                  ["report", "a", "NAME"], ["compare", "--minutes", "NAME"], ["extend", "NAME"]])
def test_errors_show_no_character_that_a_terminal_obeys(tmp_path, monkeypatch, capsys, call):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([word.replace("NAME", "red\x1b[31m\x9b\u202e") for word in call])
    shown = capsys.readouterr().err
    assert ended.value.code == 2 and shown.replace("\n", "").isprintable() and "\\x1b" in shown


def test_a_prompt_that_is_no_utf8_is_continued(nonlin, study):
    prompt = os.fsdecode(b"caf\xe9 ")
    out = nonlin.call("sample", study.folder, "--prompt", prompt, "--length", "5").stdout
    assert out.startswith(prompt)
    made = json.loads(nonlin.call("sample", study.folder, "--prompt", prompt, "--length", "5", "--json").stdout)
    assert made["text"].startswith("caf\udce9 ")
