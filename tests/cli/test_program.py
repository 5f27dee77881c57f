"""The program around its commands: help, show, sample, report, exit statuses."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nonlin as package
from nonlin.letters import NEAREST
from nonlin.study import Store, simulated


def _run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_nonlin_and_python_m_nonlin_are_the_same_program(nonlin):
    script = Path(sys.executable).with_name("nonlin")
    if not script.exists():
        pytest.skip("nonlin is not installed as a script here")
    for arguments in (["--help"], ["--version"], ["show", "swiglu", "--json"], ["compare", "--help"], ["nothing"]):
        one, two = _run([script, *arguments]), _run([sys.executable, "-m", "nonlin", *arguments])
        assert (one.returncode, one.stdout, one.stderr) == (two.returncode, two.stdout, two.stderr)
    assert package.__version__ in nonlin.call("--version").stdout


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["report", "--help"], ["sample", "-h"],
                                       ["show", "--help"], ["--version"]])
def test_help_loads_neither_torch_nor_what_draws_and_counts(arguments):
    done = _run([sys.executable, "-X", "importtime", "-m", "nonlin", *arguments])
    assert done.returncode == 0 and done.stdout
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "click" in loaded
    assert not loaded & {"torch", "numpy", "scipy", "sympy", "matplotlib", "transformers", "pyarrow", "jinja2"}


def test_help_names_every_command_and_option(nonlin):
    from nonlin.cli import _COMMANDS, program

    told = nonlin.call("--help").stdout
    for name in _COMMANDS:
        assert re.search(rf"^  {name} ", told, re.MULTILINE)
        options = nonlin.call(name, "--help").stdout
        for option in program.get_command(None, name).params:
            if option.param_type_name == "option" and not option.hidden:
                assert option.opts[-1] in options
        assert "--json" in options


def test_an_unknown_command_names_the_near_one(nonlin):
    assert "Did you mean compare or compare-studies?" in nonlin.call("compar", status=2).stderr
    assert "Commands: " in nonlin.call("zzz", status=2).stderr


def test_show_prints_the_catalog(nonlin):
    found = json.loads(nonlin.call("show", "--json").stdout)
    assert [entry["name"] for entry in found] == package.names()
    table = nonlin.call("show", COLUMNS="160").stdout
    for entry in found:
        assert re.search(rf"^{entry['name']} ", table, re.MULTILINE)


def test_show_prints_every_activation(nonlin, capsys):
    from nonlin.cli.show import show

    for name in package.names():
        show.main([name], standalone_mode=False)
        told = capsys.readouterr().out
        definition = package.get(name)
        assert definition.formula in told and f"name:        {name}" in told
        if definition.expr is not None:
            assert "unit normal" in told and "−5" in told and any("\u2800" < c <= "\u28ff" for c in told)
        show.main([name, "--json"], standalone_mode=False)
        facts = json.loads(capsys.readouterr().out)
        assert facts["formula"] == definition.formula


def test_show_knows_aliases_and_formulas_and_refuses_the_rest(nonlin):
    assert json.loads(nonlin.call("show", "swish", "--json").stdout)["name"] == "silu"
    mine = json.loads(nonlin.call("show", "mine=x*sigmoid(2*x)", "--json").stdout)
    assert mine["name"] == "mine" and mine["derivatives"]["x"] == "2*x*sigmoid(-2*x)*sigmoid(2*x) + sigmoid(2*x)"
    assert "Did you mean swiglu" in nonlin.call("show", "swigul", status=2).stderr
    assert "open" in nonlin.call("show", "mine=open(x)", status=2).stderr


def test_output_into_a_closed_pipe_is_no_error():
    done = _run(f"set -o pipefail; {sys.executable} -m nonlin show --json | head -c 10", shell=True,
                executable="/bin/bash")
    assert done.stdout == '[\n {\n  "na' and done.stderr == ""


def test_sample_continues_a_prompt(nonlin, study):
    out = nonlin.call("sample", study.folder, "--prompt", "12: the é", "--length", "30", "--arm", "mine").stdout
    assert out.startswith("12: the é") and len(out) > len("12: the é") + 8
    again = nonlin.call("sample", study.folder, "--prompt", "12: the é", "--length", "30", "--arm", "mine", "--json")
    told = json.loads(again.stdout)
    assert told["text"] + "\n" == out and told["arm"] == "mine"
    assert told["trial"] in {run["config_hash"] for run in study.arms["mine"]["judged"]}


def test_sample_says_what_is_wrong(nonlin, study, tmp_path):
    assert "Did you mean swiglu" in nonlin.call("sample", study.folder, "--arm", "swigul", status=2).stderr
    assert "study" in nonlin.call("sample", tmp_path, status=2).stderr
    folder = tmp_path / "copy"
    shutil.copytree(study.folder, folder)
    for weights in folder.glob("trials/*/weights.safetensors"):
        weights.write_bytes(weights.read_bytes()[:100])
    assert "Continue the study" in nonlin.call("sample", folder, status=2).stderr


def test_report_is_rebuilt_equal(nonlin, study):
    page = study.folder / "report.html"
    before = {p.name: p.read_bytes() for p in (page, *(study.folder / "figures").iterdir())}
    told = json.loads(nonlin.call("report", study.folder, "--json").stdout)
    assert Path(told["report"]) == page and len(told["figures"]) == len(before) - 1 >= 10
    assert {p.name: p.read_bytes() for p in (page, *(study.folder / "figures").iterdir())} == before


def test_report_says_what_is_wrong(nonlin, study, tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        err = nonlin.call("report", folder, status=2).stderr
        assert "study" in err
    assert not (tmp_path / "none").exists()
    folder = tmp_path / "copy"
    shutil.copytree(study.folder, folder, ignore=shutil.ignore_patterns("model"))
    (folder / "samples.json").write_text('{"texts": 3}')
    nonlin.call("report", folder)
    (folder / "results.json").write_text("{")
    assert "results.json" in nonlin.call("report", folder, status=2).stderr


def test_a_bug_is_status_3_not_1(nonlin, tmp_path):
    """1 means a finding: what the program did not expect must not look like one."""
    code = ("import nonlin.cli as c, click\n"
            "import nonlin.cli.show as s\n"
            "s.print_json = lambda value: 1 / 0\n"
            "c.main(['show', 'gelu', '--json'])\n")
    done = _run([sys.executable, "-c", code], env=os.environ | {"NONLIN_CACHE": str(tmp_path)})
    assert done.returncode == 3 and "ZeroDivisionError" in done.stderr


def test_words_go_to_a_terminal_of_any_encoding(tmp_path):
    """A dash, or the minus sign of a difference, is none of ASCII's letters; it must not get lost, nor end the program.
    """
    for name in ("one", "two"):
        Store(tmp_path / name).create(simulated.plan(arms=2))
    done = subprocess.run([sys.executable, "-m", "nonlin", "compare-studies", str(tmp_path / "one"), str(
        tmp_path / "two")], capture_output=True, timeout=60, env=os.environ | {"PYTHONIOENCODING": "ascii:strict"})
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.isascii() and b" - " in done.stdout, done.stdout
    assert "−0.5 ± 1 … \u4e2d".encode("ascii", NEAREST) == b"-0.5 +/- 1 ... \\u4e2d"


def test_a_locale_without_utf8_reads_our_own_files():
    code = "from nonlin.training import machine; print(machine.describe()['native_engine'])"
    answers = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                              env=os.environ | more) for more in (
        {}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})]
    assert answers[1].returncode == 0, answers[1].stderr
    assert answers[0].stdout == answers[1].stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device is full here")
@pytest.mark.parametrize("arguments", [["report", "nowhere"], ["compare", "--nothing"], ["show", "nothing"]])
def test_an_error_that_cannot_be_told_has_its_status(arguments):
    """1 is a finding, and there is none."""
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "nonlin", *arguments], stdout=subprocess.PIPE, stderr=full,
                              timeout=60)
    assert done.returncode == 2 and done.stdout == b""
