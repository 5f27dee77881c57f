"""The wheel holds everything, and the program runs from it where the sources are not."""

import json
import os
import shutil
import site
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", minversion="77")
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    # Offline: what builds it must be here already
    _run(sys.executable, "-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps", "--no-index", "-q", "-w",
         "made", cwd=tree)
    (made,) = (tree / "made").iterdir()
    return made


def test_the_wheel_holds_every_file_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "nonlin").rglob("*")
               if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".pyc", ".so")}
    assert {name for name in names if name.startswith("nonlin/")} == sources
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel, and the options to run programs there."""
    tmp_path = tmp_path_factory.mktemp("installed")
    place = tmp_path / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", place)
    _run(sys.executable, "-m", "pip", "--python", place, "install", "--no-deps", "--no-index", "-q", wheel)
    folders = [p for p in (*site.getsitepackages(), *sys.path) if p.rstrip("/").endswith("site-packages")]
    (inside,) = place.glob("lib/python*/site-packages")
    # Everything else that is installed here, after the wheel; the sources are not reached through it.
    (inside / "others.pth").write_text("\n".join(dict.fromkeys(folders)) + "\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"NONLIN_CACHE": str(tmp_path)}
    return place, {"cwd": tmp_path, "env": environment}


def test_the_program_runs_from_the_wheel(installed):
    place, options = installed
    python, program = place / "bin" / "python", place / "bin" / "nonlin"
    where = _run(python, "-c", "import nonlin, nonlin.kernels.transformer.native as n, nonlin.report.explorer as p;"
                 "assert all(path.stat().st_size for path in n.SOURCES);"
                 "p.environment().get_template('report.html'); print(nonlin.__file__)", **options)
    assert Path(where.strip()).is_relative_to(place)
    told = json.loads(_run(program, "show", "swiglu", "--json", **options))
    assert told["formula"] == "gate*up*sigmoid(gate)"
    assert _run(python, "-m", "nonlin", "--version", **options) == _run(program, "--version", **options)


def test_a_wheel_without_kernels_fails_its_test_where_a_compiler_is_to_be_had(installed):
    """The commands with which cibuildwheel tests each wheel, on this one, which has no kernels and then has them."""
    place, options = installed
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    alone = {"PATH": str(place / "bin"), "OMP_NUM_THREADS": "1"}  # no compiler: nothing is compiled at first use
    options = options | {"env": {k: v for k, v in options["env"].items() if k != "CXX"} | alone}

    def tested(command):
        return subprocess.run(command, shell=True, capture_output=True, text=True, timeout=240, **options)

    anywhere, here = tested(config["test-command"]), tested(config["linux"]["test-command"])
    assert anywhere.returncode == 0 and "0.7311" in anywhere.stdout, anywhere.stderr
    assert here.returncode != 0 and "this wheel has no kernels" in here.stderr
    assert config["macos"]["test-command"] == config["linux"]["test-command"]
    (kernels,) = place.glob("lib/python*/site-packages/nonlin/kernels/cpu")
    built = list((ROOT / "src" / "nonlin" / "kernels" / "cpu").glob("_catalog*.so"))
    if not built:
        pytest.skip("no kernels were built here")
    shutil.copy(built[0], kernels)
    whole = tested(config["linux"]["test-command"])
    assert whole.returncode == 0 and "0.7311" in whole.stdout, whole.stderr
