// The primitives of activation formulas over one vector register: float in, float out, no branches.
//
// Coefficients are those of the Cephes library (exp, log) and of a minimax fit for the scaled complementary
// error function; the accuracy of what is built from them is tested against tables of high precision.
#pragma once
#include <cmath>

#include "native_gemm.h"

static inline vf select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
static inline vf vmax(vf a, vf b) { return select(a > b, a, b); }
static inline vf vmin(vf a, vf b) { return select(a < b, a, b); }

// exp(x), to about 1 ulp; subnormal below -87.3, 0 below -104, inf above 88.7; nan stays nan.
static inline vf vexp(vf x) {
  const vf top = splat(88.722839f), bottom = splat(-103.98f);
  const vf clipped = vmin(vmax(x, bottom), top);
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  vf n = clipped * splat(1.44269504088896341f) + magic;
  const vi power = (vi)n - (vi)magic;
  n = n - magic;
  vf r = clipped - n * splat(0.693359375f);
  r = r - n * splat(-2.12194440e-4f);
  vf p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + splat(1.0f);
  // Two steps, since 2^128 has no single float: exp(88.7) is finite.
  const vi half = power >> 1;
  const vf s1 = (vf)((half + 127) << 23), s2 = (vf)((power - half + 127) << 23);
  p = p * s1 * s2;
  p = select(x > top, splat(HUGE_VALF), p);
  p = select(x < bottom, splat(0.0f), p);
  return select(x != x, x, p);
}

static inline vf vabs(vf x) { return (vf)((vi)x & 0x7fffffff); }
static inline vf copysign_from(vf magnitude, vf sign) {
  return (vf)(((vi)magnitude & 0x7fffffff) | ((vi)sign & (int32_t)0x80000000));
}
// x * x - hi exactly, where the processor has a fused multiply-add; 0 elsewhere.
static inline vf square_error(vf x, vf hi) {
  vf out{};
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  for (int i = 0; i < VL; i++) out[i] = __builtin_fmaf(x[i], x[i], -hi[i]);
#endif
  return out;
}
static inline vf nl_exp(vf x) { return vexp(x); }
static inline vf nl_abs(vf x) { return vabs(x); }
static inline vf nl_step(vf x) { return select(x > splat(0.0f), splat(1.0f), select(x != x, x, splat(0.0f))); }
static inline vf nl_sign(vf x) {
  return select(x > splat(0.0f), splat(1.0f), select(x < splat(0.0f), splat(-1.0f), x));
}
// A nan in either argument stays.
static inline vf nl_max(vf a, vf b) { return select(a != a, a, select(a > b, a, b)); }
static inline vf nl_min(vf a, vf b) { return select(a != a, a, select(a < b, a, b)); }
static inline vf nl_sqrt(vf x) {
  vf out;
  for (int i = 0; i < VL; i++) out[i] = __builtin_sqrtf(x[i]);
  return out;
}
// By exp(-|x|), so that the small side keeps its digits where exp(|x|) would overflow.
static inline vf nl_sigmoid(vf x) {
  const vf z = vexp(-vabs(x));
  return select(x < splat(0.0f), z, splat(1.0f)) / (splat(1.0f) + z);
}
static inline vf nl_phi(vf x) {
  // exp(-(hi + lo)): the square's rounding error, times the square, is the density's relative error.
  const vf whole = x;
  x = vmin(vabs(x), splat(20.0f));  // the density is 0 there, and its square finite
  const vf hi = x * x, lo = square_error(x, hi);
  return select(whole != whole, whole,
                splat(0.3989422804f) * vexp(splat(-0.5f) * hi) * (splat(1.0f) - splat(0.5f) * lo));
}
static inline vf nl_expm1(vf x) {
  vf p = splat(1.0f / 40320);
  p = p * x + splat(1.0f / 5040);
  p = p * x + splat(1.0f / 720);
  p = p * x + splat(1.0f / 120);
  p = p * x + splat(1.0f / 24);
  p = p * x + splat(1.0f / 6);
  p = p * x + splat(0.5f);
  p = p * x * x + x;
  return select(vabs(x) < splat(0.5f), p, vexp(x) - splat(1.0f));
}
static inline vf nl_tanh(vf x) {
  const vf a = vabs(x), s = x * x;
  vf p = splat(-5.70498872745e-3f);
  p = p * s + splat(2.06390887954e-2f);
  p = p * s + splat(-5.37397155531e-2f);
  p = p * s + splat(1.33314422036e-1f);
  p = p * s + splat(-3.33332819422e-1f);
  p = p * s * x + x;
  const vf large = splat(1.0f) - splat(2.0f) / (vexp(a + a) + splat(1.0f));
  return select(x != x, x, select(a < splat(0.625f), p, copysign_from(large, x)));
}
// log(x) for x > 0 (Cephes).
static inline vf vlog(vf x) {
  vi bits = (vi)x;
  vi exponent = ((bits >> 23) & 0xff) - 126;
  vf m = (vf)((bits & 0x007fffff) | 0x3f000000);
  const vi small = m < splat(0.707106781186547524f);
  exponent += small;
  m = select(small, m + m, m) - splat(1.0f);
  const vf e = __builtin_convertvector(exponent, vf), z = m * m;
  vf p = splat(7.0376836292e-2f);
  p = p * m + splat(-1.1514610310e-1f);
  p = p * m + splat(1.1676998740e-1f);
  p = p * m + splat(-1.2420140846e-1f);
  p = p * m + splat(1.4249322787e-1f);
  p = p * m + splat(-1.6668057665e-1f);
  p = p * m + splat(2.0000714765e-1f);
  p = p * m + splat(-2.4999993993e-1f);
  p = p * m + splat(3.3333331174e-1f);
  vf y = p * m * z + e * splat(-2.12194440e-4f) - splat(0.5f) * z;
  return m + y + e * splat(0.693359375f);
}
static inline vf nl_log1p(vf x) {
  const vf u = splat(1.0f) + x;
  vf y = vlog(u) - ((u - splat(1.0f)) - x) / u;  // what rounding 1 + x lost
  y = select(x == splat(HUGE_VALF), x, y);
  y = select(u == splat(0.0f), splat(-HUGE_VALF), y);
  return select(x < splat(-1.0f), splat(NAN), select(x != x, x, y));
}
static inline vf nl_softplus(vf x) { return nl_max(x, splat(0.0f)) + nl_log1p(vexp(-vabs(x))); }

// The inverse tangent (Cephes): x, (x - 1) / (x + 1) or -1 / x, by size.
static inline vf nl_atan(vf x) {
  const vf a = vabs(x), one = splat(1.0f);
  const vi large = a > splat(2.414213562373095f), middle = a > splat(0.4142135623730950f);
  const vf t = select(large, -one / a, select(middle, (a - one) / (a + one), a));
  const vf base = select(large, splat(1.5707963267948966f), select(middle, splat(0.7853981633974483f), splat(0.0f)));
  const vf s = t * t;
  vf p = splat(8.05374449538e-2f);
  p = p * s + splat(-1.38776856032e-1f);
  p = p * s + splat(1.99777106478e-1f);
  p = p * s + splat(-3.33329491539e-1f);
  return select(x != x, x, copysign_from(base + (p * s * t + t), x));
}

// exp(z^2) erfc(z) for z >= 0, to a relative error of 1.2e-7 of the fit (Numerical Recipes, erfcc).
static inline vf erfcx_positive(vf z) {
  const vf t = splat(1.0f) / (splat(1.0f) + splat(0.5f) * z);
  vf p = splat(0.17087277f);
  p = p * t + splat(-0.82215223f);
  p = p * t + splat(1.48851587f);
  p = p * t + splat(-1.13520398f);
  p = p * t + splat(0.27886807f);
  p = p * t + splat(-0.18628806f);
  p = p * t + splat(0.09678418f);
  p = p * t + splat(0.37409196f);
  p = p * t + splat(1.00002368f);
  p = p * t + splat(-1.26551223f);
  return t * vexp(p);
}
static inline vf nl_erf(vf x) {
  const vf a = vabs(x), s = x * x;
  vf p = splat(-1.0f / (5040 * 15));
  p = p * s + splat(1.0f / (720 * 13));
  p = p * s + splat(-1.0f / (120 * 11));
  p = p * s + splat(1.0f / (24 * 9));
  p = p * s + splat(-1.0f / (6 * 7));
  p = p * s + splat(1.0f / (2 * 5));
  p = p * s + splat(-1.0f / 3);
  p = (p * s * x + x) * splat(1.1283791671f);
  const vf z = vmin(a, splat(10.0f));
  const vf large = copysign_from(splat(1.0f) - erfcx_positive(z) * vexp(-z * z), x);
  return select(x != x, x, select(a < splat(0.6f), p, large));
}
static inline vf nl_Phi(vf x) {
  // exp(-x^2 / 2) from x itself: the rounding of x / sqrt(2), times x^2, would cost the tail its digits.
  const vf a = vmin(vabs(x), splat(20.0f));
  const vf hi = a * a, lo = square_error(a, hi);
  const vf density = vexp(splat(-0.5f) * hi) * (splat(1.0f) - splat(0.5f) * lo);
  const vf tail = splat(0.5f) * erfcx_positive(a * splat(0.70710678f)) * density;
  return select(x != x, x, select(x > splat(0.0f), splat(1.0f) - tail, tail));
}
static inline vf nl_pow(vf x, int n) {
  vf result = splat(1.0f), base = x;
  for (int m = n < 0 ? -n : n; m; m >>= 1, base *= base)
    if (m & 1) result *= base;
  return n < 0 ? splat(1.0f) / result : result;
}
// A nan that no input brought is a product of 0 and infinity at the far end, where the limit is 0.
static inline vf mended(vf x, vi whole) { return select((x != x) & whole, splat(0.0f), x); }
