"""Find the compiled CPU kernel of an activation, and call it on tensors of any strides.

A kernel comes from the library built at install. An activation that it lacks (a user's own, or a changed formula) is
compiled at first use and cached. The lookup is by a hash of the formula and of our C++, so an outdated library is never
used.
"""

import ctypes
import functools
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonlin.errors import UserError, rule
from nonlin.functions import Definition
from nonlin.kernels import operands
from nonlin.kernels.codegen import cpp
from nonlin.kernels.cpu import build
from nonlin.kernels.torch.backend import reduce_to

CODES = {dtype: k for k, dtype in enumerate(operands.DTYPES)}
_HALF = (torch.float16, torch.bfloat16)
PIECE = 16384
"""The smallest chunk of one thread in elements, as in driver.h."""


@dataclass(frozen=True)
class Kernel:
    """The compiled kernel of one definition: its library, the address of its entry, and its origin."""

    library: ctypes.CDLL
    entry: int
    isa: str
    origin: str


def _open(path: Path) -> ctypes.CDLL:
    made = ctypes.CDLL(str(path))
    i, p = ctypes.c_int64, ctypes.c_void_p
    made.nl_isa.restype, made.nl_isa.argtypes = ctypes.c_char_p, [ctypes.c_int]
    made.nl_here.argtypes = [ctypes.c_int]
    made.nl_find.restype, made.nl_find.argtypes = p, [ctypes.c_int, ctypes.c_char_p]
    for function in (made.nl_value, made.nl_slopes):
        function.argtypes = [p, ctypes.c_int, p]
    made.nl_flat.argtypes = [p, ctypes.c_int, i, p, p, p, p]
    made.nl_flat_slopes.argtypes = [p, ctypes.c_int, i, p, p, p, p, p, p, p, p]
    made.nl_shared.argtypes = [p, ctypes.c_int, i, p, p, p, p, p, p, i, p]
    for address in (made.nl_function, made.nl_slopes_function):
        address.restype, address.argtypes = p, [p, ctypes.c_int]
    for function in (made.nl_flat, made.nl_flat_slopes, made.nl_shared):
        function.restype = None
    return made


def _tables(library: ctypes.CDLL) -> dict[str, int]:
    """Return a library's instruction sets that this processor has, best first, with their indices."""
    found, k = {}, 0
    while name := library.nl_isa(k):
        if library.nl_here(k):
            found[name.decode()] = k
        k += 1
    return found


@functools.cache
def _installed() -> ctypes.CDLL | None:
    path = build.installed_library()
    try:
        return None if path is None else _open(path)
    except AttributeError:  # an earlier version: compile at first use
        return None


def _pick(library: ctypes.CDLL) -> tuple[str, int]:
    tables = _tables(library)
    wanted = build.forced_isa()
    if wanted and wanted not in tables and "own" not in tables:
        raise UserError(rule("NONLIN_ISA", "instruction set", f"be one of {', '.join(tables)} on this processor",
                             wanted, "Unset it to let the processor choose."))
    name = wanted if wanted in tables else next(iter(tables))
    return name, tables[name]


@functools.cache
def find(definition: Definition) -> tuple[Kernel | None, str]:
    """Return the kernel and its origin, or None and the reason."""
    if os.environ.get("NONLIN_NATIVE") == "0":
        return None, "NONLIN_NATIVE=0 turns compiled kernels off"
    identity = cpp.identity(definition).encode()
    library = _installed()
    if library is not None:
        isa, number = _pick(library)
        entry = library.nl_find(number, identity)
        if entry:
            return Kernel(library, entry, isa, "installed"), f"compiled when the package was installed, {isa}"
    try:
        cpp.struct(definition)
    except NotImplementedError as error:
        return None, f"its formula has {error}, which the generator does not support"
    try:
        library = _open(build.compile_kernel(cpp.own_library(definition), f"act-{definition.name}"))
    except build.FAILURES as error:
        return None, build.reason(error)
    isa = build.forced_isa() or "this processor's instructions"
    return Kernel(library, library.nl_find(0, identity), isa, "first use"), f"compiled at first use, {isa}"


@functools.cache
def parallel() -> int:
    """Return the address of GOMP_parallel in torch's OpenMP library, or 0 if there is none.

    Our kernels call it by this address, so the process has one thread pool.
    """
    try:
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return 0
    paths = {line.split()[-1] for line in lines if "/" in line}
    # torch's own folder first: another package may have loaded another OpenMP.
    home = str(Path(torch.__file__).parent.parent)
    for path in sorted(paths, key=lambda p: not p.startswith(home)):
        if any(part in Path(path).name for part in ("libgomp", "libiomp5", "libomp")):
            try:
                return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p).value or 0
            except (OSError, AttributeError):
                continue
    return 0


@dataclass(frozen=True)
class Dense:
    """The cheapest calls of an activation without learnable parameters, on contiguous elements of one dtype.

    ``value`` takes a count and addresses: first and second input (the same twice if there is one), result.
    ``derivatives`` takes a count and addresses: the inputs, the gradient, then three outputs: the gradients by the
    inputs (two, or one), then the value; 0 if not wanted. Both run on this thread. The ``shared`` ones serve more than
    PIECE elements, distributed over torch's threads.
    """

    value: Callable[[int, int, int, int], Any]
    derivatives: Callable[[int, int, int, int, int, int, int], Any]
    shared_value: Callable[[int, int, int, int], Any]
    shared_derivatives: Callable[[int, int, int, int, int, int, int], Any]


def without_ctypes() -> Any:
    """Return the extension module, whose calls cost less than ctypes', or None if this version has none."""
    if _installed() is None:
        return None
    try:
        return importlib.import_module("nonlin.kernels.cpu._catalog")
    except ImportError:  # built without Python's headers: a plain library
        return None


@functools.cache
def _shared(definition: Definition, dtype: torch.dtype) -> tuple[Callable[..., None], Callable[..., None]] | None:
    """Return the value's and the derivatives' calls for contiguous elements, distributed over torch's threads."""
    kernel, _ = find(definition)
    if kernel is None or dtype not in CODES:
        return None
    library, entry, code = kernel.library, kernel.entry, CODES[dtype]

    def shared_value(n: int, first: int, second: int, out: int) -> None:
        threads = torch.get_num_threads()
        library.nl_shared(entry, code, n, first, second, 0, out, 0, 0, threads, parallel() if threads > 1 else 0)

    def shared_derivatives(n: int, first: int, second: int, gradient: int, *places: int) -> None:
        threads = torch.get_num_threads()
        library.nl_shared(entry, code, n, first, second, gradient, *places, threads, parallel() if threads > 1 else 0)

    return shared_value, shared_derivatives


def functions(definition: Definition, dtype: torch.dtype) -> tuple[int, int] | None:
    """Return the addresses of the value's and the derivatives' functions, or None where no kernel serves."""
    kernel, _ = find(definition)
    if kernel is None or dtype not in CODES:
        return None
    code = CODES[dtype]
    return kernel.library.nl_function(kernel.entry, code), kernel.library.nl_slopes_function(kernel.entry, code)


def entry(definition: Definition, dtype: torch.dtype) -> tuple[int, int] | None:
    """Return the dtype's place in the kernel's entry and the entry's address, or None where no kernel serves."""
    kernel, _ = find(definition)
    return None if kernel is None or dtype not in CODES else (CODES[dtype], kernel.entry)


@functools.cache
def dense(definition: Definition, dtype: torch.dtype) -> Dense | None:
    """Return the activation's calls for contiguous elements, or None."""
    shared = None if definition.parameters else _shared(definition, dtype)
    if shared is None:
        return None
    catalog, found = without_ctypes(), functions(definition, dtype)
    if catalog is None or found is None:
        # The shared calls take any count; ctypes costs the same for all.
        return Dense(*shared, *shared)
    return Dense(functools.partial(catalog.call, found[0]), functools.partial(catalog.call_slopes, found[1]), *shared)


def dense_of(definition: Definition, tensors: Sequence[Tensor]) -> Dense | None:
    """Return the cheapest calls if they serve these tensors: contiguous, of one shape and dtype; else None."""
    first = tensors[0]
    if not first.is_cpu or first.layout is not torch.strided:
        return None
    shape, dtype = first.shape, first.dtype
    for x in tensors:
        if x.dtype is not dtype or x.shape != shape or not x.is_contiguous() or not x.is_cpu:
            return None
    return dense(definition, dtype)


def forward_dense(kernel: Dense, inputs: Sequence[Tensor], over: bool = False) -> Tensor:
    """Return the activation of tensors that :func:`dense_of` accepted; with ``over``, in place of the first."""
    out = inputs[0] if over else torch.empty_like(inputs[0])
    call = kernel.value if (count := out.numel()) <= PIECE else kernel.shared_value
    call(count, inputs[0].data_ptr(), inputs[-1].data_ptr(), out.data_ptr())
    return out


def backward_dense(kernel: Dense, gradient: Tensor, inputs: Sequence[Tensor], want_value: bool = False) -> list[Tensor]:
    """Return the gradients by the inputs, and the value if wanted, of tensors that :func:`dense_of` accepted."""
    outs = [torch.empty_like(gradient) for _ in range(len(inputs) + want_value)]
    places = [x.data_ptr() for x in outs] + [0, 0]
    call = kernel.derivatives if (count := gradient.numel()) <= PIECE else kernel.shared_derivatives
    call(count, inputs[0].data_ptr(), inputs[-1].data_ptr(), gradient.data_ptr(), *places[:3])
    return outs


def refusal(inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> str | None:
    """Return why the compiled kernels cannot read these tensors, or None."""
    first = inputs[0]
    if any(x.device.type != "cpu" for x in (*inputs, *parameters)):
        return f"the compiled kernels are for the CPU, and a tensor is on {first.device}"
    return operands.refusal(inputs, parameters)


def _flat(shape: torch.Size, tensors: Sequence[Tensor]) -> bool:
    """Return whether these are few contiguous elements, for one call on this thread."""
    return all(x.shape == shape and x.is_contiguous() for x in tensors) and tensors[0].numel() <= PIECE


def _numbers(parameters: Sequence[Tensor | float]) -> ctypes.Array[ctypes.c_double]:
    return (ctypes.c_double * (len(parameters) + 1))(*map(float, parameters))


def _run(kernel: Kernel, with_derivatives: bool, shape: torch.Size, tensors: list[Tensor | None],
         parameters: Sequence[Tensor]) -> list[float]:
    """Call the kernel; ``tensors`` are two inputs, gradient, two gradients by inputs, value. Return the sums."""
    plan = operands.layout(shape, tensors)
    if plan is None:  # only inputs can have such strides: our outputs are dense
        tensors = [x if x is None or k > 2 else x.expand(shape).contiguous() for k, x in enumerate(tensors)]
        plan = operands.layout(shape, tensors)
        if plan is None:
            raise AssertionError("outputs of the kernels have at most two strides")
    rows, columns, strides = plan
    values, sums = _numbers(parameters), _numbers([0.0] * len(parameters))
    threads = torch.get_num_threads()
    words = [rows, columns, threads, parallel() if threads > 1 else 0, ctypes.addressof(values), ctypes.addressof(sums)]
    for x, (row, column) in zip(tensors, strides, strict=True):
        words += (0, 0, 0) if x is None else (x.data_ptr(), row, column)
    call = (ctypes.c_int64 * len(words))(*words)
    function = kernel.library.nl_slopes if with_derivatives else kernel.library.nl_value
    if function(kernel.entry, CODES[tensors[0].dtype], call):  # type: ignore[union-attr]
        raise MemoryError("no memory for the partial sums of a kernel")
    return list(sums)[:len(parameters)]


def _two(tensors: Sequence[Tensor]) -> list[Tensor | None]:
    return [tensors[0], tensors[1] if len(tensors) > 1 else None]


def forward(kernel: Kernel, inputs: Sequence[Tensor], parameters: Sequence[Tensor], over: bool = False) -> Tensor:
    """Return the activation, contiguous; with ``over``, in place of the first input if that has its shape.

    Each element is read before its memory is written, and no other read needs it.
    """
    shape = operands.common_shape(inputs)
    over = over and inputs[0].shape == shape and inputs[0].is_contiguous()
    out = inputs[0] if over else torch.empty(shape, dtype=inputs[0].dtype, device="cpu")
    if _flat(shape, inputs):
        kernel.library.nl_flat(kernel.entry, CODES[out.dtype], out.numel(), inputs[0].data_ptr(), inputs[-1].data_ptr(),
                               _numbers(parameters) if parameters else None, out.data_ptr())
    elif out.numel():
        _run(kernel, False, shape, [*_two(inputs), None, out, None, None], parameters)
    return out


def backward(kernel: Kernel, gradient: Tensor, inputs: Sequence[Tensor], parameters: Sequence[Tensor],
             want_value: bool = False, into: Sequence[Tensor] | None = None,
             ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Return the gradients by inputs and parameters, and the value, in one pass over memory.

    ``into`` are outputs for the gradients: tensors of the inputs' shape with at most two strides.
    """
    shape = operands.common_shape(inputs)
    dtype = inputs[0].dtype
    if dtype in _HALF and any(x.shape != shape for x in inputs):
        # A broadcast input's gradient is a sum, in float32 and rounded once.
        outs, learned, value = backward(kernel, gradient.float(), [x.float() for x in inputs], parameters, want_value)
        return [d.to(dtype) for d in outs], learned, None if value is None else value.to(dtype)
    gradient = gradient.to(dtype)
    outs = list(into) if into is not None else [torch.empty(shape, dtype=dtype, device="cpu") for _ in inputs]
    value = torch.empty(shape, dtype=dtype, device="cpu") if want_value else None
    sums: Sequence[float] = [0.0] * len(parameters)
    if _flat(shape, (*inputs, gradient, *outs)):
        places = _numbers(sums)
        kernel.library.nl_flat_slopes(
            kernel.entry, CODES[dtype], gradient.numel(), inputs[0].data_ptr(), inputs[-1].data_ptr(),
            gradient.data_ptr(), _numbers(parameters) if parameters else None, outs[0].data_ptr(), outs[-1].data_ptr(),
            None if value is None else value.data_ptr(), places)
        sums = places[:len(parameters)]
    elif shape.numel():
        sums = _run(kernel, True, shape, [*_two(inputs), gradient, *_two(outs), value], parameters)
    learned = [torch.tensor(s, dtype=torch.float64, device="cpu").to(q.dtype).reshape(q.shape)
               for q, s in zip(parameters, sums, strict=True)]
    return [reduce_to(d, x.shape) for d, x in zip(outs, inputs, strict=True)], learned, value
