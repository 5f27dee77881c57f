"""A feed-forward block for few tokens on a CPU that reads no weights of hidden units that are zero.

Everything between the input and the output is float32, and the output is rounded once. The columns of ``down`` that
belong to units above a threshold are gathered, from a copy in which a unit's weights are contiguous. If a factor
of the activation depends on the gate alone, the rows of ``up`` are gathered too.

Legend: N rows (tokens), D input width, H hidden width, O output width, A units that were chosen.
"""

import ctypes
import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor

from nonlin.functions import Definition
from nonlin.functions.catalog import CATALOG
from nonlin.functions.definition import GATE, X, pointwise
from nonlin.functions.expression import fold
from nonlin.functions.numeric import TABLE, start
from nonlin.kernels import dispatch
from nonlin.kernels.codegen import cpp
from nonlin.kernels.cpu import backend, build
from nonlin.kernels.ffn import fast_path
from nonlin.kernels.ffn.layout import Form, Tensors, pair, rows, split

TOKENS = 8
"""The most tokens of one call, as in sparse.cpp."""
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_SOURCE = Path(__file__).with_name("sparse.cpp")


@dataclass(frozen=True)
class Choice:
    """How hidden units are chosen. ``factor`` is the activation's factor of the gate alone, a function of x, or None.

    The factor's values choose units where there is one, the hidden values elsewhere. ``exact`` says that these are
    zero on a set, so that leaving out zeros changes nothing.
    """

    factor: Definition | None
    exact: bool


@functools.cache
def choice_of(definition: Definition) -> Choice:
    """Return how the units of a block of this activation are chosen.

    >>> from nonlin.functions import get
    >>> [choice_of(get(name)).exact for name in ("relu", "drelu", "fatrelu", "hardswish", "gelu", "swiglu")]
    [True, True, True, True, False, False]
    >>> choice_of(get("relu_squared_glu")).factor.name, choice_of(get("swiglu")).factor.name
    ('relu_squared', 'silu')
    """
    expr = definition.expr
    if expr is None:
        raise ValueError(f"{definition.name} is not pointwise")
    factor = None
    if definition.gated and not definition.parameters:
        own = sympy.Mul(*(a for a in sympy.Mul.make_args(expr) if a.free_symbols == {GATE}))
        if own.free_symbols:
            written = own.xreplace({GATE: X})
            factor = next((d for d in CATALOG if d.kind == "pointwise" and d.expr == written and not d.parameters),
                          None) or pointwise(f"{definition.name}_gate", written)
    if factor is None or _zero_on_a_set(factor):
        return Choice(factor, _zero_on_a_set(factor or definition))
    return Choice(None, True) if _zero_on_a_set(definition) else Choice(factor, False)


def _zero_on_a_set(definition: Definition) -> bool:
    grid = np.linspace(-8.0, 8.0, 401)
    at = {"x": grid, "gate": grid[:, None], "up": grid}
    given: Any = start(definition) | {name: at[name] for name in definition.variables}
    with np.errstate(all="ignore"):
        value = np.broadcast_to(fold(definition.expr, given, TABLE), (401, 401) if definition.gated else (401,))
    return bool((value == 0).mean() > 0.02)  # an interval of 0.3, and no line of zeros


@functools.cache
def library() -> tuple[Any, str]:
    """Return the compiled library, built on the first call, or None and the reason."""
    if os.environ.get("NONLIN_NATIVE") == "0":
        return None, "NONLIN_NATIVE=0 turns compiled kernels off"
    try:
        made = ctypes.CDLL(str(build.compile_shared(
            _SOURCE.read_text("utf-8"), "sparse", ("-O3", *build.KERNEL_FLAGS[1:], "-shared", *build.target()),
            (*cpp.HEADERS, _SOURCE))))
    except build.FAILURES as error:
        return None, build.reason(error)
    i, p, f = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
    made.nl_rows.argtypes, made.nl_block.argtypes, made.nl_units.argtypes = [p], [p], [p, f]
    made.nl_padded.argtypes, made.nl_padded.restype = [i], i
    made.nl_choose.argtypes = [i, i, p, p, f, p, p, p]
    return made, ""


def refusal(tensors: Tensors, form: Form) -> str | None:
    """Return why a block of these weights cannot be computed sparsely, or None. Its first call compiles the library."""
    weights = [w for w in (tensors.gate, tensors.up, tensors.down) if w is not None]
    if any(not w.is_cpu for w in weights):
        return f"its weights are on {weights[0].device}: sparse products are for the CPU"
    if any(w.dtype not in CODES or w.dtype is not weights[0].dtype for w in weights):
        return f"its weights are {weights[-1].dtype}: sparse products take one of float32, bfloat16, float16"
    if any(w is None or w.stride(1) != 1 for w in pair(tensors.gate, tensors.up, form)):
        return "its first weights are stored (inputs, outputs), with a unit's weights apart"
    made, reason = library()
    return None if made is not None else reason


@dataclass
class Units:
    """What a block keeps for sparse calls: its threshold, the most tokens, and a copy of ``down`` by units (H, O).

    Called with a block's tensors, it returns the output, or None where the dense path has to compute. The copy is
    made anew where the weight changed; copies and pickles of a block leave it behind.
    """

    threshold: float = 0.0
    tokens: int = TOKENS
    skipped: float = field(default=0.0, compare=False)
    _copy: Tensor | None = field(default=None, repr=False, compare=False)
    _of: Any = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_copy": None, "_of": None}

    def __deepcopy__(self, memo: Any) -> "Units":
        return Units(self.threshold, self.tokens)

    def serves(self, tensors: Tensors) -> bool:
        """Return whether these are few plain tokens of the weights' dtype, and nothing records a gradient."""
        x, given = tensors.x, [t for t in tensors[:7] if t is not None]
        if torch.compiler.is_compiling() or x is None or x.ndim == 0 or not 0 < x.numel() <= self.tokens * x.shape[-1]:
            return False
        if x.dtype not in CODES or not x.is_cpu or torch.is_autocast_enabled("cpu"):
            return False
        if torch.is_grad_enabled() and any(t.requires_grad for t in given):
            return False
        return torch._C._get_tracing_state() is None and not torch._C._are_functorch_transforms_active() and all(
            t.dtype is x.dtype for t in given) and fast_path.serves(given)

    def __call__(self, tensors: Tensors, form: Form) -> Tensor | None:
        if not self.serves(tensors):
            return None
        with torch.no_grad():
            for _ in range(2):
                self._keep(tensors.down)
                out = self._compute(tensors, form)
                if out is not _STALE:
                    return out
                self._of = None  # written past torch's count of versions
        return None

    @property
    def copied_bytes(self) -> int:
        """The memory of the copy, made or to be made; 0 where the weight itself lies by units."""
        return 0 if self._copy is None else self._copy.nbytes

    def _keep(self, down: Tensor) -> None:
        if down.stride(0) == 1:
            self._copy = None
            return
        now = (down.data_ptr(), -1 if down.is_inference() else down._version, down.shape, down.dtype)
        if self._of != now:
            self._copy, self._of = down.detach().t().contiguous(), now

    def _compute(self, tensors: Tensors, form: Form) -> Any:
        x, down = rows(tensors.x), tensors.down  # type: ignore[arg-type]
        x = x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
        weights, biases = pair(tensors.gate, tensors.up, form), pair(tensors.gate_bias, tensors.up_bias, form)
        library_, _ = library()
        if library_ is None:
            return None
        call = _Call(library_, x)
        first = call.rows(weights[0], biases[0], None)
        if first is None:
            return None  # infinite numbers and nan: as the dense path has them
        learned = split(tensors.parameters, torch.float32)
        index, count = None, down.shape[1]
        if (factor := choice_of(form.definition).factor) is not None:
            chosen = dispatch.forward(factor, [first])
            index, chosen, first = call.choose(chosen, first, self.threshold)
            count = index.numel()
            second = call.rows(weights[1], biases[1], index)
            hidden = dispatch.forward(form.definition, [first, second], learned)
        else:
            inputs = [first] if len(weights) == 1 else [first, call.rows(weights[1], biases[1], None)]
            hidden = chosen = dispatch.forward(form.definition, inputs, learned)
        out = x.new_empty((*tensors.x.shape[:-1], down.shape[0]))  # type: ignore[union-attr]
        used = call.units(self._copy, down, tensors.down_bias, hidden, chosen, index, count, self.threshold, out)
        if used < 0:
            return _STALE
        self.skipped = 1 - used / down.shape[1]
        return out


_STALE = object()


class _Call:
    """One call's scratch memory, and the library's functions on tensors."""

    def __init__(self, library_: Any, x_ND: Tensor):
        self.library, self.x, self.code = library_, x_ND, CODES[x_ND.dtype]
        self.threads = torch.get_num_threads()
        self.parallel = backend.parallel() if self.threads > 1 else 0
        count, width = 1 << (x_ND.shape[0] - 1).bit_length(), library_.nl_padded(x_ND.shape[1])  # 1, 2, 4 or 8
        self.wide = torch.empty(count, width, dtype=torch.float32, device="cpu")
        self.wide[x_ND.shape[0]:].zero_()
        self.read = False

    def rows(self, weight: Any, bias: Tensor | None, index: Tensor | None) -> Tensor | None:
        """Return x weight^T + bias (N, rows) in float32, of all rows or those of ``index``; None if x is not finite."""
        (tokens, width), count = self.x.shape, weight.shape[0] if index is None else index.numel()
        out = torch.empty(tokens, count, dtype=torch.float32, device="cpu")
        bias = None if bias is None else bias.contiguous()
        words = (ctypes.c_int64 * 14)(
            self.code, tokens, width, count, weight.stride(0), weight.data_ptr(), _at(bias), _at(index),
            self.wide.data_ptr(), out.data_ptr(), 0 if self.read else self.x.data_ptr(), self.x.stride(0),
            self.threads, self.parallel)
        self.read = True
        return out if self.library.nl_rows(words) else None

    def choose(self, chosen: Tensor, first: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the units above the threshold for any token (A,), and both tensors at them (N, A)."""
        (tokens, units), index = chosen.shape, torch.empty(chosen.shape[1], dtype=torch.int32, device="cpu")
        outs = [torch.empty(tokens * units, dtype=torch.float32, device="cpu") for _ in range(2)]
        count = self.library.nl_choose(tokens, units, chosen.data_ptr(), first.data_ptr(), threshold,
                                       index.data_ptr(), *(t.data_ptr() for t in outs))
        some = [t[:tokens * count].view(tokens, count) for t in outs]
        return index[:count], some[0], some[1]

    def units(self, copy: Tensor | None, down: Tensor, bias: Tensor | None, hidden: Tensor, chosen: Tensor,
              index: Tensor | None, count: int, threshold: float, out: Tensor) -> int:
        """Write hidden down^T + bias; return the number of units read, or -1 where the copy is of other weights."""
        (tokens, outputs), by_units = (self.x.shape[0], down.shape[0]), down.t() if copy is None else copy
        bias = None if bias is None else bias.contiguous()
        unit = torch.empty(count, dtype=torch.int32, device="cpu")
        coefficient = torch.empty(count * tokens, dtype=torch.float32, device="cpu")
        words = (ctypes.c_int64 * 19)(
            self.code, tokens, outputs, count, by_units.stride(0), by_units.data_ptr(), _at(bias), _at(index),
            hidden.data_ptr(), chosen.data_ptr(), unit.data_ptr(), coefficient.data_ptr(), self.threads,
            self.parallel, out.data_ptr(), outputs, 0 if copy is None else down.data_ptr(), *down.stride())
        return self.library.nl_units(words, threshold)


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
