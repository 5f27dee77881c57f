"""Mistakes are found before torch is loaded, and before anything is measured or written; help states what is taken."""

import json
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from nonlin.cli import _COMMANDS, main, program
from nonlin.cli.numbers import Number
from nonlin.errors import UnknownName, UserError
from nonlin.functions import parse_arms
from nonlin.functions.catalog import CATALOG
from nonlin.functions.catalog_names import canonical_names, catalog_names, must_be_known
from nonlin.study import Store
from tests.study import studies

# The call, and words of its error.
MISTAKES = [
    ("check nowhere", ["MODEL", "nowhere", "exists"]),
    ("check . --tokens 1", ["--tokens", "2 or more"]),
    ("check empty", ["config.json", "empty"]),
    ("check notes.txt", [".gguf"]),
    ("check pickled", ["safetensors", "pytorch_model.bin"]),
    ("check remote", ["code of its own", "--trust-remote-code"]),
    ("check quantized", ["floating-point", "gptq"]),
    ("check half.gguf", ["GGUF"]),
    ("check model --device CUDA", ["device", "cuda:1"]),
    ("check model --text nowhere.txt", ["--text", "nowhere.txt"]),
    ("check model --dtype float8", ["float8"]),
    ("check model --page empty", ["--page", "be a file", "empty is a folder"]),
    ("check model --page ''", ["--page", "not be empty"]),
    ("check model --page notes.txt/x.html", ["--page", "notes.txt is a file", "no folder"]),
    ("check model --page notes.txt/y/x.html", ["--page", "notes.txt is a file", "no folder"]),
    ("compare-studies study study --out empty", ["--out", "empty is a folder"]),
    ("compare-studies study study --out ''", ["--out", "not be empty"]),
    ("compare-studies study study --out notes.txt/x.html", ["--out", "notes.txt is a file"]),
    ("show gelu --html --out empty", ["--out", "empty is a folder"]),
    ("show gelu --html --out ''", ["--out", "not be empty"]),
    ("show gelu --html --out notes.txt/x.html", ["--out", "notes.txt is a file"]),
    ("advise --params abc --tokens 1B", ["--params", "125M", "abc"]),
    ("advise --params 1B --tokens -3", ["--tokens", "-3"]),
    ("advise --params 5 --tokens 1B", ["--params", "100K"]),
    ("advise --params 1B --tokens 1B --hardware tpu", ["tpu"]),
    ("advise --params 1B --tokens 1B --study nowhere", ["nowhere", "study"]),
    ("compare --minutes 0.1", ["--minutes", "1 or more", "0.1"]),
    ("compare --minutes ten", ["--minutes", "number", "ten"]),
    ("compare --seeds 3", ["--seeds", "4"]),
    ("compare --dim 97", ["dim", "even multiple of heads"]),
    ("compare --dim 96 --heads 3 --kv-heads 2", ["kv-heads", "divide"]),
    ("compare --activations gelu", ["two or more"]),
    ("compare --activations gelu,swigul", ["swigul", "swiglu"]),
    ("compare --activations gelu,mine=sqrt(x)", ["mine", "value", "near zero"]),
    ("compare --baseline relu6", ["baseline", "relu6"]),
    ("compare --data notes.txt --data nowhere", ["nowhere", "exist"]),
    ("compare --validation nowhere", ["nowhere", "exist"]),
    ("compare --tokenizer 12", ["258"]),
    ("compare --weights 1,2", ["weights", "sources"]),
    ("compare --confidence 1", ["--confidence", "above 0 and below 1"]),
    ("compare --resume --out nowhere", ["nowhere", "study"]),
    ("compare --aa 0", ["--aa", "1 or more"]),
    ("compare --aa 2 --weights 3,b", ["weights must be numbers with commas", "3,b"]),
    ("compare --aa 2 --track tensorboard", ["--track must stand without --aa"]),
    ("compare --aa-streams shared", ["--aa-streams must come with --aa"]),
    ("claims 11 --ladder aa --minutes 3", ["--ladder must stand without --minutes"]),
    ("compare --workers 0", ["--workers", "1 or more"]),
    ("compare --slurm partition", ["KEY=VALUE"]),
    ("compare --address 10.0.0.1:6379", ["--engine ray"]),
    ("compare --parallel fsdp", ["parallel must come with --devices-per-trial"]),
    ("compare --decay 0.3", ["decay must come with the schedule wsd"]),
    ("compare --minutes 1e300", ["minutes must fit a plan"]),
    ("compare --learning-rates 130", ["--learning-rates", "from 2 to 100"]),
    ("claims --minutes 1e300", ["minutes must be from 1 to 10,000,000"]),
    ("ladder --target 1M --longer 1e300", ["longer must be above 1 and at most"]),
    ("report study --inches 5", ["--inches must come with --latex"]),
    ("report study --latex --inches 1e9", ["--inches", "from 2.5 to 40"]),
    ("claims 44", ["1 to 13", "44"]),
    ("claims --minutes 0.1", ["--minutes", "1 or more"]),
    ("claims --seed -1", ["--seed", "from 0 to 999999"]),
    ("claims --data nowhere", ["nowhere", "exist"]),
    ("claims --resume --out nowhere", ["nowhere", "resume"]),
    ("claims --ladder nowhere", ["--ladder", "number 11", "none"]),
    ("report nowhere", ["nowhere", "study"]),
    ("sample nowhere", ["nowhere", "study"]),
    ("sample . --length 0", ["--length", "1 or more"]),
    ("show swigul", ["swigul", "swiglu"]),
    ("show --out page.html", ["--html"]),
    ("compare --resume --out aa", ["aa must hold a study; it holds A/A studies", "without --resume"]),
    ("watch ladder", ["plan.json was damaged"]),  # it has no rungs
    ("extend ladder --seeds 9", ["it holds a ladder"]),
    ("compare --resume --out claims", ["it holds claims", "nonlin claims --resume"]),
    ("compare --activations gelu,relu --out ladder", ["it holds a ladder"]),
    ("ladder --resume --out study", ["must hold a ladder; it holds a study", "nonlin compare --resume --out study"]),
    ("ladder --target 1M --out aa", ["it holds A/A studies"]),
    ("claims --resume --out study", ["must hold claims; it holds a study"]),
    ("claims 1 --out ladder", ["it holds a ladder"]),
    ("compare-studies ladder study", ["it holds a ladder"]),
    ("sample claims", ["it holds claims"]),
    ("extend nowhere --seeds 9", ["nowhere", "study"]),
    ("extend study", ["extend", "seeds"]),
    ("extend study --seeds 1", ["--seeds"]),
    ("extend study --minutes ten", ["--minutes", "number"]),
    ("extend study --activations +swigul", ["swigul", "swiglu"]),
    ("watch nowhere", ["nowhere must hold a study; it does not exist. Give the folder of a study, for example study."]),
    ("watch study --seconds 0", ["--seconds", "0.1 or more"]),
    ("compare-studies study", ["two or more"]),
    ("compare-studies study nowhere", ["nowhere", "study"]),
    ("ladder --target 5", ["target", "12,000 parameters or more"]),
    ("ladder --target many", ["--target", "125M", "many"]),
    ("ladder --target 1M --sizes 1K", ["sizes"]),
    ("ladder --target 1M --model nowhere.json", ["nowhere"]),
    ("ladder --target 1M --model qwen3 --from-checkpoint", ["from-checkpoint", "nonlin compare"]),
    ("report study --latex --inches 0", ["--inches"]),
    ("compare --track wanb", ["--track", "wandb"]),
    ("compare --engine rai", ["--engine", "ray"]),
    ("compare --match parms", ["--match", "params"]),
    ("compare --precision bf17", ["precision", "bf"]),
    ("compare --schedule cosin", ["--schedule", "cosine"]),
    ("compare --model nowhere.json", ["nowhere"]),
    ("compare --recipe nowhere.json", ["nowhere"]),
    ("compare --batch many", ["--batch", "many"]),
    ("doctor --fix", ["--fix"]),
    ("comparee", ["comparee", "compare"]),
    ("frobnicate", ["frobnicate", "Commands:"]),
    ("advise --params 1B --tokens 1B --ladder nowhere", ["nowhere", "ladder"]),
    ("advise --params 1B --tokens 1B --ladder study", ["it holds a study"]),
]

# In one process: each call by the program's own main, with the libraries that are named out of reach.
CODE = """
import contextlib, io, json, shlex, sys

class OutOfReach:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[2:]:
            raise AssertionError(f"{name} is imported before the mistake is found")

sys.meta_path.insert(0, OutOfReach())
from nonlin.cli import main

for call in json.loads(sys.argv[1]):
    out, err, status = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(shlex.split(call))
        except SystemExit as ended:
            status = ended.code
    loaded = bool({"torch", "transformers"} & set(sys.modules))
    print(json.dumps([call, status, out.getvalue(), err.getvalue(), loaded]), flush=True)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    # transformers is looked for, not loaded
    return _told(tmp_path_factory, [call for call, _ in MISTAKES], "torch")


@pytest.fixture(scope="module")
def told_lightly(tmp_path_factory):
    return _told(tmp_path_factory, LIGHT, "torch", "sympy", "scipy", "matplotlib")


def _told(tmp_path_factory, calls, *out_of_reach):
    here = tmp_path_factory.mktemp("mistakes")
    (here / "empty").mkdir()
    (here / "notes.txt").write_text("a note\n" * 20000)
    (here / "half.gguf").write_bytes(b"GG")
    for name, config in (("pickled", {}), ("remote", {"auto_map": {"AutoModel": "code.Model"}}), ("model", {}),
                         ("quantized", {"quantization_config": {"quant_method": "gptq"}})):
        (here / name).mkdir()
        (here / name / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    (here / "pickled" / "pytorch_model.bin").write_bytes(b"")
    Store(here / "study").create(studies.plan())
    for name, field in (("ladder", "rungs"), ("claims", "studies")):
        (here / name).mkdir()
        (here / name / "plan.json").write_text(json.dumps({field: []}))
    (here / "aa" / "studies").mkdir(parents=True)
    (here / "aa" / "machine.json").write_text("{}")
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(calls), *out_of_reach], cwd=here,
                          capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (here / "runs").exists()
    return {call: rest for call, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize(("call", "words"), MISTAKES)
def test_a_mistake_is_found_before_torch_is_loaded(told, call, words):
    status, out, err, torch_loaded = told[call]
    assert status == 2 and out == "" and not torch_loaded, err
    for word in words:
        assert word in err, err
    assert "Traceback" not in err and "Measuring" not in err


def _numbers():
    for name in _COMMANDS:
        for option in program.get_command(None, name).params:
            if isinstance(option, click.Option) and not option.is_flag:
                yield name, option


def test_every_option_that_takes_a_number_has_bounds_and_says_them():
    """A plain integer or float would let a person guess its least value."""
    known = 0
    for command, option in _numbers():
        plain = click.types.IntParamType | click.types.FloatParamType
        assert not isinstance(option.type, plain), (command, option.opts)
        if isinstance(option.type, Number):
            known += 1
            said = option.help.lower()
            assert option.type.must in said, (command, option.opts, option.help)
            for bad in _outside(option.type):
                with pytest.raises(click.BadParameter, match="must be"):
                    option.type.convert(bad, option, None)
            if isinstance(option.default, int | float):
                assert option.type.convert(str(option.default), option, None) == option.default
    assert known > 20


def _outside(kind):
    bad = ["nan", "x", str(kind.least - 1)]
    if kind.above:
        bad.append(str(kind.least))
    if kind.most < float("inf"):
        bad.append(str(kind.most + 1))
    return [*bad, "1.5", "1" + "0" * 400] if kind.whole else bad


@pytest.mark.parametrize(("option", "near"), [
    ("--device", "--devices-per-trial"), ("--seed", "--seeds"), ("--learning", "--learning-rate"),
    ("--activatoins", "--activations"), ("--gpu", None), ("--epochs", None), ("--widths", None)])
def test_an_option_is_suggested_only_where_it_is_near(option, near, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["compare", option, "1"])
    err = capsys.readouterr().err
    assert ended.value.code == 2 and option in err
    assert (near in err if near else "mean" not in err), err
    assert "--dim" not in err


def test_a_shell_completes_names_of_activations(tmp_path):
    """As bash asks for it: by the environment, one candidate a line."""
    def offered(words):
        done = CliRunner().invoke(program, prog_name="nonlin", env={
            "_NONLIN_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)})
        return [line.partition(",")[2] for line in done.output.splitlines() if line]

    assert set(offered("nonlin show swig")) == {"swiglu", "swiglu_oai", "swiglu_clamped"}
    assert offered("nonlin compare --activations gelu,swiglu_o") == ["gelu,swiglu_oai"]
    assert "gelu,gelu" not in offered("nonlin compare --activations gelu,gel")
    assert offered("nonlin compare --baseline mis") == ["mish"]
    (tmp_path / "plan.json").write_text(json.dumps({"arms": [{"name": "gelu"}, {"name": "mine"}]}))
    assert offered(f"nonlin sample {tmp_path} --arm m") == ["mine"]
    assert offered("nonlin sample nowhere --arm m") == []


# Calls whose mistake is found without the library of formulas, too, which takes a second to load.
LIGHT = [
    "check nowhere", "check empty", "check notes.txt", "advise --params abc --tokens 1B",
    "advise --params 5 --tokens 1B", "advise --params 1B --tokens 1B --study nowhere",
    "advise --params 1B --tokens 1B --ladder nowhere", "compare --data nowhere", "compare --validation nowhere",
    "compare --resume --out nowhere", "compare --aa 2 --weights 3,b", "compare --activations gelu,nowhere",
    "compare --activations gelu,nowhere(a=1)", "compare --activations gelu,nowhere*x", "compare --baseline nowhere",
    "claims --data nowhere", "ladder --target 1M --data nowhere", "ladder --target 1M --validation nowhere",
    "ladder --target 1M --activations gelu,nowhere", "ladder --resume --out nowhere", "extend nowhere --seeds 9",
    "extend study --activations +nowhere", "report nowhere", "sample nowhere", "show nowhere", "watch nowhere",
    "compare-studies study nowhere",
]


@pytest.mark.parametrize("call", LIGHT)
def test_a_name_or_path_that_is_not_there_is_said_before_the_library_of_formulas_is_loaded(told_lightly, call):
    status, out, err, _ = told_lightly[call]
    assert status == 2 and out == "" and "Traceback" not in err, err
    assert any(word in err for word in ("nowhere", "MODEL", "advise: --", "weights")), err


def test_the_names_that_are_known_without_the_catalog_are_the_catalogs():
    assert catalog_names() == {name: d.name for d in CATALOG for name in (d.name, *d.aliases)}
    assert canonical_names() == [d.name for d in CATALOG]


@pytest.mark.parametrize("text", ["gelu,silu", "swish,mine=max(x, 0)*x", "leaky_relu(slope=0.5)", "", "f(x)=x*x"])
def test_lists_of_known_names_and_of_formulas_go_on_to_the_grammar(text, monkeypatch):
    monkeypatch.delitem(sys.modules, "nonlin.functions.registry")
    must_be_known(text, "mine" if "mine" in text else None)
    with pytest.raises(UnknownName, match="Did you mean gelu"):
        must_be_known(text, "gleu")


@pytest.mark.parametrize("text", ["x*sigmoid(x)", "silu(x)", "nothing(x)", "max(x, 0)"])
def test_a_formula_without_a_name_is_told_to_have_one(text):
    with pytest.raises(UserError, match=re.escape(f"rite a formula with a name: mine={text}.")):
        parse_arms(f"gelu,{text}")
