"""``nonlin doctor``: what is here and what is missing, on a machine whole and on one with parts taken away."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import nonlin
from nonlin.calls import doctor
from nonlin.cli import program
from nonlin.kernels.cpu import build

# In a process of its own, where neither a compiler nor the installed library can be found.
WITHOUT = """
import sys, warnings
from nonlin.kernels.cpu import build
build.installed_library = lambda: None
import torch, nonlin
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    x = torch.linspace(-3, 3, 7)
    for name in ("silu", "mish", "gelu"):
        assert torch.isfinite(nonlin.nn.Activation(name)(x)).all()
found = nonlin.doctor()
print(len([w for w in said if "no C++ compiler" in str(w.message)]), found.grade, found.part("compiler").here)
print(found)
"""


def test_every_part_is_said_with_what_it_is_for():
    found = nonlin.doctor()
    assert found.part("compiler").here == (build.compiler() is not None)
    assert found.part("GPU").found and found.torch and found.cores >= 1
    assert {f"nonlin[{extra}]" for extra in doctor.EXTRAS} <= {part.name for part in found.parts}
    for part in found.parts:
        assert part.serves and (part.here or part.remedy), part
    assert (found.grade == "fine") == (found.part("kernels").here and found.part("transformer kernels").here)


def test_extras_are_those_of_the_package():
    """An extra that a person can install is one that the doctor knows."""
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) - {"dev", "docs"} == set(doctor.EXTRAS)


def test_what_is_missing_comes_with_how_to_get_it(monkeypatch):
    real = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec",
                        lambda name, *a: None if name == "ray" else real(name, *a))
    part = nonlin.doctor().part("nonlin[ray]")
    assert not part.here and "ray" in part.found and part.remedy == "pip install 'nonlin[ray]'"
    assert "pip install 'nonlin[ray]'" in str(nonlin.doctor())


def test_without_a_compiler_it_is_said_once_and_torch_computes(tmp_path):
    environment = {"PATH": str(tmp_path), "NONLIN_CACHE": str(tmp_path), "PYTHONPATH": ":".join(sys.path),
                   "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    first, *rest = done.stdout.splitlines()
    assert first == "1 serious False", done.stdout
    text = " ".join(" ".join(rest).split())
    assert "✗ compiler" in text and doctor.compiler_advice() in text


def test_it_fits_80_columns_and_keeps_commands_whole(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name, *_: None)
    told = str(nonlin.doctor())
    assert max(len(line) for line in told.splitlines() if not line.startswith(("✓", "✗"))) <= 80, told
    for extra in doctor.EXTRAS:
        assert f"To get it: pip install 'nonlin[{extra}]'\n" in f"{told}\n"


@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows", "Plan9"])
def test_every_system_has_an_advice(monkeypatch, system):
    monkeypatch.setattr(doctor.platform, "system", lambda: system)
    assert doctor.compiler_advice()


def test_the_command_prints_json_and_its_status_is_a_finding():
    done = CliRunner().invoke(program, ["doctor", "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == (1 if told["grade"] == "serious" else 0)
    assert told["nonlin"] == nonlin.__version__ and any(part["name"] == "kernels" for part in told["parts"])


def test_a_compiler_that_says_nothing_is_no_mistake(tmp_path):
    assert build.version(str(tmp_path / "none")) == ""
    (tmp_path / "silent").write_text("#!/bin/sh\n")
    (tmp_path / "silent").chmod(0o755)
    assert build.version(str(tmp_path / "silent")) == ""
