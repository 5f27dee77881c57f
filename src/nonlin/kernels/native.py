"""Compiling and calling our C++: built once for this machine's processor, kept in a cache, called through pointers.

The shared object links no torch library. Where no compiler is present :func:`library` returns None with the
reason in :func:`unavailable`, and callers compute with torch instead.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

# No -ffast-math: infinities and nan keep their meaning, and rounding tricks survive.
_COMMON = ("-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-g0")
FLAGS = ("-O3", "-march=native", "-shared", "-ffp-contract=fast", *_COMMON)
# Kernels of activations: what is fused is written so, or the parts of an exact sum would be rounded apart.
KERNEL_FLAGS = ("-O2", "-ffp-contract=off", *_COMMON)
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
ISAS = {"portable": (), "avx2": _AVX2, "avx512": _AVX512, "avx512bf16": (*_AVX512, "-mavx512bf16")}
"""Instruction sets that the catalog's kernels are compiled for on x86, and the flags of each."""
FAILURES = (OSError, subprocess.CalledProcessError)
SOURCES = ("native_simd.h", "native_gemm.h", "native_math.h", "native.cpp")


class Shape(ctypes.Structure):
    """The C++ struct of the same name: sizes of one attention call."""

    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "time", "heads", "kv_heads", "width")]


def cache_folder() -> Path:
    """Return where compiled kernels are kept: NONLIN_CACHE, or the user's cache folder.

    >>> cache_folder().name
    'nonlin'
    """
    if os.environ.get("NONLIN_CACHE"):
        return Path(os.environ["NONLIN_CACHE"]) / "nonlin"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nonlin"


def _processor() -> str:
    # -march=native depends on the processor: a home folder shared by two machines must not mix them up.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
    except OSError:
        return platform.processor() or platform.machine()


def compiler() -> str | None:
    """Return the C++ compiler's path: CXX, else g++, c++ or clang++; None where there is none."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    return None


def weaving(command: str) -> tuple[str, ...]:
    """Return the flags by which a C++ compiler weaves independent chains of instructions into each other.

    GCC has to be asked; clang does so of itself and knows no such flags.
    """
    try:
        version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    except FAILURES:
        return ()
    return ("-fschedule-insns", "-fsched-pressure") if "Free Software Foundation" in version else ()


def build(source: str, name: str, flags: tuple[str, ...], headers: tuple[str, ...]) -> Path:
    """Compile C++ text to a shared object in the cache and return its path; a second call compiles nothing.

    Raises one of FAILURES where it cannot be built.
    """
    command = compiler()
    if command is None:
        raise OSError("no C++ compiler (g++, c++ or clang++) on the PATH")
    includes = Path(__file__).parent
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    included = "".join((includes / header).read_text() for header in headers)
    text = "\0".join((source, included, version, " ".join(flags), _processor()))
    target = cache_folder() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        code, made = Path(folder) / f"{name}.cpp", Path(folder) / "out.so"
        code.write_text(source)
        subprocess.run([command, *flags, f"-I{includes}", str(code), "-o", str(made)],
                       capture_output=True, text=True, check=True)
        os.replace(made, target)  # two processes may build at once: the last one wins, both are whole
    return target


def reason(error: Exception) -> str:
    """Return why a build failed, in a line."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"the compiler failed: {(error.stderr or '').strip()[-400:]}"
    return str(error)


def forced_isa() -> str | None:
    """Return the instruction set that NONLIN_ISA asks for, for tests and measurements, or None."""
    return os.environ.get("NONLIN_ISA") or None


def build_kernel(source: str, name: str) -> Path:
    """Compile the kernel of one activation for this processor, or for the instruction set NONLIN_ISA asks for."""
    from nonlin.kernels.generate import HEADERS

    wanted = forced_isa()
    target = ISAS.get(wanted, ("-march=native",)) if wanted else ("-march=native",)
    return build(source, name, (*KERNEL_FLAGS, *weaving(compiler() or ""), "-shared", *target), HEADERS)


def installed_library() -> Path | None:
    """Return the catalog's kernels as built when the package was installed, or None where they were not."""
    return next(iter(sorted(Path(__file__).parent.glob("_catalog*.so"))), None)


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("NONLIN_NATIVE") == "0":
        return None, "NONLIN_NATIVE=0"
    here = Path(__file__).parent
    try:
        made = ctypes.CDLL(str(build((here / "native.cpp").read_text(), "native", FLAGS, SOURCES)))
    except FAILURES as error:
        return None, reason(error)
    i, p, f = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
    made.nl_gemm.argtypes = [i, i, i, p, i, i, p, i, i, p, i, ctypes.c_int]
    made.nl_rms_norm.argtypes = [i, i, f, p, p, p, p]
    made.nl_rms_norm_backward.argtypes = [i, i, p, p, p, p, p, p]
    made.nl_cross_entropy.argtypes = [i, i, p, p, p]
    made.nl_cross_entropy.restype = ctypes.c_double
    made.nl_attention.argtypes = [Shape, f, *[p] * 9]
    made.nl_attention_backward.argtypes = [Shape, f, *[p] * 14]
    return made, ""


def library() -> ctypes.CDLL | None:
    """Return the compiled library, built on the first call, or None where it cannot be had."""
    return _load()[0]


def unavailable() -> str:
    """Return why :func:`library` returned None, or an empty text."""
    return _load()[1]
