"""Float64 primitives that Triton lacks, from those it has (exp, log, erf), as in cpu/math64.h.

The coefficients are Chebyshev interpolations, computed at 60 digits.
"""

import triton
import triton.language as tl


@triton.jit
def expm1(x):
    # Kahan: (u - 1) x / log u for u = exp(x); the rounding errors cancel.
    u = tl.exp(x)
    near = tl.where(u == 1, x, (u - 1) * x / tl.log(u))
    return tl.where(tl.abs(x) < 1, near, u - 1)


@triton.jit
def tanh(x):
    a = tl.abs(x)
    e = expm1(-2 * a)
    large = -e / (2 + e)
    return tl.where(x < 0, -large, tl.where(x == 0, x, large))


@triton.jit
def log1p_unit(x):
    """log(1 + x) for -1 < x. Kahan: x log u / (u - 1) for u = 1 + x; the sum's rounding error cancels."""
    u = 1 + x
    return tl.where(u == 1, x, tl.log(u) * x / (u - 1))


@triton.jit
def atan_unit(t):
    """arctan for 0 <= t <= 1: a fit of degree 45, relative error 4e-16."""
    s = 2 * (t * t) - 1
    p = s * 1.293081691790813e-12 + -4.048723308331434e-12
    p = p * s + 5.2660952321692814e-12
    p = p * s + -1.6649704524279563e-11
    p = p * s + 7.137783789145907e-11
    p = p * s + -2.2610231886790481e-10
    p = p * s + 6.919944020431581e-10
    p = p * s + -2.208281491755967e-09
    p = p * s + 7.099509212434809e-09
    p = p * s + -2.285234288746683e-08
    p = p * s + 7.393952233672895e-08
    p = p * s + -2.4077722324530413e-07
    p = p * s + 7.898664992314531e-07
    p = p * s + -2.614079513157223e-06
    p = p * s + 8.744938258275806e-06
    p = p * s + -2.965003947163037e-05
    p = p * s + 0.00010227656116493796
    p = p * s + -0.00036098208718017745
    p = p * s + 0.0013155859496274019
    p = p * s + -0.005030863660244241
    p = p * s + 0.020851851207108144
    p = p * s + -0.10187654235021827
    p = p * s + 0.8704197513671031
    return p * t


@triton.jit
def gauss(a):
    """exp(-a^2 / 2) for 0 <= a or nan. Split a, so that the high part's square is exact."""
    a = tl.minimum(a, 40.0, propagate_nan=tl.PropagateNan.ALL)
    high = a.to(tl.float32).to(tl.float64)  # its square is exact
    return tl.exp(-0.5 * (high * high)) * tl.exp(-0.5 * ((a - high) * (a + high)))


@triton.jit
def normal_cdf(x):
    """Phi(x); the tail is exp(-a^2/2) t P(t), t = 1 / (1 + 0.3 a), a fit of degree 25, relative error 6e-16."""
    a = tl.minimum(tl.abs(x), 40.0, propagate_nan=tl.PropagateNan.ALL)
    t = 1 / (a * 0.3 + 1)
    s = (t - 0.5384615384615384) * 2.1666666666666665
    p = s * 4.7829375677333587e-11 + -7.530818908955448e-11
    p = p * s + -3.584266454256322e-10
    p = p * s + 9.188332826862553e-10
    p = p * s + 6.243514821630632e-10
    p = p * s + -5.1355143277716795e-09
    p = p * s + 5.7487651208711245e-09
    p = p * s + 1.3738840684049253e-08
    p = p * s + -5.3678401364051443e-08
    p = p * s + 2.4641273189099566e-08
    p = p * s + 2.4882365998826967e-07
    p = p * s + -5.406280144872354e-07
    p = p * s + -6.378028323713107e-07
    p = p * s + 4.15371970340514e-06
    p = p * s + -9.980549401410196e-07
    p = p * s + -2.668362335177705e-05
    p = p * s + 2.822184387272742e-05
    p = p * s + 0.00018731590332147574
    p = p * s + -0.00025360586770949205
    p = p * s + -0.0017774842934094605
    p = p * s + 0.0006087701778167395
    p = p * s + 0.022157394739947
    p = p * s + 0.07925033248079795
    p = p * s + 0.1646681313697207
    p = p * s + 0.23515539473917513
    tail = p * t * gauss(a)
    # Near 0 by erf, since 1/2 - tail would cancel.
    near = 0.5 + 0.5 * tl.erf(x * 0.70710678118654752440)
    return tl.where(tl.abs(x) < 0.5, near, tl.where(x > 0, 1 - tail, tail))
