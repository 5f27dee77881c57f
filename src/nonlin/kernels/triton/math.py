"""The primitives of activation formulas in Triton, as in cpu/math.h.

KIND selects the arithmetic: 0 (fast) is float32 for 16-bit results, 1 (exact) is compensated float32, 2 is float64. A
low part is the argument's rounding-error term (double-single); None if the argument is exact.

The exact kind uses correctly rounded operations alone (sums, products, fused multiply-adds, true division): Triton's
interpreter computes the same bits as a GPU, so its accuracy tests hold there. The fast kind uses the GPU's approximate
exp2 and reciprocal, at most two float32 ulp by the manual. A 16-bit ulp is 8192 (float16) or 65536 (bfloat16) times as
large.
"""

import triton
import triton.language as tl

from nonlin.kernels.triton import math64 as d
from nonlin.kernels.triton.arithmetic import PTX, divide, larger, plus, product_error, ptx, signed_like, smaller


@triton.jit
def power_of_two(p, power):
    # In two factors: 2^128 overflows float32, and a subnormal result must be rounded once.
    half = power >> 1
    first = ((half + 127) << 23).to(tl.float32, bitcast=True)
    return p * first * ((power - half + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exp_exact(x, low, KIND: tl.constexpr):
    """exp(x + low) in float32 for -104 <= x <= 89 or nan, and its last rounding's error term.

    Cody-Waite reduction with ln(2) in two parts, then Cephes' polynomial by Horner.
    """
    shifted = tl.fma(x, 1.44269504088896341, 12582912.0)  # 1.5 * 2^23: adding it rounds to the nearest integer
    power = shifted.to(tl.int32, bitcast=True) - 0x4B400000
    n = shifted - 12582912.0
    r = tl.fma(n, -0.693359375, x)
    r = plus(tl.fma(n, 2.12194440e-4, r), low, KIND)
    p = tl.fma(r, 1.9875691500e-4, 1.3981999507e-3)
    p = tl.fma(p, r, 8.3334519073e-3)
    p = tl.fma(p, r, 4.1665795894e-2)
    p = tl.fma(p, r, 1.6666665459e-1)
    p = tl.fma(p, r, 5.0000001201e-1)
    rest = tl.fma(p, r * r, r)
    p = 1.0 + rest
    lost = rest - (p - 1.0)
    return power_of_two(p, power), power_of_two(lost, power)


@triton.jit
def exp2_normal(x):
    """2^x in float32 for results that are 0 or not subnormal: without the scaling that subnormal ones need."""
    if PTX:
        return ptx("ex2.approx.ftz.f32 $0, $1;", x)
    else:
        return tl.exp2(x)


@triton.jit
def exp_fast(x):
    """exp(x) in float32, relative error 1e-5 where that is not subnormal: the square of a power of 2, which never is.

    The argument's rounding moves the result by |x| / 2^24 of itself, which far tails alone feel.
    """
    e = exp2_normal(x * 0.7213475108146667)  # log2(e) / 2
    return e * e


@triton.jit
def reciprocal(x, KIND: tl.constexpr):
    """1 / x for 1 <= x <= 2^100 or nan, correctly rounded in the exact kind."""
    if KIND == 1:
        return tl.div_rn(1.0, x)
    elif KIND == 2:
        return 1.0 / x
    else:
        if PTX:
            return ptx("rcp.approx.ftz.f32 $0, $1;", x)
        else:
            return 1.0 / x


@triton.jit
def decay(x, low, KIND: tl.constexpr):
    """exp(-|x + low|) in float32, and its last rounding's error term; the fast kind leaves out both low parts."""
    if KIND == 0:
        return exp_fast(-tl.abs(x)), 0.0
    elif low is None:  # passed on, never returned: Triton before 3.7 cannot return None
        return exp_exact(larger(-tl.abs(x), -104.0), None, KIND)
    else:
        return exp_exact(larger(-tl.abs(x), -104.0), -signed_like(low, x), KIND)


@triton.jit
def exp(x, low, KIND: tl.constexpr):
    if KIND == 2:
        return tl.exp(x)
    elif KIND == 0:
        return exp_fast(x)
    else:
        z, _ = exp_exact(smaller(larger(x, -104.0), 89.0), low, KIND)
        return z


@triton.jit
def expm1(x, low, KIND: tl.constexpr):
    if KIND == 2:
        return d.expm1(x)
    else:
        p = tl.fma(x, 1.0 / 40320, 1.0 / 5040)
        p = tl.fma(p, x, 1.0 / 720)
        p = tl.fma(p, x, 1.0 / 120)
        p = tl.fma(p, x, 1.0 / 24)
        p = tl.fma(p, x, 1.0 / 6)
        p = tl.fma(p, x, 0.5)
        p = plus(tl.fma(p, x * x, x), low, KIND)
        return tl.where(tl.abs(x) < 0.5, p, exp(x, low, KIND) - 1)


@triton.jit
def sigmoids(x, low, KIND: tl.constexpr):
    """(sigmoid(x), sigmoid(-x)) from z = exp(-|x|): the small side, z / (1 + z), keeps its digits."""
    if KIND == 2:
        z = tl.exp(-tl.abs(x))
        large = 1 / (1 + z)
        small = z * large
    else:
        z, lost = decay(x, low, KIND)
        whole = 1.0 + z
        large = reciprocal(whole, KIND)
        small = z * large
        if KIND == 1:
            # Error terms of exp, the sum, the division and the product.
            large_low = large * tl.fma(-large, (z - (whole - 1.0)) + lost, tl.fma(-large, whole, 1.0))
            small = small + tl.fma(z, large_low, tl.fma(lost, large, product_error(z, large, small)))
            large = large + large_low
    negative = x < 0
    return tl.where(negative, small, large), tl.where(negative, large, small)


@triton.jit
def tanh(x, low, KIND: tl.constexpr):
    if KIND == 2:
        return d.tanh(x)
    else:
        a = tl.abs(x)
        s = x * x
        p = tl.fma(s, -5.70498872745e-3, 2.06390887954e-2)
        p = tl.fma(p, s, -5.37397155531e-2)
        p = tl.fma(p, s, 1.33314422036e-1)
        p = tl.fma(p, s, -3.33332819422e-1)
        p = plus(p * s * x, low, KIND) + x
        # 1 - 2z / (1 + z) for z = exp(-2|x|).
        z, lost = decay(a + a, None, KIND)
        whole = 1.0 + z
        if KIND == 1:  # noqa: SIM108 - a compile-time choice
            q = tl.div_rn(z + z, whole)
        else:
            q = (z + z) * reciprocal(whole, KIND)
        large = 1.0 - q
        if KIND == 1:
            rest = tl.fma(-q, (z - (whole - 1.0)) + lost, tl.fma(-q, whole, z + z)) + (lost + lost)
            small = ((1.0 - large) - q) - rest * tl.fma(q, -0.5, 1.0)
            if low is not None:
                small = small + signed_like(low, x) * (1.0 - large * large)
            large = plus(large, small, KIND)
        return tl.where(a < 0.625, p, tl.where(x < 0, -large, large))


@triton.jit
def log32(x):
    """log(x) in float32 for x > 0, not subnormal (Cephes' polynomial)."""
    bits = x.to(tl.int32, bitcast=True)
    m = ((bits & 0x007FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    e = (((bits >> 23) & 0xFF) - 126).to(tl.float32)
    small = m < 0.707106781186547524
    e = tl.where(small, e - 1.0, e)
    m = tl.where(small, m + m, m) - 1.0
    z = m * m
    p = tl.fma(m, 7.0376836292e-2, -1.1514610310e-1)
    p = tl.fma(p, m, 1.1676998740e-1)
    p = tl.fma(p, m, -1.2420140846e-1)
    p = tl.fma(p, m, 1.4249322787e-1)
    p = tl.fma(p, m, -1.6668057665e-1)
    p = tl.fma(p, m, 2.0000714765e-1)
    p = tl.fma(p, m, -2.4999993993e-1)
    p = tl.fma(p, m, 3.3333331174e-1)
    y = tl.fma(e, -2.12194440e-4, p * m * z)
    y = tl.fma(z, -0.5, y)
    return tl.fma(e, 0.693359375, m + y)


@triton.jit
def log1p(x, low, KIND: tl.constexpr):
    u = 1 + x
    if KIND == 2:
        y = d.log1p_unit(x)
    else:
        y = log32(u) - divide((u - 1.0) - x, u, KIND)  # plus the error term of 1 + x (Kahan)
        if low is not None:
            y = plus(y, divide(low, u, KIND), KIND)
    y = tl.where(x < float("inf"), y, x)
    y = tl.where(u > 0, y, tl.where(x < -1, float("nan"), float("-inf")))
    return tl.where(x == x, y, x)


@triton.jit
def softplus(x, low, KIND: tl.constexpr):
    if KIND == 2:
        return larger(x, 0.0) + d.log1p_unit(tl.exp(-tl.abs(x)))
    else:
        z, _ = decay(x, low, KIND)
        # log(1 + z) for 0 <= z <= 1: minimax fit of degree 9, relative error 3e-8.
        p = tl.fma(z, 0.005364703945815563, -0.03006531111896038)
        p = tl.fma(p, z, 0.07920375466346741)
        p = tl.fma(p, z, -0.13753736019134521)
        p = tl.fma(p, z, 0.19153624773025513)
        p = tl.fma(p, z, -0.24857155978679657)
        p = tl.fma(p, z, 0.333213210105896)
        p = tl.fma(p, z, -0.49999648332595825)
        return larger(x, 0.0) + tl.fma(p * z, z, z)


@triton.jit
def atan_unit(t, KIND: tl.constexpr):
    """arctan for 0 <= t <= 1; in float32 a minimax fit of degree 17, relative error 2e-8."""
    if KIND == 2:
        return d.atan_unit(t)
    else:
        s = t * t
        p = tl.fma(s, 0.0029206271283328533, -0.01636768828596592)
        p = tl.fma(p, s, 0.0432114414870739)
        p = tl.fma(p, s, -0.0755217894911766)
        p = tl.fma(p, s, 0.10665988177061081)
        p = tl.fma(p, s, -0.14211051166057587)
        p = tl.fma(p, s, 0.19993771612644196)
        p = tl.fma(p, s, -0.33333152532577515)
        return tl.fma(p * s, t, t)


@triton.jit
def atan(x, low, KIND: tl.constexpr):
    a = tl.abs(x)
    large = a > 1
    t = atan_unit(tl.where(large, divide(1.0, a, KIND), a), KIND)
    if KIND == 2:  # noqa: SIM108 - a compile-time choice
        t = tl.where(large, 1.5707963267948966 - t, t)
    else:
        t = tl.where(large, (1.57079637 - t) - 4.37113883e-8, t)
    return tl.where(x < 0, -t, t)


@triton.jit
def cauchy(x, low, KIND: tl.constexpr):
    """1/2 + atan(x)/pi; the negative tail by 1/x, since the sum would cancel."""
    a = tl.abs(x)
    large = a > 1
    t = atan_unit(tl.where(large, divide(1.0, a, KIND), a), KIND) * 0.31830988618379067
    below = tl.where(large, t, 0.5 - t)
    return tl.where(x < 0, below, 1 - below)


@triton.jit
def gauss(a, low, KIND: tl.constexpr):
    """exp(-(a + low)^2 / 2) for 0 <= a or nan. The square is compensated, except in the fast kind."""
    if KIND == 2:
        return d.gauss(a)
    else:
        a = smaller(a, 20.0)
        square = a * a
        if KIND == 1:
            rest = product_error(a, a, square) * -0.5
            if low is not None:
                rest = tl.fma(-a, low, rest)
            z, _ = exp_exact(larger(square * -0.5, -104.0), rest, KIND)
        else:
            z = exp_fast(square * -0.5)
        return z


@triton.jit
def phi(x, low, KIND: tl.constexpr):
    if low is None:
        return gauss(tl.abs(x), None, KIND) * 0.39894228040143267794
    else:
        return gauss(tl.abs(x), signed_like(low, x), KIND) * 0.39894228040143267794


@triton.jit
def tail_ratio(a, KIND: tl.constexpr):
    """exp(a^2/2) Phi(-a) for 0 <= a <= 20, as t P(t) with t = 1 / (1 + 0.45 a), and its error term.

    A minimax fit of degree 11, relative error 7e-9.
    """
    whole = tl.fma(a, 0.45, 1.0)
    t = reciprocal(whole, KIND)
    s = t - 0.375
    p = tl.fma(s, -0.04462641477584839, 0.10255611687898636)
    p = tl.fma(p, s, -0.050445329397916794)
    p = tl.fma(p, s, -0.07640846073627472)
    p = tl.fma(p, s, 0.09060744941234589)
    p = tl.fma(p, s, 0.045420072972774506)
    p = tl.fma(p, s, -0.11312492191791534)
    p = tl.fma(p, s, -0.0590236522257328)
    p = tl.fma(p, s, 0.16541485488414764)
    p = tl.fma(p, s, 0.30482959747314453)
    h = tl.fma(p, s, 0.26974010467529297)
    ratio = h * t
    t_low = t * tl.fma(-tl.fma(a, 0.45, 1.0 - whole), t, tl.fma(-whole, t, 1.0))
    h_low = tl.fma(p, t_low, tl.fma(p, s, 0.26974010467529297 - h)) + 6.307946165406975e-09
    return ratio, tl.fma(h, t_low, tl.fma(h_low, t, product_error(h, t, ratio)))


@triton.jit
def Phi(x, low, KIND: tl.constexpr):
    if KIND == 2:
        return d.normal_cdf(x)
    else:
        a = smaller(tl.abs(x), 20.0)
        ratio, ratio_low = tail_ratio(a, KIND)
        density = gauss(a, None, KIND)
        if KIND == 1:
            if low is not None:
                # The tail's derivative is minus the density over sqrt(2 pi).
                ratio_low = tl.fma(signed_like(low, x), -0.3989422804, ratio_low)
            tail = tl.fma(ratio, density, ratio_low * density)
        else:
            tail = ratio * density
        return tl.where(x > 0, 1.0 - tail, tail)


@triton.jit
def erf(x, low, KIND: tl.constexpr):
    """1 - 2 Phi(-x sqrt 2); a series near 0."""
    if KIND == 2:
        return tl.erf(x)
    else:
        a = tl.abs(x)
        s = x * x
        p = tl.fma(s, -1.0 / 75600, 1.0 / 9360)
        p = tl.fma(p, s, -1.0 / 1320)
        p = tl.fma(p, s, 1.0 / 216)
        p = tl.fma(p, s, -1.0 / 42)
        p = tl.fma(p, s, 1.0 / 10)
        p = tl.fma(p, s, -1.0 / 3)
        p = tl.fma(p * s, x, x) * 1.1283791671
        large = tl.fma(Phi(a * -1.41421356, None, 0), -2.0, 1.0)
        return tl.where(a < 0.6, p, tl.where(x < 0, -large, large))


@triton.jit
def step(x, low, KIND: tl.constexpr):
    return tl.where(x > 0, 1.0, tl.where(x == x, 0.0, x))


@triton.jit
def nonnegative(x, low, KIND: tl.constexpr):
    return tl.where(x >= 0, 1.0, tl.where(x == x, 0.0, x))


@triton.jit
def sign(x, low, KIND: tl.constexpr):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))


@triton.jit
def absolute(x, low, KIND: tl.constexpr):
    return tl.abs(x)
