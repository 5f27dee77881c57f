"""``nonlin.doctor``: what this machine has for nonlin, what is missing, and how to get it."""

import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterable
from typing import Literal

from nonlin.errors import near
from nonlin.paragraphs import wrapped
from nonlin.records import Record

_WIDTH = 80
_PACKAGES = {"sklearn": "scikit-learn", "mlflow": "mlflow-skinny"}  # that have another name than their module
#: By extra: the modules that it brings, and what it is for.
EXTRAS = {
    "hf": (("transformers", "gguf", "accelerate"), "models of Hugging Face and GGUF files"),
    "gpu": (("triton",), "kernels on a GPU"),
    "pandas": (("pandas",), "Study.to_pandas()"),
    "claims": (("sklearn",), "the claims about images"),
    "ray": (("ray",), "--engine ray"),
    "slurm": (("submitit",), "--engine slurm"),
    "wandb": (("wandb",), "--track wandb"),
    "mlflow": (("mlflow", "sqlalchemy", "alembic"), "--track mlflow"),
    "tensorboard": (("tensorboard",), "--track tensorboard"),
    "trackio": (("trackio",), "--track trackio"),
}
COMPILER = {
    "Linux": "apt-get install g++, dnf install gcc-c++ or pacman -S gcc",
    "Darwin": "xcode-select --install",
    "Windows": "use WSL: nonlin compiles with GCC or clang alone",
}


class Part(Record, frozen=True, kw_only=True):
    """One thing looked at: whether it is here, what was found, what it is for, and how to get it."""

    name: str
    here: bool
    found: str
    serves: str
    remedy: str | None = None


class Doctor(Record, frozen=True, kw_only=True):
    """The parts of a machine that nonlin uses. ``grade`` is "serious" where something missing makes it slow."""

    nonlin: str
    python: str
    torch: str | None
    system: str
    processor: str
    cores: int
    memory_bytes: int | None
    parts: list[Part]
    grade: Literal["fine", "serious"]

    def part(self, name: str) -> Part:
        """Return the part of that name; KeyError where there is none."""
        for one in self.parts:
            if one.name == name:
                return one
        raise KeyError(f"no part {name!r}; near: {', '.join(near(name, (p.name for p in self.parts)))}")

    def __str__(self) -> str:
        memory = "" if self.memory_bytes is None else f", {self.memory_bytes / 2**30:.1f} GiB of memory free"
        lines = [f"nonlin {self.nonlin}, Python {self.python}, torch {self.torch or 'not installed'}, {self.system}",
                 f"{self.processor}, {self.cores} cores{memory}", ""]
        width = max(len(p.name) for p in self.parts)
        for p in self.parts:
            lines.append(f"{'✓' if p.here else '✗'} {p.name:<{width}}  {p.found}")
            if not p.here:
                said = [f"For {p.serves}.", *([f"To get it: {p.remedy}"] if p.remedy else [])]
                lines += [f"  {'':<{width}}  {line}" for line in said]
        return wrapped("\n".join(lines), _WIDTH)


def doctor() -> Doctor:
    """Return what is here for nonlin: compiler, instruction set, kernels, GPU, extras; and how to get what is missing.

    Compiles the small kernel of one activation, and the transformer's, where they are not compiled yet.

    >>> found = doctor()
    >>> found.part("instruction set").here, found.grade in ("fine", "serious")
    (True, True)
    """
    from nonlin import __version__
    from nonlin.training.resources import available_memory_bytes, processor, usable_cores

    torch = _version("torch")
    named = processor()
    parts = [_compiler(), _instruction_set(named["instructions"]), *(_kernels() if torch else []), *_gpu(torch),
             *_extras()]
    slow = any(not part.here for part in parts if part.name in ("kernels", "transformer kernels"))
    return Doctor(nonlin=__version__, python=platform.python_version(), torch=torch, system=platform.platform(),
                  processor=named["name"], cores=usable_cores(), memory_bytes=available_memory_bytes(), parts=parts,
                  grade="serious" if slow else "fine")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _compiler() -> Part:
    from nonlin.kernels.cpu import build

    path = build.compiler()
    version = "none of g++, c++ and clang++ is on the PATH" if path is None else f"{path}, {build.version(path)}"
    return Part(name="compiler", here=path is not None, found=version, remedy=compiler_advice(),
                serves="kernels of formulas of your own, and of the small model; all others come with the package")


def compiler_advice() -> str:
    """Return how to get a C++ compiler on this system."""
    return COMPILER.get(platform.system(), "install GCC or clang")


def _instruction_set(instructions: Iterable[str]) -> Part:
    return Part(name="instruction set", here=True, found=", ".join(instructions) or f"{platform.machine()}, no vectors "
                "known", serves="speed")


def _kernels() -> list[Part]:
    from nonlin.kernels import explain
    from nonlin.kernels.cpu import build
    from nonlin.kernels.transformer import native

    says = explain("swiglu")
    transformer = native.library() is not None
    without = f"a compiler ({compiler_advice()})" if build.compiler() is None else "see the reason"
    return [
        Part(name="kernels", here=says.backend == "compiled", found=says.reason, remedy=without,
             serves="fast activations and feed-forward blocks on the CPU; torch computes instead"),
        Part(name="transformer kernels", here=transformer, found="compiled for this processor" if transformer else
             native.unavailable(), remedy=without, serves="fast training of the small model; torch computes instead")]


def _gpu(torch: str | None) -> list[Part]:
    if torch is None:
        return []
    import torch as library

    here = library.cuda.is_available()
    names = [library.cuda.get_device_name(i) for i in range(library.cuda.device_count())] if here else []
    built = library.version.cuda or library.version.hip
    found = ", ".join(names) if here else ("none that torch can use" if built else
                                           "none, and this torch is built for the CPU alone")
    return [Part(name="GPU", here=here, found=found, serves="larger models",
                 remedy="a machine with one, and a torch that is built for it (pytorch.org/get-started)")]


def _extras() -> list[Part]:
    parts: list[Part] = []
    for extra, (modules, serves) in EXTRAS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        versions = [f"{m} {_version(_PACKAGES.get(m, m)) or ''}".strip() for m in modules
                    if m not in missing]
        parts.append(Part(name=f"nonlin[{extra}]", here=not missing, serves=serves,
                          remedy=f"pip install 'nonlin[{extra}]'", found=", ".join(versions) if not missing else
                          f"{', '.join(missing)} not installed"))
    return parts
