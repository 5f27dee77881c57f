"""One line in the catalog, as docs/how-to/activation.md has it, gives values, gradients, a kernel and its accuracy."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nonlin.kernels.cpu import build

ROOT = Path(__file__).parents[2]
SCRIPT = """
import importlib.util, sys
import numpy as np, torch
from nonlin import functional, kernels
from nonlin.functions import describe, get
from nonlin.functions.reference import evaluate

print(kernels.explain("serf"))
definition = get("serf")
assert describe(definition)["properties"]["smoothness"] == "smooth"
x = torch.linspace(-6, 6, 50, dtype=torch.float64, requires_grad=True)
assert torch.autograd.gradcheck(functional.serf, (x,)) and torch.autograd.gradgradcheck(functional.serf, (x,))
points = torch.linspace(-30, 12, 301)
exact = np.array([float(evaluate(definition, float(p))) for p in points])
ulp = np.exp2(np.floor(np.log2(np.maximum(np.abs(exact), 2.0**-126))) - 23)
off = np.abs(functional.serf(points).double().numpy() - exact) / ulp
assert off.max() <= 4, (off.max(), float(points[off.argmax()]))
sixteen = functional.serf(points.bfloat16())
assert torch.equal(sixteen, torch.tensor([float(evaluate(definition, float(p))) for p in points.bfloat16()]).bfloat16())
"""


@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
def test_one_line_gives_an_activation_everything(tmp_path):
    (line,) = re.findall(r"^SERF = .*$", (ROOT / "docs" / "how-to" / "activation.md").read_text(), re.M)
    copy = tmp_path / "src" / "nonlin"
    shutil.copytree(ROOT / "src" / "nonlin", copy, ignore=shutil.ignore_patterns("__pycache__"))
    catalog = copy / "functions" / "catalog.py"
    text = catalog.read_text().replace("import (\n    Phi,", "import (\n    Phi,\n    erf,")
    catalog.write_text(text.replace("\nSOLU = ", f"\n{line}\nSOLU = "))
    env = os.environ | {"PYTHONPATH": str(tmp_path / "src"), "NONLIN_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "serf: compiled" in done.stdout
