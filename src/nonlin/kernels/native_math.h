// The primitives of activation formulas over one vector register of float32, without branches.
//
// An argument may come with a low part: what its own rounding lost. Where a function magnifies that (the tails of
// exp, sigmoid, the normal distribution), it is put back. W says how exact the result must be: Exact marks the lanes
// where a result may be subnormal, to be computed again in double precision; Fast is for sixteen-bit results.
//
// Coefficients: exp and log of the Cephes library; the others are minimax fits, named where they stand. The accuracy
// of what is built from them is tested against tables of 50 digits.
#pragma once
#include "native_simd.h"

namespace {

struct None {};  // no low part
// Bounded, and never nan: where x is held between the ends of a range, what was lost of it says nothing.
static NL_INLINE vf plus(vf a, vf low) { return a + vmax(vmin(low, splat(0.0078125f)), splat(-0.0078125f)); }
static NL_INLINE vf plus(vf a, None) { return a; }
static NL_INLINE vf negated(vf a) { return -a; }
static NL_INLINE None negated(None) { return {}; }
static NL_INLINE vf signed_like(vf low, vf x) { return (vf)((vi)low ^ ((vi)x & (int32_t)0x80000000)); }
static NL_INLINE None signed_like(None, vf) { return {}; }
static NL_INLINE vf times(vf low, vf a) { return low * a; }
static NL_INLINE None times(None, vf) { return {}; }

struct Fast {
  static constexpr bool exact = false;
  NL_INLINE void small_exp(vf) {}
};
struct Exact {
  static constexpr bool exact = true;
  vf lowest = splat(0.0f);  // of the arguments of exp between -220 and -80
  NL_INLINE void small_exp(vf x) { lowest = vmin(select(less(splat(-220.0f), x), x, lowest), lowest); }
  NL_INLINE vm flagged() const { return less(lowest, splat(-80.0f)); }
};

// 2^power by two factors: 2^128 has no single float, and a subnormal result must be rounded once.
static NL_INLINE vf scaled(vf p, vf n, vi power) {
#if defined(NL_AVX512)
  (void)power;
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  (void)n;
  const vi half = power >> 1;
  return p * (vf)((half + 127) << 23) * (vf)((power - half + 127) << 23);
#endif
}
// exp(x + low) for -104 <= x <= 89 or nan. Where asked, `lost` is what the last rounding took.
template <class L>
static NL_INLINE vf exp_core(vf x, L low, vf* lost = nullptr) {
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const vf shifted = fma(x, splat(1.44269504088896341f), magic);
  const vi power = (vi)shifted - (vi)magic;
  const vf n = shifted - magic;
  vf r = fma(n, splat(-0.693359375f), x);
  r = plus(fma(n, splat(2.12194440e-4f), r), low);
  vf p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  const vf rest = fma(p, r * r, r);
  p = splat(1.0f) + rest;
  if (lost) *lost = scaled(rest - (p - splat(1.0f)), n, power);
  return scaled(p, n, power);
}
// exp(x + low) for x <= 0; 0 below -104, subnormal before; nan stays.
template <class W, class L>
static NL_INLINE vf exp_negative(W& w, vf x, L low) {
  w.small_exp(x);
  return exp_core(vmax(splat(-104.0f), x), low);
}
template <class W, class L>
static NL_INLINE vf nl_exp(W& w, vf x, L low) {
  w.small_exp(x);
  return exp_core(vmin(splat(89.0f), vmax(splat(-104.0f), x)), low);
}
static NL_INLINE vf vexp(vf x) {
  Fast w;
  return nl_exp(w, x, None{});
}

template <class W>
static NL_INLINE vf nl_abs(W&, vf x, None) { return vabs(x); }
template <class W>
static NL_INLINE vf nl_step(W&, vf x, None) {
  return select(less(splat(0.0f), x), splat(1.0f), select(is_nan(x), x, splat(0.0f)));
}
template <class W>
static NL_INLINE vf nl_sign(W&, vf x, None) {
  return select(less(splat(0.0f), x), splat(1.0f), select(less(x, splat(0.0f)), splat(-1.0f), x));
}
// A nan in either argument stays.
static NL_INLINE vf nl_max(vf a, vf b) { return select(is_nan(a), a, vmax(a, b)); }
static NL_INLINE vf nl_min(vf a, vf b) { return select(is_nan(a), a, vmin(a, b)); }
static NL_INLINE vf nl_max_number(vf number, vf x) { return vmax(number, x); }
static NL_INLINE vf nl_min_number(vf number, vf x) { return vmin(number, x); }
static NL_INLINE vf nl_sqrt(vf x) { return vsqrt(x); }
// The low part of whichever of two was taken.
static NL_INLINE vf low_of(vf taken, vf a, vf a_low, vf b_low) {
  return select(less(a, taken), b_low, select(less(taken, a), b_low, a_low));
}
// The low part of a / b, where quotient is a / b rounded.
static NL_INLINE vf quotient_error(vf a, vf b, vf quotient) {
  return (-(product_error(quotient, b, quotient * b)) + (a - quotient * b)) / b;
}

// sigmoid(x) and sigmoid(-x).
template <class V>
struct Both {
  V plus, minus;
};
// By z = exp(-|x|), so that the small side, z / (1 + z), keeps its digits where exp(|x|) would overflow. Who takes one
// of the two tells w of its argument.
template <class W, class L>
static NL_INLINE Both<vf> nl_sigmoids(W&, vf x, L low) {
  const vf one = splat(1.0f);
  vf lost;
  const vf z = exp_core(vmax(splat(-104.0f), -vabs(x)), negated(signed_like(low, x)), W::exact ? &lost : nullptr);
  const vf d = one + z;
  vf large = one / d, small = z * large;
  if constexpr (W::exact) {
    // What exp, the sum, the division and the product lost.
    const vf large_low = large * fma(-large, (z - (d - one)) + lost, fma(-large, d, one));
    small = small + fma(z, large_low, fma(lost, large, product_error(z, large, small)));
    large = large + large_low;
  }
  const vm negative = less(x, splat(0.0f));
  return {select(negative, small, large), select(negative, large, small)};
}
template <class W, class L>
static NL_INLINE vf nl_expm1(W& w, vf x, L low) {
  vf p = splat(1.0f / 40320);
  p = fma(p, x, splat(1.0f / 5040));
  p = fma(p, x, splat(1.0f / 720));
  p = fma(p, x, splat(1.0f / 120));
  p = fma(p, x, splat(1.0f / 24));
  p = fma(p, x, splat(1.0f / 6));
  p = fma(p, x, splat(0.5f));
  p = plus(fma(p, x * x, x), low);
  Fast inner;  // exp underflows to what it is: 1 is taken from it
  (void)w;
  return select(less(vabs(x), splat(0.5f)), p, nl_exp(inner, x, low) - splat(1.0f));
}
// 1 - 2z / (1 + z) with z = exp(-2|x|); near 0 a polynomial.
template <class W, class L>
static NL_INLINE vf nl_tanh(W&, vf x, L low) {
  const vf a = vabs(x), s = x * x, one = splat(1.0f);
  vf p = splat(-5.70498872745e-3f);
  p = fma(p, s, splat(2.06390887954e-2f));
  p = fma(p, s, splat(-5.37397155531e-2f));
  p = fma(p, s, splat(1.33314422036e-1f));
  p = fma(p, s, splat(-3.33332819422e-1f));
  p = plus(p * s * x, low) + x;
  vf lost;
  const vf z = exp_core(vmax(splat(-104.0f), -(a + a)), None{}, W::exact ? &lost : nullptr);
  const vf d = one + z, q = (z + z) / d;
  vf large = one - q;
  if constexpr (W::exact) {
    const vf rest = fma(-q, (z - (d - one)) + lost, fma(-q, d, z + z)) + (lost + lost);
    const vf small = ((one - large) - q) - rest * fma(splat(-0.5f), q, one);
    large = large + plus(small, times(signed_like(low, x), one - large * large));
  }
  return select(less(a, splat(0.625f)), p, copysign_from(large, x));
}
// log(x) for x > 0.
static NL_INLINE vf vlog(vf x) {
  const vi bits = (vi)x;
  vf m = (vf)((bits & 0x007fffff) | 0x3f000000);
  vf e = __builtin_convertvector(((bits >> 23) & 0xff) - 126, vf);
  const vm small = less(m, splat(0.707106781186547524f));
  e = select(small, e - splat(1.0f), e);
  m = select(small, m + m, m) - splat(1.0f);
  const vf z = m * m;
  vf p = splat(7.0376836292e-2f);
  p = fma(p, m, splat(-1.1514610310e-1f));
  p = fma(p, m, splat(1.1676998740e-1f));
  p = fma(p, m, splat(-1.2420140846e-1f));
  p = fma(p, m, splat(1.4249322787e-1f));
  p = fma(p, m, splat(-1.6668057665e-1f));
  p = fma(p, m, splat(2.0000714765e-1f));
  p = fma(p, m, splat(-2.4999993993e-1f));
  p = fma(p, m, splat(3.3333331174e-1f));
  vf y = fma(e, splat(-2.12194440e-4f), p * m * z);
  y = fma(splat(-0.5f), z, y);
  return fma(e, splat(0.693359375f), m + y);
}
template <class W>
static NL_INLINE vf nl_log1p(W&, vf x, None) {
  const vf u = splat(1.0f) + x, infinity = splat(HUGE_VALF);
  vf y = vlog(u) - ((u - splat(1.0f)) - x) / u;  // what rounding 1 + x lost
  y = select(less(x, infinity), y, x);           // infinity and nan
  y = select(less(splat(0.0f), u), y, select(less(x, splat(-1.0f)), splat(NAN), -infinity));
  return select(is_nan(x), x, y);
}
// log(1 + z) for 0 <= z <= 1: a fit of degree 9, relative error 3e-8.
static NL_INLINE vf log1p_unit(vf z) {
  vf p = splat(0.005364703945815563f);
  p = fma(p, z, splat(-0.03006531111896038f));
  p = fma(p, z, splat(0.07920375466346741f));
  p = fma(p, z, splat(-0.13753736019134521f));
  p = fma(p, z, splat(0.19153624773025513f));
  p = fma(p, z, splat(-0.24857155978679657f));
  p = fma(p, z, splat(0.333213210105896f));
  p = fma(p, z, splat(-0.49999648332595825f));
  return fma(p * z, z, z);
}
template <class W, class L>
static NL_INLINE vf nl_softplus(W& w, vf x, L low) {
  w.small_exp(x);
  const vf z = exp_core(vmax(splat(-104.0f), -vabs(x)), negated(signed_like(low, x)));
  return vmax(splat(0.0f), x) + log1p_unit(z);
}
// The inverse tangent for 0 <= t <= 1: a fit of degree 17, relative error 2e-8.
static NL_INLINE vf atan_unit(vf t) {
  const vf s = t * t;
  vf p = splat(0.0029206271283328533f);
  p = fma(p, s, splat(-0.01636766828596592f));
  p = fma(p, s, splat(0.0432114414870739f));
  p = fma(p, s, splat(-0.0755217894911766f));
  p = fma(p, s, splat(0.10665988177061081f));
  p = fma(p, s, splat(-0.14211051166057587f));
  p = fma(p, s, splat(0.19993771612644196f));
  p = fma(p, s, splat(-0.33333152532577515f));
  return fma(p * s, t, t);
}
template <class W>
static NL_INLINE vf nl_atan(W&, vf x, None) {
  const vf a = vabs(x), one = splat(1.0f);
  const vm large = less(one, a);
  const vf t = atan_unit(select(large, one / a, a));
  return copysign_from(select(large, (splat(1.57079637f) - t) - splat(4.37113883e-8f), t), x);
}
// 1/2 + atan(x)/pi: the tail of the negative side by 1/x, where the sum would lose its digits.
template <class W>
static NL_INLINE vf nl_cauchy(W&, vf x, None) {
  const vf a = vabs(x), one = splat(1.0f);
  const vm large = less(one, a);
  const vf t = atan_unit(select(large, one / a, a)) * splat(0.31830988618379067f);
  const vf below = select(large, t, splat(0.5f) - t);
  return select(less(x, splat(0.0f)), below, one - below);
}

// exp(-(a + low)^2 / 2) for 0 <= a; nan stays. Where W is exact, the square's rounding error is put back.
template <class W, class L>
static NL_INLINE vf gauss(W&, vf a, L low) {
  a = vmin(splat(20.0f), a);
  const vf square = a * a;
  if constexpr (!W::exact) return exp_core(vmax(splat(-104.0f), square * splat(-0.5f)), None{});
  vf rest = product_error(a, a, square) * splat(-0.5f);
  if constexpr (!std::is_same<L, None>::value) rest = fma(-a, low, rest);
  return exp_core(vmax(splat(-104.0f), square * splat(-0.5f)), rest);
}
template <class W, class L>
static NL_INLINE vf nl_phi(W& w, vf x, L low) {
  const vf a = vabs(x);
  w.small_exp(splat(-0.5f) * (a * a));
  return gauss(w, a, signed_like(low, x)) * splat(0.3989422804f);
}
// exp(a^2/2) Phi(-a) for a >= 0, as t P(t) with t = 1 / (1 + 0.45 a): a fit of degree 11, relative error 7e-9.
// Where W is exact, `low` is what the last roundings lost.
template <class W>
static NL_INLINE vf tail_ratio(W&, vf a, vf* low) {
  const vf k = splat(0.45f), one = splat(1.0f);
  const vf d = fma(a, k, one), t = one / d, s = t - splat(0.375f);
  vf p = splat(-0.04462641477584839f);
  p = fma(p, s, splat(0.10255611687898636f));
  p = fma(p, s, splat(-0.050445329397916794f));
  p = fma(p, s, splat(-0.07640846073627472f));
  p = fma(p, s, splat(0.09060744941234589f));
  p = fma(p, s, splat(0.045420072972774506f));
  p = fma(p, s, splat(-0.11312492191791534f));
  p = fma(p, s, splat(-0.0590236522257328f));
  p = fma(p, s, splat(0.16541485488414764f));
  p = fma(p, s, splat(0.30482959747314453f));
  const vf last = splat(0.26974010467529297f), h = fma(p, s, last), ratio = h * t;
  if constexpr (W::exact) {
    const vf t_low = t * fma(-fma(a, k, one - d), t, fma(-d, t, one));
    const vf h_low = fma(p, t_low, fma(p, s, last - h)) + splat(6.307946165406975e-09f);
    *low = fma(h, t_low, fma(h_low, t, product_error(h, t, ratio)));
  }
  return ratio;
}
template <class W, class L>
static NL_INLINE vf nl_Phi(W& w, vf x, L low) {
  const vf whole = vabs(x), a = vmin(splat(20.0f), whole);
  w.small_exp(vmin(x, splat(0.0f)) * (splat(0.5f) * whole));
  vf ratio_low;
  const vf ratio = tail_ratio(w, a, &ratio_low), density = gauss(w, a, None{});
  vf tail = ratio * density;
  if constexpr (W::exact) {
    // The slope of the tail is minus the density over sqrt(2 pi).
    if constexpr (!std::is_same<L, None>::value) ratio_low = fma(signed_like(low, x), splat(-0.3989422804f), ratio_low);
    tail = fma(ratio, density, ratio_low * density);
  }
  return select(less(splat(0.0f), x), splat(1.0f) - tail, tail);
}
// erf(x) = 1 - 2 Phi(-x sqrt 2); near 0 its series.
template <class W, class L>
static NL_INLINE vf nl_erf(W&, vf x, L) {
  const vf a = vabs(x), s = x * x;
  vf p = splat(-1.0f / (5040 * 15));
  p = fma(p, s, splat(1.0f / (720 * 13)));
  p = fma(p, s, splat(-1.0f / (120 * 11)));
  p = fma(p, s, splat(1.0f / (24 * 9)));
  p = fma(p, s, splat(-1.0f / (6 * 7)));
  p = fma(p, s, splat(1.0f / (2 * 5)));
  p = fma(p, s, splat(-1.0f / 3));
  p = fma(p * s, x, x) * splat(1.1283791671f);
  Fast w;
  const vf tail = nl_Phi(w, a * splat(-1.41421356f), None{});
  return select(less(a, splat(0.6f)), p, copysign_from(fma(splat(-2.0f), tail, splat(1.0f)), x));
}
}  // namespace
