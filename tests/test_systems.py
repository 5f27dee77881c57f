"""Nothing needs what Windows or macOS lack: modules load, and the pure paths work, with those names taken away."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "nonlin"

# Others' libraries look at sys.platform, which stays: they are loaded first. For nonlin alone, modules of one system
# cannot be imported, /proc and /sys cannot be read, and the names that Windows lacks are gone.
TAKEN_AWAY = """
import builtins, errno, importlib, os, pkgutil, platform, signal, sys, sysconfig
import click, filelock, matplotlib.figure, msgspec, numpy, pyarrow, rich.console, scipy.stats, sympy, torch
import torch._dynamo, torch.distributed, torch.utils.checkpoint, tokenizers, zstandard, safetensors.torch

SYSTEM = sys.argv[1]
LACKED = {"fcntl", "termios", "pwd", "grp", "resource", "posix", "syslog"}
if SYSTEM == "Darwin":
    LACKED = set()
real = builtins.__import__

def no_other_systems_module(name, globals=None, *rest, **more):
    if name in LACKED and str((globals or {}).get("__name__")).startswith("nonlin"):
        raise ModuleNotFoundError(f"No module named {name!r}")
    return real(name, globals, *rest, **more)

builtins.__import__ = no_other_systems_module
LINUX = ("sched_getaffinity", "sched_setaffinity", "pidfd_open", "memfd_create", "posix_fadvise")
UNIX = ("fork", "killpg", "setsid", "getpgid", "fchown", "mkfifo", "getloadavg",
        "O_DIRECTORY", "statvfs", "chown", "nice", "ttyname")
for name in (*LINUX, *(UNIX if SYSTEM == "Windows" else ())):
    if hasattr(os, name):
        delattr(os, name)
if SYSTEM == "Windows":
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGALRM", "alarm", "setitimer", "pause"):
        if hasattr(signal, name):
            delattr(signal, name)
    del errno.EDQUOT
platform.system = lambda: SYSTEM
platform.machine = lambda: {"Windows": "AMD64", "Darwin": "arm64"}[SYSTEM]

def hidden(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)) and os.fsdecode(arguments[0]).startswith(
            ("/proc/", "/sys/")):
        raise FileNotFoundError(errno.ENOENT, "not on this system", arguments[0])

sys.addaudithook(hidden)
"""

MODULES = TAKEN_AWAY + """
import nonlin
loaded = []
for found in pkgutil.walk_packages(nonlin.__path__, "nonlin."):
    if found.name.rsplit(".", 1)[-1] in ("__main__", "_catalog"):
        continue
    try:
        importlib.import_module(found.name)
        loaded.append(found.name)
    except ModuleNotFoundError as error:
        if error.name not in ("ray", "triton", "submitit", "transformers", "wandb", "mlflow", "tensorboard", "trackio"):
            raise
    except ImportError as error:
        if not str(error.name).startswith("nonlin"):  # a name of our own is not the system's
            raise
print(len(loaded))
"""

PATHS = TAKEN_AWAY + """
import pathlib
os.environ["NONLIN_NATIVE"] = "0"  # no kernels there
import nonlin
from nonlin import files, system
from nonlin.kernels.cpu import build
from nonlin.study.engines import worker_process
from nonlin.training import machine, resources

here = pathlib.Path(sys.argv[2])
files.write_json(here / "a.json", {"a": 1})
assert files.read_json(here / "a.json") == {"a": 1}
assert files.private_folder(here / "cache") == here / "cache" and files.only_ours(here / "a.json")
with files.lock(here / ".lock") as ours:
    assert ours
files.sync(here)
machine.reset_peak_memory()
assert machine.peak_memory_bytes() > 0 or SYSTEM == "Windows"
assert resources.usable_cores() >= 1 and resources.workers_that_fit(2**30, cores=3) == 3
assert resources.processor()["name"] and resources.available_memory_bytes() is None
assert build.version(sys.executable)

class Gone:
    def last_words(self): return ""
    def end(self): return 1
assert worker_process.fate(Gone(), True)[0] == "lost"
x = torch.linspace(-3, 3, 9)
assert torch.allclose(nonlin.nn.Activation("silu")(x), torch.nn.functional.silu(x), atol=1e-6)
assert nonlin.nn.FeedForward(8, 16, "swiglu")(torch.zeros(2, 8)).shape == (2, 8)
doctor = nonlin.doctor()
assert doctor.part("compiler").remedy and str(doctor)

from tests.study import studies
found = studies.run(here / "study", studies.plan("gelu", "silu"))
assert found["status"] == "complete"
study = nonlin.load_study(here / "study")
assert "gelu" in str(study) and study.write_runs().exists()
print("fine")
"""


LACKED = {"os": {"fork", "killpg", "setsid", "getuid", "geteuid", "getgid", "fchmod", "mkfifo", "getloadavg", "sysconf",
                 "uname", "O_NONBLOCK", "O_DIRECTORY", "sched_getaffinity", "statvfs"},
          "signal": {"SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGALRM", "alarm"}}


def test_such_names_have_one_home():
    """What a system lacks is asked for in system.py alone."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in LACKED.get(
                    node.value.id, ()):
                found.append((path.name, node.attr))
    # A job of SLURM runs where SLURM runs.
    assert found and {name for name, _ in found} - {"slurm_job.py"} == {"system.py"}, found


def in_a_process(code, *arguments):
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])  # tests share helpers
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
                          timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("system", ["Windows", "Darwin"])
def test_every_module_loads(system):
    assert int(in_a_process(MODULES, system)) > 150


@pytest.mark.parametrize("system", ["Windows", "Darwin"])
def test_the_pure_paths_work(system, tmp_path):
    assert "fine" in in_a_process(PATHS, system, tmp_path)
