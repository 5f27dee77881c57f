"""The public surface: what ``dir`` shows, what a type checker sees, and that both are the same."""

import ast
import importlib
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import nonlin

SOURCE = Path(nonlin.__file__).parent
LAZY = [f"nonlin.{path.parent.name}" if path.parent != SOURCE else "nonlin"
        for path in sorted([SOURCE / "__init__.py", *SOURCE.glob("*/__init__.py")])
        if "_lazy.attributes" in path.read_text()]

SCRIPT = '''
from pathlib import Path

import torch

import nonlin
from nonlin.errors import UserError

study = nonlin.compare(data="my_corpus/", activations=["gelu", "swiglu", "mine=x*sigmoid(2*x)"], minutes=10)
reveal_type(study)
reveal_type(study.verdicts["swiglu"].difference)
difference = study.verdicts["swiglu"].difference
if difference is not None:
    reveal_type(difference.mean)
reveal_type(study.verdicts["swiglu"].verdict)
reveal_type(study.runs()[0].bits_per_byte)
reveal_type(study.open_report())
reveal_type(study.model("swiglu"))
reveal_type(nonlin.load_study("runs/default").results.advice)
reveal_type(nonlin.claims([1, 6]).verdicts[1].summary)
reveal_type(nonlin.get("swiglu").name)
block = nonlin.nn.FeedForward(64, 256, "swiglu")
reveal_type(block)
reveal_type(nonlin.functional.gelu(torch.zeros(3)))
reveal_type(nonlin.UserError("a mistake"))
'''
SEEN = ["Study", "Difference | None", "float", 'Literal[', "float | None", "Path", "LanguageModel", "str", "str",
        "str", "FeedForward", "Tensor", "UserError"]


def test_dir_shows_the_public_names_and_no_more():
    assert dir(nonlin) == sorted(nonlin.__all__) and len(set(nonlin.__all__)) == len(nonlin.__all__)
    assert {"compare", "load_study", "claims", "advise", "check", "Study"} <= set(dir(nonlin))
    for name in dir(nonlin):
        assert getattr(nonlin, name) is not None
    assert not [name for name in dir(nonlin) if name.startswith("_") and name != "__version__"]
    with pytest.raises(AttributeError, match="no attribute 'comparisons'"):
        nonlin.comparisons  # noqa: B018


@pytest.mark.parametrize("package", LAZY)
def test_a_type_checker_sees_the_names_that_load_on_first_use(package):
    """The imports under TYPE_CHECKING, the table of homes and __all__ name the same, from the same modules."""
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text())
    (checking,) = [node for node in tree.body if isinstance(node, ast.If) and getattr(node.test, "id", "") ==
                   "TYPE_CHECKING"]
    seen = {alias.asname or alias.name: node.module for node in checking.body if isinstance(node, ast.ImportFrom)
            for alias in node.names}
    for name in module.__all__:
        assert hasattr(module, name), name
        if name in seen and seen[name] != package:
            there = getattr(importlib.import_module(seen[name]), name)
            assert there is getattr(module, name) or name == "ClaimsPackage"
    lazy = set(module._HOMES)
    assert lazy <= set(seen) and lazy <= set(module.__all__)
    assert dir(module) == sorted(module.__all__)


def test_importing_loads_no_torch():
    program = ("import sys, nonlin; nonlin.compare, nonlin.load_study, nonlin.claims, nonlin.Study, nonlin.define; "
               "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules, 'loaded'")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_small_script_type_checks(tmp_path):
    """Strictly, and with the types that its author expects: py.typed is there and the stubs of the names are right."""
    assert (SOURCE / "py.typed").exists()
    pyright = shutil.which("pyright", path=sysconfig.get_path("scripts")) or shutil.which("pyright")
    if pyright is None:
        pytest.skip("pyright is not installed")
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(
        {"typeCheckingMode": "strict", "extraPaths": [str(SOURCE.parent)], "pythonVersion": "3.11",
         "reportUnusedImport": False}))
    done = subprocess.run([pyright, "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)],
                          capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert not [d["message"] for d in found if d["severity"] != "information"]
    revealed = [d["message"] for d in found if d["message"].startswith("Type of")]
    assert len(revealed) == len(SEEN)
    for message, words in zip(revealed, SEEN, strict=True):
        assert message.split(' is "', 1)[1].startswith(words), message
