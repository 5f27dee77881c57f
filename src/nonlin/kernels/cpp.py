"""From a definition to C++: its value in one pass over the inputs, its derivatives in another.

The formula is folded with a table whose primitives write C++ over one vector register; equal parts are computed
once. The primitives themselves are in native_math.h.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import Tensor

from nonlin.functions import Definition
from nonlin.functions.walk import fold
from nonlin.kernels import native, torch_backend


class _Writer:
    """Collects statements; every distinct expression becomes one constant."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.known: dict[str, str] = {}

    def emit(self, text: str) -> str:
        if text not in self.known:
            self.known[text] = f"t{len(self.known)}"
            self.lines.append(f"const vf {self.known[text]} = {text};")
        return self.known[text]

    def table(self) -> dict[str, Any]:
        unary = ("sigmoid", "tanh", "Phi", "phi", "erf", "exp", "expm1", "log1p", "softplus", "atan", "step", "sign",
                 "abs")
        made: dict[str, Any] = {n: lambda a, n=n: self.emit(f"nl_{n}({a})") for n in unary}
        made |= {n: lambda a, b, n=n: self.emit(f"nl_{n}({a}, {b})") for n in ("max", "min")}
        made |= {"add": lambda a, b: self.emit(f"{a} + {b}"), "mul": lambda a, b: self.emit(f"{a} * {b}")}
        made["number"] = lambda e: self.emit(f"splat({float(e)!r}f)")
        made["pow"] = self.power
        return made

    def power(self, base: str, exponent: sympy.Expr) -> str:
        if exponent.is_Integer:
            return self.emit(f"nl_pow({base}, {int(exponent)})")
        twice = 2 * exponent
        if not twice.is_Integer:
            raise NotImplementedError(f"a power of {exponent}")
        return self.emit(f"nl_pow({self.emit(f'nl_sqrt({base})')}, {int(twice)})")


_LOOP = """
extern "C" void {name}(int64_t n, const float* parameters, {inputs}{outputs}) {{
{prologue}  for (int64_t i = 0; i < n; i += VL) {{
    const int64_t count = n - i < VL ? n - i : VL;
{loads}    {body}
{stores}  }}
{epilogue}}}
"""


def source(definition: Definition) -> str:
    """Return the C++ of a pointwise or gated definition: ``forward`` and ``backward`` over n elements.

    ``backward`` also sums the gradients of learnable parameters, in double precision.
    Raises NotImplementedError for a power that is no multiple of one half.
    """
    assert definition.expr is not None
    header = '#include "native_math.h"\nstatic inline vf load_some(const float* p, int64_t n) {\n' \
             "  if (n == VL) return load(p);\n  vf v{};\n  std::memcpy(&v, p, n * sizeof(float));\n  return v;\n}\n" \
             "static inline void store_some(float* p, vf v, int64_t n) {\n  if (n == VL) return store(p, v);\n" \
             "  std::memcpy(p, &v, n * sizeof(float));\n}\n"
    return header + _function(definition, backward=False) + _function(definition, backward=True)


def _function(definition: Definition, backward: bool) -> str:
    assert definition.expr is not None
    writer = _Writer()
    learned = [q.name for q in definition.parameters]
    leaves = {name: name for name in (*definition.variables, *learned)}
    whole = " & ".join(f"({v} == {v})" for v in definition.variables)
    loads = "".join(f"    const vf {v} = load_some({v}_p + i, count);\n" for v in definition.variables)
    prologue = "".join(f"  const vf {n} = splat(parameters[{k}]);\n" for k, n in enumerate(learned))
    inputs = ", ".join(f"const float* {v}_p" for v in definition.variables)
    stores, epilogue, outputs = "", "", ", float* out"
    if not backward:
        out = _mended(definition.expr, leaves, writer, whole)
        stores = f"    store_some(out + i, {out}, count);\n"
    else:
        outputs = ", const float* grad_p, " + ", ".join(f"float* d{v}_p" for v in definition.variables)
        outputs += ", double* dparameters"
        loads += "    const vf grad = load_some(grad_p + i, count);\n"
        for v in definition.variables:
            slope = _mended(definition.derivative(v), leaves, writer, whole)
            stores += f"    store_some(d{v}_p + i, grad * {slope}, count);\n"
        for k, name in enumerate(learned):
            slope = _mended(definition.derivative(name), leaves, writer, whole)
            prologue += f"  double sum{k} = 0;\n"
            stores += f"    {{ const vf part = grad * {slope};\n" \
                      f"      for (int64_t j = 0; j < count; j++) sum{k} += part[j]; }}\n"
            epilogue += f"  dparameters[{k}] = sum{k};\n"
    return _LOOP.format(name="backward" if backward else "forward", inputs=inputs, outputs=outputs,
                        prologue=prologue, loads=loads, body="\n    ".join(writer.lines), stores=stores,
                        epilogue=epilogue)


def _mended(expr: sympy.Expr, leaves: dict[str, str], writer: _Writer, whole: str) -> str:
    """Write the sum of the expression's terms, each with its 0 x infinity mended."""
    terms = [writer.emit(f"mended({fold(term, leaves, writer.table())}, {whole})")
             for term in torch_backend.terms(expr)]
    return functools.reduce(lambda a, b: writer.emit(f"{a} + {b}"), terms)


@functools.cache
def kernel(definition: Definition) -> ctypes.CDLL | None:
    """Return the compiled kernel, built on first use and cached on disk, or None where it cannot be had."""
    if native.library() is None or definition.expr is None:
        return None
    try:
        made = ctypes.CDLL(str(native.build(source(definition), f"act-{definition.name}", Path(__file__).parent)))
    except NotImplementedError:
        return None
    count = len(definition.variables)
    made.forward.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * (count + 2)]
    made.backward.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * (2 * count + 3)]
    return made


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, definition: Definition, parameters: Tensor, *inputs: Tensor) -> Tensor:
        ctx.definition = definition
        ctx.save_for_backward(parameters, *inputs)
        out = torch.empty_like(inputs[0])
        kernel(definition).forward(  # type: ignore[union-attr]
            out.numel(), parameters.data_ptr(), *(x.data_ptr() for x in inputs), out.data_ptr())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        parameters, *inputs = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: the differentiable way
            return None, *_differentiable(ctx.definition, parameters, inputs, grads[0])
        gradient = grads[0].contiguous()
        outs = [torch.empty_like(x) for x in inputs]
        sums = torch.zeros(max(1, parameters.numel()), dtype=torch.float64)
        kernel(ctx.definition).backward(  # type: ignore[union-attr]
            gradient.numel(), parameters.data_ptr(), *(x.data_ptr() for x in inputs), gradient.data_ptr(),
            *(x.data_ptr() for x in outs), sums.data_ptr())
        return None, sums[:parameters.numel()].to(parameters.dtype), *outs


def _differentiable(definition: Definition, parameters: Tensor, inputs: list[Tensor], gradient: Tensor) -> list[Any]:
    leaves = [*inputs, *parameters.split(1)] if parameters.numel() else list(inputs)
    slopes = torch_backend.slopes(definition, gradient, leaves)
    count = len(inputs)
    return [torch.cat(slopes[count:]) if parameters.numel() else None, *slopes[:count]]


def apply(definition: Definition, inputs: tuple[Tensor, ...], parameters: list[Tensor]) -> Tensor:
    """Return the activation by the compiled kernel: float32 CPU tensors of one shape, parameters of shape (1,)."""
    values = torch.cat(parameters) if parameters else inputs[0].new_empty(0)
    return _Fused.apply(definition, values, *(x.contiguous() for x in inputs))  # type: ignore[return-value]


def serves(definition: Definition, inputs: tuple[Tensor, ...]) -> bool:
    """Return whether :func:`apply` can compute this call."""
    first = inputs[0]
    return (all(x.dtype == torch.float32 and x.device.type == "cpu" and x.shape == first.shape for x in inputs)
            and kernel(definition) is not None)
