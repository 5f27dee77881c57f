"""Compile our C++ for this machine's processor into a cache. The result links no torch library."""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from nonlin.kernels.codegen import cpp

# No -ffast-math: it breaks infinities, nan and error terms.
_COMMON = ("-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-g0")
FLAGS = ("-O3", "-march=native", "-shared", "-ffp-contract=fast", *_COMMON)
# Activation kernels: fused multiply-adds are explicit; contraction would invalidate error terms.
KERNEL_FLAGS = ("-O2", "-ffp-contract=off", *_COMMON)
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
ISAS = {"portable": (), "avx2": _AVX2, "avx512": _AVX512, "avx512bf16": (*_AVX512, "-mavx512bf16")}
"""Instruction sets of the catalog's kernels on x86, with their compiler flags."""
FAILURES = (OSError, subprocess.CalledProcessError)


def cache_folder() -> Path:
    """Return the folder of compiled kernels: NONLIN_CACHE, or the user's cache folder.

    >>> cache_folder().name
    'nonlin'
    """
    if os.environ.get("NONLIN_CACHE"):
        return Path(os.environ["NONLIN_CACHE"]) / "nonlin"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nonlin"


def _processor() -> str:
    # -march=native depends on the processor: machines that share a home folder must not share kernels.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
    except OSError:
        return platform.processor() or platform.machine()


def compiler() -> str | None:
    """Return the C++ compiler's path: CXX, else g++, c++ or clang++; None if there is none."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    return None


def interleaving(command: str) -> tuple[str, ...]:
    """Return the flags that make a C++ compiler interleave independent chains of instructions.

    GCC needs them; clang interleaves by default and rejects them.
    """
    try:
        version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    except FAILURES:
        return ()
    return ("-fschedule-insns", "-fsched-pressure") if "Free Software Foundation" in version else ()


def including(headers: Iterable[Path]) -> list[str]:
    """Return the flags that find these headers by quotes only, so that math.h never replaces the system's."""
    return [flag for folder in dict.fromkeys(header.parent for header in headers) for flag in ("-iquote", str(folder))]


def compile_shared(source: str, name: str, flags: tuple[str, ...], headers: Sequence[Path]) -> Path:
    """Compile C++ text to a shared object in the cache and return its path; a second call compiles nothing.

    Raises one of FAILURES if it cannot be built.
    """
    command = compiler()
    if command is None:
        raise OSError("no C++ compiler (g++, c++ or clang++) on the PATH")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    included = "".join(header.read_text() for header in headers)
    text = "\0".join((source, included, version, " ".join(flags), _processor()))
    target = cache_folder() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        code, made = Path(folder) / f"{name}.cpp", Path(folder) / "out.so"
        code.write_text(source)
        subprocess.run([command, *flags, *including(headers), str(code), "-o", str(made)],
                       capture_output=True, text=True, check=True)
        os.replace(made, target)  # two processes may build at once: the last one wins, both files are whole
    return target


def reason(error: Exception) -> str:
    """Return why a build failed, in a line."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"the compiler failed: {(error.stderr or '').strip()[-400:]}"
    return str(error)


def forced_isa() -> str | None:
    """Return the instruction set forced by NONLIN_ISA (for tests and measurements), or None."""
    return os.environ.get("NONLIN_ISA") or None


def compile_kernel(source: str, name: str) -> Path:
    """Compile one activation's kernel for this processor, or for the instruction set in NONLIN_ISA."""
    wanted = forced_isa()
    target = ISAS.get(wanted, ("-march=native",)) if wanted else ("-march=native",)
    flags = (*KERNEL_FLAGS, *interleaving(compiler() or ""), "-shared", *target)
    return compile_shared(source, name, flags, cpp.HEADERS)


def installed_library() -> Path | None:
    """Return the catalog's library that was built at install, or None."""
    return next(iter(sorted(Path(__file__).parent.glob("_catalog*.so"))), None)
