"""The catalog: every activation in one line of formula. Everything else is derived from it."""

import math
from typing import Any

from sympy import Rational, Symbol, pi, sqrt

from nonlin.functions.definition import (
    GATE,
    UP,
    Definition,
    Parameter,
    X,
    gated,
    gated_formula,
    pointwise,
)
from nonlin.functions.primitives import (
    Phi,
    Tanh,
    absolute,
    cauchy,
    clip,
    exp,
    expm1,
    log1p,
    maximum,
    minimum,
    relu,
    sigmoid,
    softplus,
    step,
)

x, g, u = X, GATE, UP
_beta, _slope, _alpha, _p, _n = (Symbol(name, real=True) for name in ("beta", "slope", "alpha", "alpha_p", "alpha_n"))


def R(text: str) -> Rational:
    """Return an exact decimal constant; only backends round it."""
    return Rational(text)


IDENTITY = pointwise("identity", x, aliases=("linear",), note="the control: a network without activations is linear")
SIGMOID = pointwise("sigmoid", sigmoid(x), aliases=("logistic",))
TANH = pointwise("tanh", Tanh(x))
RELU = pointwise("relu", relu(x), source="Nair & Hinton 2010", used_by=("original Transformer", "T5", "OPT"))
LEAKY_RELU = pointwise("leaky_relu", maximum(x, 0) + R("0.01") * minimum(x, 0), source="Maas et al. 2013")
PRELU = pointwise("prelu", maximum(x, 0) + _slope * minimum(x, 0), source="arXiv:1502.01852",
                  parameters=(Parameter("slope", 0.25, "slope of the negative side"),))
ELU = pointwise("elu", maximum(x, 0) + expm1(minimum(x, 0)), source="arXiv:1511.07289")
SELU = pointwise("selu", R("1.0507009873554805") * (
    maximum(x, 0) + R("1.6732632423543772") * expm1(minimum(x, 0))), source="arXiv:1706.02515")
SOFTPLUS = pointwise("softplus", softplus(x), source="Dugas et al. 2001")
SQRTSOFTPLUS = pointwise("sqrtsoftplus", softplus(x) ** Rational(1, 2), source="transformers")
RELU6 = pointwise("relu6", clip(x, 0, 6), source="arXiv:1704.04861")
HARDSWISH = pointwise("hardswish", x * clip(x + 3, 0, 6) / 6, aliases=("hard_swish",), source="arXiv:1905.02244")
HARDTANH = pointwise("hardtanh", clip(x, -1, 1))
SOFTSIGN = pointwise("softsign", x / (1 + absolute(x)), note="its limits ±1 hold to the largest finite x, not at ±inf")
RELU_SQUARED = pointwise("relu_squared", relu(x) ** 2, source="arXiv:2109.08668", aliases=("relu2", "squared_relu"),
                         used_by=("Nemotron", "Persimmon", "nanochat", "Arcee"))
LEAKY_RELU_SQUARED = pointwise("leaky_relu_squared", maximum(x, 0) ** 2 + R("0.25") * minimum(x, 0) ** 2,
                               source="parameter-golf #549", used_by=("parameter-golf",), aliases=("leaky_relu2",),
                               note="the square of leaky_relu(slope=0.5): it rises to the left of 0, too")
GELU = pointwise("gelu", x * Phi(x), source="arXiv:1606.08415", aliases=("gelu_python", "gelu_exact"),
                 used_by=("BERT", "GPT-NeoX", "Falcon", "ModernBERT (gated)"))
GELU_TANH = pointwise(
    "gelu_tanh", x * sigmoid(2 * sqrt(2 / pi) * (x + R("0.044715") * x**3)), source="arXiv:1606.08415",
    note="x (1 + tanh u) / 2 = x sigmoid(2u), which keeps the digits of the negative tail",
    aliases=("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_accurate", "gelu_python_tanh"),
    used_by=("GPT-2", "GPT-J", "Phi-2", "Bloom", "Gemma and T5 v1.1 (gated)"))
QUICK_GELU = pointwise("quick_gelu", x * sigmoid(R("1.702") * x), source="arXiv:1606.08415", used_by=("CLIP",))
GELU_10 = pointwise("gelu_10", clip(x * Phi(x), -10, 10), source="arXiv:2004.09602", used_by=("quantization",))
SILU = pointwise("silu", x * sigmoid(x), source="arXiv:1710.05941", aliases=("swish",))
SWISH_BETA = pointwise("swish_beta", x * sigmoid(_beta * x), source="arXiv:1710.05941",
                       parameters=(Parameter("beta", 1.0, "steepness of the gate"),))
MISH = pointwise("mish", x * Tanh(softplus(x)), source="arXiv:1908.08681")
LAPLACE = pointwise("laplace", Phi((x - R("0.707107")) / R("0.282095")), source="arXiv:2209.10655", used_by=("MEGA",))
FATRELU = pointwise("fatrelu", x * step(x - R("0.01")), source="ProSparse (arXiv:2402.13516)", used_by=("MiniCPM-S",),
                    note="threshold 0.01")
XIELU = pointwise(
    "xielu", softplus(_p) * maximum(x, 0) ** 2 + x / 2
    + (R("0.5") + softplus(_n)) * (expm1(minimum(x, R("-0.000001"))) - minimum(x, 0)) * step(-x),
    source="arXiv:2411.13010", used_by=("Apertus (plain)",),
    note="beta 0.5, epsilon -1e-6, where x <= 0; at -inf a difference of infinities",
    parameters=(Parameter("alpha_p", math.log(math.expm1(0.8)), "softplus of it is the positive curvature"),
                Parameter("alpha_n", math.log(math.expm1(0.3)), "softplus of it plus beta scales x < 0")))
XGELU = pointwise("xgelu", x * (Phi(x) * (1 + 2 * _alpha) - _alpha), source="arXiv:2405.20768",
                  parameters=(Parameter("alpha", 0.0, "how far the gate's range expands"),))
XSILU = pointwise("xsilu", x * (sigmoid(x) * (1 + 2 * _alpha) - _alpha), source="arXiv:2405.20768",
                  parameters=(Parameter("alpha", 0.0, "how far the gate's range expands"),))
XATLU = pointwise("xatlu", x * (cauchy(x) * (1 + 2 * _alpha) - _alpha), source="arXiv:2405.20768",
                  note="at -inf it is 0, though its limit there is -1/pi",
                  parameters=(Parameter("alpha", 0.0, "how far the gate's range expands"),))

GLU = gated("glu", SIGMOID, source="arXiv:1612.08083")
BILINEAR = gated("bilinear", IDENTITY, source="arXiv:2002.05202")
REGLU = gated("reglu", RELU, source="arXiv:2002.05202")
GEGLU = gated("geglu", GELU, source="arXiv:2002.05202", used_by=("ModernBERT",))
GEGLU_TANH = gated("geglu_tanh", GELU_TANH, source="arXiv:2002.05202", used_by=("Gemma", "T5 v1.1"))
SWIGLU = gated("swiglu", SILU, source="arXiv:2002.05202", used_by=("Llama", "Qwen", "Mistral"))
RELU_SQUARED_GLU = gated("relu_squared_glu", RELU_SQUARED, aliases=("relu2_glu",), used_by=("BitNet b1.58",))
DRELU = gated_formula("drelu", relu(g) * relu(u), source="TurboSparse (arXiv:2406.05955)", used_by=("Bamboo",))
_m = minimum(g, 7)
SWIGLU_OAI = gated_formula("swiglu_oai", _m * sigmoid(R("1.702") * _m) * (clip(u, -7, 7) + 1),
                           used_by=("gpt-oss",), note="gate and up are interleaved in the weights")
_c = minimum(g, 10)
SWIGLU_CLAMPED = gated_formula("swiglu_clamped", _c * sigmoid(_c) * clip(u, -10, 10),
                               used_by=("DeepSeek-V4", "GLM"), note="limit 10")
SITU_GLU = gated_formula("situ_glu", 4 * Tanh(g / 4) * sigmoid(g) * 25 * Tanh(u / 25), source="arXiv:2607.24653",
                         used_by=("Kimi K3", "Inkling2"), note="limits 4 and 25; gtu has been called SiTU, too")
GTU = gated_formula("gtu", sigmoid(g) * Tanh(u), source="arXiv:1612.08083", used_by=("WaveNet",),
                    note="the gated tanh unit; it has been called SiTU, too, as situ_glu is")


def bounded_power(base: Any, most: Any) -> Any:
    """Return base^(most / (sqrt(base) + 1)), and 0 where the base is not positive.

    With h = max(base, 1/base) it is min(base, 1)^most exp(most log(h) / (sqrt(h) + 1)): the argument of exp stays
    small, so that its digits stay. Beyond the limits of h, 1e37, it is 1, or base^most, in every digit of float64.
    """
    held = clip(absolute(base), R("1e-37"), R("1e37"))
    above = maximum(held, 1 / held)
    return clip(base, 0, 1) ** most * exp(most * log1p(above - 1) / (sqrt(above) + 1))


# A sum of two terms: each is NaN-guarded alone.
POWLU = gated_formula("powlu", minimum(g, 0) * sigmoid(g) * u + bounded_power(g, 3) * sigmoid(g) * u,
                      source="arXiv:2605.25704",
                      note="m 3: gate^(3/(sqrt(gate) + 1)) sigmoid(gate) up where gate > 0, else silu(gate) up")
POLYNORM = Definition("polynorm", "tensor", None, source="arXiv:2411.03884",
                      text="weighted sum of x, x^2 and x^3, each divided by its root mean square",
                      note="not pointwise: normalizes over the hidden width; plain torch")
SOLU = Definition("solu", "tensor", None, source="Elhage et al. 2022", text="LayerNorm(x softmax(x))",
                  note="not pointwise: softmax and LayerNorm over the hidden width; plain torch")

CATALOG: tuple[Definition, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Definition))
"""All definitions, in the order of this file."""
