"""Compile our C++ for this machine's processor into a cache. The result links no torch library.

The cache runs in this process. Its folder is ours alone, and a library is loaded only if its content has
the hash that its name ends with.
"""

import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from nonlin.files import only_ours, private_folder, sync
from nonlin.kernels.codegen import cpp
from nonlin.system import end_group

# No -ffast-math: it breaks infinities, nan and error terms.
_COMMON = ("-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-g0")
FLAGS = ("-O3", "-shared", "-ffp-contract=fast", *_COMMON)
# Activation kernels: fused multiply-adds are explicit; contraction would invalidate error terms.
_LONG_SOURCE = 3500  # characters, of a kernel that is compiled at first use
KERNEL_FLAGS = ("-O2", "-ffp-contract=off", *_COMMON)
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
ISAS = {"portable": (), "avx2": _AVX2, "avx512": _AVX512, "avx512bf16": (*_AVX512, "-mavx512bf16")}
"""Instruction sets of the catalog's kernels on x86, with their compiler flags."""
FAILURES = (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired)

SECONDS = 600.0
"""The time limit of a compiler for one library; ours takes some seconds, and beside other work minutes."""


def cache_folder() -> Path:
    """Return the folder of compiled kernels: NONLIN_CACHE, or the user's cache folder.

    >>> cache_folder().name
    'nonlin'
    """
    if os.environ.get("NONLIN_CACHE"):
        return Path(os.environ["NONLIN_CACHE"]) / "nonlin"
    from platformdirs import user_cache_path  # here: the kernels are built before it is installed

    return user_cache_path("nonlin", appauthor=False)


def _processor() -> str:
    # -march=native depends on the processor: machines that share a home folder must not share kernels.
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
    except OSError:
        return platform.processor() or platform.machine()


def compiler() -> str | None:
    """Return the C++ compiler's path: CXX, else g++, c++ or clang++; None if there is none."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    return None


def version(command: str) -> str:
    """Return the first line of what a compiler says of itself, or an empty text."""
    try:
        return (_run([command, "--version"]).splitlines() or [""])[0]
    except FAILURES:
        return ""


def interleaving(command: str) -> tuple[str, ...]:
    """Return the flags that make a C++ compiler interleave independent chains of instructions.

    GCC needs them; clang interleaves by default and rejects them.
    """
    try:
        version = _run([command, "--version"])
    except FAILURES:
        return ()
    return ("-fschedule-insns", "-fsched-pressure") if "Free Software Foundation" in version else ()


def including(headers: Iterable[Path]) -> list[str]:
    """Return the flags that find these headers by quotes only, so that math.h never replaces the system's."""
    return [flag for folder in dict.fromkeys(header.parent for header in headers) for flag in ("-iquote", str(folder))]


class NoCompiler(OSError):
    """There is no C++ compiler on the PATH."""


@functools.cache
def _say_once() -> None:
    warnings.warn("no C++ compiler (g++, c++ or clang++) is on the PATH: torch computes what did not come compiled "
                  "with the package, which is slower. `nonlin doctor` says how to get one.", stacklevel=2)


def compile_shared(source: str, name: str, flags: tuple[str, ...], headers: Sequence[Path]) -> Path:
    """Compile C++ text to a shared object in the cache and return its path; a second call compiles nothing.

    Raises one of FAILURES if it cannot be built.
    """
    command = compiler()
    if command is None:
        _say_once()
        raise NoCompiler("no C++ compiler (g++, c++ or clang++) on the PATH")
    included = "".join(header.read_text("utf-8") for header in headers)
    text = "\0".join((source, included, _run([command, "--version"]), " ".join(flags), _processor()))
    folder = private_folder(cache_folder())
    # A definition's name comes from a user, or from a model's file: it leads to no other folder.
    stem = f"{re.sub('[^A-Za-z0-9_-]', '_', name)[:60]}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"
    for found in sorted(folder.glob(f"{stem}-*.so")):
        if only_ours(found) and found.name == f"{stem}-{_digest(found)}.so":
            return found
        with contextlib.suppress(OSError):
            found.unlink()  # cut by a full disk, or not made by us: it is compiled anew
    with tempfile.TemporaryDirectory(dir=folder) as work:
        code, made = Path(work) / "source.cpp", Path(work) / "out.so"
        code.write_text(source, "utf-8")
        _run([command, *flags, *including(headers), str(code), "-o", str(made)])
        made.chmod(0o700)
        sync(made)
        target = folder / f"{stem}-{_digest(made)}.so"
        os.replace(made, target)  # two processes may build at once: the last one wins, both files are whole
    sync(folder)
    return target


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:40]


def _run(command: Sequence[str]) -> str:
    """Return what a compiler printed. One that takes too long is ended, with the processes that it started."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               errors="replace", start_new_session=True)
    try:
        out, err = process.communicate(timeout=SECONDS)
    except BaseException:
        end_group(process)
        process.communicate()
        raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, out, err)
    return out


def reason(error: Exception) -> str:
    """Return why a build failed, in a line."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"the compiler failed: {(error.stderr or '').strip()[-400:]}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"the compiler took more than {error.timeout:g} seconds"
    return str(error)


def forced_isa() -> str | None:
    """Return the instruction set forced by NONLIN_ISA (for tests and measurements), or None."""
    return os.environ.get("NONLIN_ISA") or None


def target() -> tuple[str, ...]:
    """Return the compiler's flags for this processor, or for the instruction set in NONLIN_ISA."""
    return ISAS.get(forced_isa() or "", ("-march=native",))


def compile_kernel(source: str, name: str) -> Path:
    """Compile one activation's kernel for this processor, or for the instruction set in NONLIN_ISA."""
    # A long formula's kernel is compiled with less search, which halves its cost and changes no result.
    effort = ("-O1", *KERNEL_FLAGS[1:]) if len(source) > _LONG_SOURCE else \
        (*KERNEL_FLAGS, *interleaving(compiler() or ""))
    flags = (*effort, "-shared", *target())
    return compile_shared(source, name, flags, cpp.HEADERS)


def installed_library() -> Path | None:
    """Return the catalog's library that was built at install, or None."""
    return next(iter(sorted(Path(__file__).parent.glob("_catalog*.so"))), None)
