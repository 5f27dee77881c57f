"""Find the Triton kernel of an activation, and call it on tensors of any strides.

A definition's kernel is a Python module, written to the cache folder from the symbolic tree (codegen/triton.py). Triton
compiles it for the GPU at the first call. With Triton's interpreter (TRITON_INTERPRET=1 before its import) the same
functions run on the CPU, slowly: tests use it without a GPU.
"""

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonlin.files import only_ours, private_folder, write_atomically
from nonlin.functions import Definition
from nonlin.kernels import operands
from nonlin.kernels.codegen import triton as triton_source
from nonlin.kernels.codegen.emitter import cheap, rooted
from nonlin.kernels.cpu import build
from nonlin.kernels.torch.backend import reduce_to
from nonlin.kernels.triton import ready

DEVICES = ("cuda",)
"""Device types that these kernels serve."""
OLDEST = (3, 3)
"""The first Triton version with functions that return tuples."""
FAST, EXACT, DOUBLE = 0, 1, 2  # as in math.py
_BLOCK = 1024  # elements per program: 8 per thread, 16 bytes of a 16-bit type
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False, "sanitize_overflow": False}
_SECOND_AXIS = 65535  # CUDA's limit of programs along a grid's second axis
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Kernel:
    """The Triton functions of one definition, and whether its 16-bit results take the exact path."""

    forward: Any
    backward: Any
    exact: bool

    def kind(self, dtype: torch.dtype) -> int:
        """Return the kind of arithmetic for results of that dtype."""
        if dtype == torch.float64:
            return DOUBLE
        return EXACT if dtype == torch.float32 or self.exact else FAST


@functools.cache
def missing() -> str | None:
    """Return the reason why Triton cannot serve on this machine, or None."""
    if os.environ.get("NONLIN_TRITON") == "0":
        return "NONLIN_TRITON=0 turns Triton's kernels off"
    try:
        import triton
    except ImportError:
        return "Triton is not installed (pip install 'nonlin[gpu]')"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST:
        return f"Triton {triton.__version__} is older than {'.'.join(map(str, OLDEST))}"
    return None


@functools.cache
def find(definition: Definition) -> tuple[Kernel | None, str]:
    """Return the kernel and its origin, or None and the reason."""
    if reason := missing():
        return None, reason
    try:
        text = triton_source.module(definition)
    except NotImplementedError as error:
        return None, f"its formula has {error}, which the generator does not support"
    try:
        made = _imported(_written(text, triton_source.identity(definition)))
    except OSError as error:
        return None, f"its kernel cannot be written to {build.cache_folder()}: {error.strerror or error}"
    import triton

    by = "computed by Triton's interpreter" if interpreted() else f"compiled by Triton {triton.__version__}"
    # Results that are often ties of the rounding need correctly rounded divisions.
    exact = cheap(definition) or rooted(definition)
    return Kernel(made.forward, made.backward, exact), f"generated from its formula, {by}"


def interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "on", "true", "y", "yes")  # as Triton reads it


def _written(text: str, identity: str) -> Path:
    """Return the file with the module's text, for Triton to read; written atomically if it differs."""
    target = private_folder(build.cache_folder()) / f"triton_{identity}.py"
    if not only_ours(target) or target.read_bytes() != text.encode():
        write_atomically(target, text)
        target.chmod(0o600)
    return target


def _imported(path: Path) -> Any:
    name = f"nonlin_kernels_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    made = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def refusal(inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> str | None:
    """Return the reason why the Triton kernels cannot read these tensors, or None."""
    devices = {str(x.device) for x in (*inputs, *parameters)}
    if len(devices) > 1:
        return f"the tensors are on several devices: {', '.join(sorted(devices))}"
    return operands.refusal(inputs, parameters)


@dataclass(frozen=True)
class Launch:
    """The division of a call into programs: tiles of ``tile`` (rows, columns), and whether offsets have 64 bits."""

    rows: int
    columns: int
    tile: tuple[int, int]
    grid: tuple[int, int]
    row_axis: int
    wide: bool

    @property
    def tiles(self) -> tuple[int, int, int]:
        """The kernel's compile-time arguments ROW_AXIS, ROWS and COLUMNS."""
        return self.row_axis, *self.tile

    @property
    def programs(self) -> int:
        """The number of programs."""
        return self.grid[0] * self.grid[1]


def launch(rows: int, columns: int, steps: Sequence[tuple[int, int]]) -> Launch:
    """Return the launch for operands of ``rows`` x ``columns`` elements with these (row, column) strides.

    Offsets have 64 bits if any operand's last element, or a masked element past its end, needs more than 31.

    >>> launch(1, 4096, [(0, 1)]).wide, launch(1, 2**31, [(0, 1)]).wide, launch(70000, 40000, [(65536, 1)]).wide
    (False, True, True)
    """
    # At least a number for each thread: what two threads read, one may have written over where gradients are in place.
    least = 32 * _OPTIONS["num_warps"] if rows == 1 else 1
    across = min(_BLOCK, max(least, 1 << max(columns - 1, 0).bit_length()))
    tile = (1 if rows == 1 else _BLOCK // across, across)
    down, over = -(-rows // tile[0]), -(-columns // tile[1])
    row_axis = 1 if down <= _SECOND_AXIS else 0
    farthest = max((rows - 1) * row + (columns - 1) * column for row, column in [*steps, (columns, 1)])
    wide = farthest + 2 * _BLOCK >= 2**31
    return Launch(rows, columns, tile, (over, down) if row_axis else (down, over), row_axis, wide)


def _pairs(tensors: Sequence[Tensor], steps: Sequence[tuple[int, int]]) -> int:
    """Return 1 or 2 if two tensors are interleaved in one, with the first or the second in front; else 0."""
    if len(tensors) != 2 or steps[0] != steps[1] or steps[0][1] != 2 or tensors[0].dtype != tensors[1].dtype:
        return 0
    apart = tensors[1].data_ptr() - tensors[0].data_ptr()
    return {tensors[0].element_size(): 1, -tensors[0].element_size(): 2}.get(apart, 0)


def _in_order(tensors: Sequence[Tensor], pairs: int) -> Sequence[Tensor]:
    """Return the tensors, the one at the lower address of a pair first."""
    return tensors[::-1] if pairs == 2 else tensors


def _on(device: torch.device) -> Any:
    """Make the tensor's device current: launches go there."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def _laid_out(shape: torch.Size, read: Sequence[Tensor], made: Sequence[Tensor]
              ) -> tuple[Sequence[Tensor], Launch, Any]:
    """Return the tensors to read (copied if they have too many strides), the launch, and all strides."""
    found = operands.layout(shape, [*read, *made])
    if found is None:
        read = [x.expand(shape).contiguous() for x in read]
        found = operands.layout(shape, [*read, *made])
        if found is None:
            raise AssertionError("outputs of the kernels have at most two strides")
    rows, columns, steps = found
    return read, launch(rows, columns, steps), steps


def forward_again(definition: Definition, inputs: Sequence[Tensor], parameters: Sequence[Tensor], over: bool = False
                  ) -> Tensor | None:
    """Return the activation as :func:`forward`, if such tensors had it before; else None."""
    kernel, _ = find(definition)
    known = None if kernel is None else ready.find(ready.facts(kernel, (*inputs, *parameters), over))
    if known is None:
        return None
    out = inputs[0] if over else inputs[0].new_empty(operands.common_shape(inputs))
    with _on(out.device):
        known.run(*_in_order(inputs, known.pairs), *parameters, out, *known.tail)
    return out


def served(definition: Definition, inputs: Sequence[Tensor]) -> bool:
    """Return whether such tensors had the activation before, and no learnable parameter."""
    kernel, _ = find(definition)
    return kernel is not None and ready.find(ready.facts(kernel, inputs, False)) is not None


def forward(kernel: Kernel, inputs: Sequence[Tensor], parameters: Sequence[Tensor], over: bool = False) -> Tensor:
    """Return the activation, contiguous; with ``over``, in place of the first input if that has its shape.

    A program reads its tile of every input before it writes it, and no other program reads that tile.
    """
    shape, count = operands.common_shape(inputs), len(inputs)
    told = ready.facts(kernel, (*inputs, *parameters), over)
    if over and not (inputs[0].shape == shape and inputs[0].is_contiguous()):
        over, told = False, None
    out = inputs[0] if over else inputs[0].new_empty(shape)
    if out.numel():
        read, cut, steps = _laid_out(shape, inputs, [out])
        pairs = _pairs(read, steps[:count])
        tail = (cut.rows, cut.columns, *_flat(steps[:count]), kernel.kind(out.dtype), cut.wide, pairs, *cut.tiles)
        with _on(out.device):
            made = kernel.forward[cut.grid](*_in_order(read, pairs), *parameters, out, *tail, **_OPTIONS)
        if read is inputs:
            ready.remember(told, made, cut.grid, lambda run: ready.Ready(run, tail, pairs, 0, cut.programs))
    return out


def backward(kernel: Kernel, gradient: Tensor, inputs: Sequence[Tensor], parameters: Sequence[Tensor],
             want_value: bool = False, into: Sequence[Tensor] | None = None, over: bool = False) -> "Gradients":
    """Return the gradients by inputs and parameters, and the value, in one pass over memory.

    ``into`` are outputs for the gradients: tensors of the inputs' shape with at most two strides, which may be the
    inputs. ``over``: the gradient is needed no more, and the value may be written in its place. A parameter's
    gradient is a sum of one part per program, added in a fixed order.
    """
    outs, value = _outputs(gradient, inputs, want_value, into, over)
    sums = outs[0]
    if gradient.numel():
        count, given = len(inputs), [*inputs, gradient]
        read, cut, steps = _laid_out(gradient.shape, given, outs if value is None else [*outs, value])
        pairs, pairs_out = _pairs(read[:count], steps[:count]), _pairs(outs, steps[count + 1:2 * count + 1])
        sums = _parts(parameters, outs[0], cut.programs)
        tail = (cut.rows, cut.columns, *_flat(steps[:2 * count + 1]), kernel.kind(inputs[0].dtype), cut.wide, pairs,
                pairs_out, *cut.tiles, want_value)
        with _on(gradient.device):
            made = kernel.backward[cut.grid](
                *_in_order(read[:count], pairs), *parameters, read[count], *_in_order(outs, pairs_out),
                outs[0] if value is None else value, sums, *tail, **_OPTIONS)
        if read is given:
            told = _facts(kernel, gradient, inputs, parameters, want_value, into, over)
            ready.remember(told, made, cut.grid, lambda run: ready.Ready(run, tail, pairs, pairs_out, cut.programs))
    return _results(inputs, parameters, outs, sums, value)


Gradients = tuple[list[Tensor], list[Tensor], Tensor | None]


def backward_again(definition: Definition, gradient: Tensor, inputs: Sequence[Tensor], parameters: Sequence[Tensor],
                   want_value: bool = False, into: Sequence[Tensor] | None = None, over: bool = False
                   ) -> Gradients | None:
    """Return the gradients as :func:`backward`, if such tensors had them before; else None."""
    kernel, _ = find(definition)
    known = None if kernel is None else ready.find(
        _facts(kernel, gradient, inputs, parameters, want_value, into, over))
    if known is None:
        return None
    outs, value = _outputs(gradient, inputs, want_value, into, over)
    sums = _parts(parameters, outs[0], known.programs)
    with _on(gradient.device):
        known.run(*_in_order(inputs, known.pairs), *parameters, gradient, *_in_order(outs, known.pairs_out),
                  outs[0] if value is None else value, sums, *known.tail)
    return _results(inputs, parameters, outs, sums, value)


def _facts(kernel: Kernel, gradient: Tensor, inputs: Sequence[Tensor], parameters: Sequence[Tensor],
           want_value: bool, into: Sequence[Tensor] | None, over: bool) -> Any:
    places = () if into is None else into
    return ready.facts(kernel, (*inputs, gradient, *parameters, *places), want_value, over, len(places))


def _outputs(gradient: Tensor, inputs: Sequence[Tensor], want_value: bool, into: Sequence[Tensor] | None, over: bool
             ) -> tuple[list[Tensor], Tensor | None]:
    """Return the tensors for the gradients by the inputs, and the one for the value, None where it is not wanted."""
    shape, dtype = gradient.shape, inputs[0].dtype
    # A broadcast input's gradient is a sum, in float32 and rounded once.
    outs = list(into) if into is not None else [
        x.new_empty(shape, dtype=torch.float32 if dtype in _HALF and x.shape != shape else dtype) for x in inputs]
    if not want_value:
        return outs, None
    in_place = over and gradient.is_contiguous() and gradient.dtype == dtype
    return outs, gradient if in_place else gradient.new_empty(shape, dtype=dtype)


def _parts(parameters: Sequence[Tensor], like: Tensor, programs: int) -> Tensor:
    """Return a place for each program's parts of the parameters' gradients; any tensor where there are none."""
    if not parameters:
        return like
    return like.new_empty(len(parameters), programs, dtype=torch.promote_types(like.dtype, torch.float32))


def _results(inputs: Sequence[Tensor], parameters: Sequence[Tensor], outs: Sequence[Tensor], sums: Tensor,
             value: Tensor | None) -> Gradients:
    """Return what backward returns: gradients of their tensors' shapes, broadcast ones and parts of sums added up."""
    dtype = inputs[0].dtype
    learned = [torch.zeros_like(q) for q in parameters]
    if parameters and outs[0].numel():
        totals = sums.sum(1, dtype=torch.float64)
        learned = [t.reshape(q.shape).to(q.dtype, copy=True) for q, t in zip(parameters, totals, strict=True)]
    return [reduce_to(d, x.shape).to(dtype) for d, x in zip(outs, inputs, strict=True)], learned, value


def _flat(steps: Sequence[tuple[int, int]]) -> list[int]:
    return [step for pair in steps for step in pair]
