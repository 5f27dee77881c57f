// The primitives of activation formulas over one vector register of float32, without branches.
//
// An argument may carry a low part, its rounding-error term (double-single). Functions that amplify it add it back: the
// tails of exp, sigmoid and the normal distribution. The policy W sets the accuracy: Exact marks lanes with possibly
// subnormal results for recomputation in double precision; Fast is for 16-bit results.
//
// Coefficients: exp and log are the Cephes library's; the others are minimax fits, noted beside them. Tests compare the
// results with 50-digit tables.
#pragma once
#include "policy.h"

namespace {

struct None {};  // no low part
// Never nan: a clamped argument, and the root of zero, have no meaningful error term.
static NL_INLINE vf bounded(vf low) { return select(less(vabs(low), splat(0.0078125f)), low, splat(0.f)); }
static NL_INLINE None bounded(None) { return {}; }
static NL_INLINE vf sum(vf a, vf low) { return a + low; }
static NL_INLINE vf sum(vf a, None) { return a; }
static NL_INLINE vf plus(vf a, vf low) { return a + bounded(low); }
struct Sure { vf low; };  // bounded by construction
static NL_INLINE vf plus(vf a, Sure b) { return a + b.low; }
static NL_INLINE vf plus(vf a, None) { return a; }
static NL_INLINE vf signed_like(vf low, vf x) { return (vf)((vi)low ^ ((vi)x & (int32_t)0x80000000)); }
static NL_INLINE None signed_like(None, vf) { return {}; }
static NL_INLINE vf times(vf low, vf a) { return low * a; }
static NL_INLINE None times(None, vf) { return {}; }

constexpr double power(double x, int n) { return n == 0 ? 1 : x * power(x, n - 1); }
// Exponentials of the reduced argument r = (H / 2) s. H is a power of two, folded into the coefficients: no instruction
// and no rounding error.
template <int H>
static NL_INLINE vf coefficient(float c, int degree) { return splat(static_cast<float>(c * power(H / 2.0, degree))); }
// (e^r - 1) / s for |r| <= ln(2) / 2, Horner: minimax fits of e^r, exact at 0, relative error 3e-6 and 9e-8.
template <int B, int H>
static NL_INLINE vf exp_slope(vf s) {
  if constexpr (B == 8) {
    vf p = coefficient<H>(0.04151368513703346f, 4);
    p = fma(p, s, coefficient<H>(0.16787591576576233f, 3));
    p = fma(p, s, coefficient<H>(0.5000302195549011f, 2));
    return fma(p, s, coefficient<H>(0.9999668002128601f, 1));
  } else {
    vf p = coefficient<H>(0.008290273137390614f, 5);
    p = fma(p, s, coefficient<H>(0.04189816117286682f, 4));
    p = fma(p, s, coefficient<H>(0.1666763871908188f, 3));
    p = fma(p, s, coefficient<H>(0.4999914765357971f, 2));
    return fma(p, s, coefficient<H>(0.9999997019767761f, 1));
  }
}
// (e^r - 1 - r) / s^2. With it e^r - 1, error 3e-9 relative to e^r and vanishing near 0; and e^r, rounded twice.
template <int H>
static NL_INLINE vf exp_beyond(vf s) {
  vf p = coefficient<H>(0.0013814516132697463f, 6);
  p = fma(p, s, coefficient<H>(0.00836874544620514f, 5));
  p = fma(p, s, coefficient<H>(0.04166839271783829f, 4));
  p = fma(p, s, coefficient<H>(0.1666652113199234f, 3));
  return fma(p, s, coefficient<H>(0.4999999403953552f, 2));
}
template <int H>
static NL_INLINE vf exp_rest(vf s) { return fma(exp_beyond<H>(s), s * s, s * splat(H / 2.0f)); }
template <int H>
static NL_INLINE vf exp_whole(vf s) { return fma(fma(exp_beyond<H>(s), s, splat(H / 2.0f)), s, splat(1.0f)); }
// Cody-Waite reduction: s + low - n ln(2) (2 / H), with ln(2) in two parts for float32.
template <int B, int H, class L>
static NL_INLINE vf reduced(vf s, L low, vf n) {
  constexpr float per = 2.0f / H;
  if constexpr (B < 24) return fma(n, splat(-0.693147182464599609375f * per), s);
  return plus(fma(n, splat(2.12194440e-4f * per), fma(n, splat(-0.693359375f * per), s)), low);
}
constexpr float LOG2E = 1.44269504088896341f, MAGIC = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
static NL_INLINE vf power_of_two(vf shifted) { return (vf)((vu)shifted << 23); }  // from low bits n + 127

// 2^32 exp(-c (a + low)), c = HALVES / 2, for 0 <= c a <= 104.2 or nan. No result is subnormal, so scaling back rounds
// once. `lost`, if not null, receives the last rounding's error term.
constexpr float SCALE = 4294967296.0f, UNSCALE = 1 / SCALE;
template <class W, int HALVES, class L>
static NL_INLINE vf decay(vf a, L low, vf* lost = nullptr) {
  // A float32 nan may have any payload; only multiplication preserves it.
  const vf magic = splat(MAGIC + 32 + (W::bits < 24 ? 0 : 127));
  const vf shifted = fma(a, splat(LOG2E * (HALVES / -2.0f)), magic), n = shifted - magic;
  const vf s = reduced<W::bits, -HALVES>(a, low, n), one = splat(1.0f);
  if constexpr (W::bits < 24) {
    return (vf)((vi)fma(exp_slope<W::bits, -HALVES>(s), s, one) + (vi)power_of_two(shifted));
  } else {
    if (!lost) return exp_whole<-HALVES>(s) * power_of_two(shifted);
    const vf rest = exp_rest<-HALVES>(s), p = one + rest;
    *lost = (rest - (p - one)) * power_of_two(shifted);
    return p * power_of_two(shifted);
  }
}
// The same at full precision as (1 + rest) power: a factor can be multiplied before the exponential is rounded.
struct Apart { vf rest, power; };
template <int HALVES, class L>
static NL_INLINE Apart decay_apart(vf a, L low) {
  const vf magic = splat(MAGIC + 32 + 127), shifted = fma(a, splat(LOG2E * (HALVES / -2.0f)), magic), n = shifted - magic;
  return {exp_rest<-HALVES>(reduced<24, -HALVES>(a, low, n)), power_of_two(shifted)};
}
// 1 + exp(c (x + low)), c = H / 2 = 1 or -1, in full precision; infinite from 2^127.5.
template <int H, class L>
static NL_INLINE vf one_and_exp(vf x, L low) {
  const vf magic = splat(MAGIC + 127), a = vmin(splat(H > 0 ? 89.0f : 87.0f), vmax(splat(H > 0 ? -87.0f : -89.0f), x));
  const vf shifted = fma(a, splat(LOG2E * (H / 2.0f)), magic), n = shifted - magic;
  return fma(exp_whole<H>(reduced<24, H>(a, low, n)), power_of_two(shifted), splat(1.0f));
}
// exp(x + low) as 2^n (1 + rest), for any x, at full precision for every storage type: subtracting x from expm1 leaves
// only the terms beyond the first. exp and expm1 share this; a formula and its derivative often need both.
struct Parts {
  vf rest, n;
  vi power;  // n
};
template <class L>
static NL_INLINE Parts exp_parts(vf x, L low) {
  const vf magic = splat(MAGIC), held = vmin(splat(89.0f), vmax(splat(-104.0f), x));
  const vf shifted = fma(held, splat(LOG2E), magic), n = shifted - magic;
  return {exp_rest<2>(reduced<24, 2>(held, low, n)), n, (vi)shifted - (vi)magic};
}
// 0 below -104, subnormal above that; nan is preserved.
template <class W, class L>
static NL_INLINE vf nl_exp(W& w, vf x, L low) {
  w.small_exp(x);
  const Parts e = exp_parts(x, low);
  const vf p = splat(1.0f) + e.rest;
#if defined(NL_AVX512)
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)e.n);
#else
  const vi half = e.power >> 1;  // two factors, since 2^128 overflows
  return p * (vf)((half + 127) << 23) * (vf)((e.power - half + 127) << 23);
#endif
}
// 2^n (e^r - 1) + (2^n - 1); for n = 0 the first term alone.
template <class W, class L>
static NL_INLINE vf nl_expm1(W&, vf x, L low) {
  const Parts e = exp_parts(x, low);
  const vf half = (vf)((e.power > -100 ? e.power + 126 : vi{} + 26) << 23);
  const vf y = fma(e.rest, half, half - splat(0.5f));
  return y + y;
}
static NL_INLINE vf vexp(vf x) {
  Fast<24> w;
  return nl_exp(w, x, None{});
}

template <class W>
static NL_INLINE vf nl_abs(W&, vf x, None) { return vabs(x); }
// Step and nonnegative: 1, 0 or nan. Sign: 1, -1, 0 of either sign, or nan.
#if defined(NL_AVX512)
// By one instruction, whose table has four bits for each kind of number, from the last: nan (quiet, signaling), 0, 1,
// -infinity, infinity, negative, positive. 1 is the number itself, 2 the number as a quiet nan, 8 is 0, 9 is -1, a is 1.
template <int TABLE>
static NL_INLINE vf by_kind(vf x) {
  return (vf)_mm512_fixupimm_ps((__m512)x, (__m512)x, (__m512i)(vi{} + TABLE), 0);
}
template <class W>
static NL_INLINE vf nl_step(W&, vf x, None) { return by_kind<(int)0xa8a8a822>(x); }
template <class W>
static NL_INLINE vf nl_nonnegative(W&, vf x, None) { return by_kind<(int)0xa8a8aa22>(x); }
template <class W>
static NL_INLINE vf nl_sign(W&, vf x, None) { return by_kind<(int)0xa9a9a122>(x); }
#else
template <class W>
static NL_INLINE vf nl_step(W&, vf x, None) {
  return (vf)((vi)by_mask(less(splat(0.0f), x), splat(1.0f)) | (vi)by_mask(is_nan(x), x));
}
template <class W>
static NL_INLINE vf nl_nonnegative(W& w, vf x, None) { return splat(1.0f) - nl_step(w, -x, None{}); }
template <class W>
static NL_INLINE vf nl_sign(W&, vf x, None) {
  return select(differs(x, splat(0.0f)), copysign_from(splat(1.0f), x), x);
}
#endif
// A nan in either argument is preserved.
static NL_INLINE vf nl_max(vf a, vf b) { return select(is_nan(a), a, vmax(a, b)); }
static NL_INLINE vf nl_min(vf a, vf b) { return select(is_nan(a), a, vmin(a, b)); }
static NL_INLINE vf nl_max_number(vf number, vf x) { return vmax(number, x); }
static NL_INLINE vf nl_min_number(vf number, vf x) { return vmin(number, x); }
static NL_INLINE vf nl_sqrt(vf x) { return vsqrt(x); }
// The error term of the selected one of two.
static NL_INLINE vf low_of(vf taken, vf a, vf a_low, vf b_low) {
  return select(less(a, taken), b_low, select(less(taken, a), b_low, a_low));
}
// Remainder: a - quotient * b exactly, for quotient = fl(a / b).
static NL_INLINE vf remainder(vf a, vf b, vf quotient) {
#if defined(NL_FUSED)
  return fma(-quotient, b, a);
#else
  const vf product = quotient * b;
  return (a - product) - product_error(quotient, b, product);
#endif
}

// sigmoid(x) and sigmoid(-x), and their product, which needs no choice of sides.
template <class V>
struct Both {
  V plus, minus, product;
};
// From z = exp(-|x|), so the small side z / (1 + z) keeps its digits although exp(|x|) would overflow. Numerator and
// denominator are scaled by 2^32. A caller that uses one of the two reports its argument to w. SIDE: only plus (1) or
// minus (-1) is used, which saves one operation for 16-bit types.
template <int SIDE = 0, class W, class L>
static NL_INLINE Both<vf> nl_sigmoids(W&, vf x, L low) {
  const vf one = splat(1.0f), scale = splat(SCALE);
  if constexpr (SIDE != 0 && W::exact && !W::careful) {
    const vf side = one / one_and_exp<-2 * SIDE>(x, low);
    return {side, side, side};
  }
  vf lost;
  const vf z = decay<W, 2>(vmin(splat(104.0f), vabs(x)), signed_like(low, x), W::careful ? &lost : nullptr);
  const vf d = scale + z;
  if constexpr (SIDE != 0 && !W::exact) {
    const vf side = (SIDE > 0 ? by_sign(x, z, scale) : by_sign(x, scale, z)) / d;
    return {side, side, side};
  }
  const vf inverse = one / d;
  if constexpr (W::careful) {
    // Error terms of exp, the sum, the division and the product.
    const vf inverse_low = inverse * fma(-inverse, (z - (d - scale)) + lost, remainder(one, d, inverse));
    vf small = z * inverse;
    small = small + fma(z, inverse_low, fma(lost, inverse, product_error(z, inverse, small)));
    const vf large = (inverse + inverse_low) * scale;
    return {by_sign(x, small, large), by_sign(x, large, small), small * large};
  } else if constexpr (W::exact) {
    // One division, for the small side; the large one inherits little of its error.
    const vf small = z / d, large = one - small;
    return {by_sign(x, small, large), by_sign(x, large, small), small * large};
  } else {
    return {by_sign(x, z, scale) * inverse, by_sign(x, scale, z) * inverse, (z * inverse) * (scale * inverse)};
  }
}
// 1 - 2z / (1 + z) for z = exp(-2|x|); an odd polynomial near 0.
template <class W, class L>
static NL_INLINE vf nl_tanh(W&, vf x, L low) {
  const vf a = vabs(x), s = x * x, one = splat(1.0f);
  vf p;
  if constexpr (W::bits == 8) {
    p = fma(splat(0.13333333333f), s, splat(-0.33333333333f));
  } else {
    p = splat(-5.70498872745e-3f);
    p = fma(p, s, splat(2.06390887954e-2f));
    p = fma(p, s, splat(-5.37397155531e-2f));
    p = fma(p, s, splat(1.33314422036e-1f));
    p = fma(p, s, splat(-3.33332819422e-1f));
  }
  p = plus(p * s * x, low) + x;
  const vf scale = splat(SCALE);
  vf lost, large;
  const vf z = decay<W, 4>(vmin(splat(52.0f), a), None{}, W::careful ? &lost : nullptr), d = scale + z;
  if constexpr (W::careful) {
    // Error terms of exp, the sum, the quotient and the difference.
    const vf inverse = one / d, q = (z + z) * inverse;
    const vf q_low = inverse * (remainder(z + z, d, q) + (lost + lost) - q * ((z - (d - scale)) + lost));
    large = one - q;
    large = large + (((one - large) - q) - q_low);
  } else {
    large = one - (z + z) / d;
  }
  // Clamp before multiplying: the error term of an infinite product is nan, and 0 times nan is not 0.
  if constexpr (W::exact) large = sum(large, times(bounded(signed_like(low, x)), one - large * large));
  return select(less(a, splat(W::bits == 8 ? 0.15f : 0.625f)), p, copysign_from(large, x));
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
template <class W, class L>
static NL_INLINE vf nl_log1p(W&, vf x, L low) {
  const vf u = splat(1.0f) + x, infinity = splat(HUGE_VALF);
  vf y = vlog(u) - ((u - splat(1.0f)) - x) / u;  // plus the error term of 1 + x (Kahan)
  y = plus(y, times(low, splat(1.0f) / u));
  y = select(less(x, infinity), y, x);           // preserve infinity and nan
  y = select(less(splat(0.0f), u), y, select(less(x, splat(-1.0f)), splat(NAN), -infinity));
  return select(is_nan(x), x, y);
}
// log(1 + z) for 0 <= z <= 1: minimax fits of degree 9 and 7, relative error 3e-8 and 1.5e-6.
template <int B>
static NL_INLINE vf log1p_unit(vf z) {
  vf p;
  if constexpr (B == 8) {
    p = splat(0.01458836067467928f);
    p = fma(p, z, splat(-0.06785132735967636f));
    p = fma(p, z, splat(0.1510278284549713f));
    p = fma(p, z, splat(-0.236113503575325f));
    p = fma(p, z, splat(0.33140426874160767f));
    p = fma(p, z, splat(-0.4999074637889862f));
  } else {
    p = splat(0.005364703945815563f);
    p = fma(p, z, splat(-0.03006531111896038f));
    p = fma(p, z, splat(0.07920375466346741f));
    p = fma(p, z, splat(-0.13753736019134521f));
    p = fma(p, z, splat(0.19153624773025513f));
    p = fma(p, z, splat(-0.24857155978679657f));
    p = fma(p, z, splat(0.333213210105896f));
    p = fma(p, z, splat(-0.49999648332595825f));
  }
  return fma(p * z, z, z);
}
template <class W, class L>
static NL_INLINE vf nl_softplus(W& w, vf x, L low) {
  w.small_exp(x);
  using Inner = std::conditional_t<W::bits == 11, Fast<24>, W>;  // a parameter's softplus enters every element
  const vf z = decay<Inner, 2>(vmin(splat(104.0f), vabs(x)), signed_like(low, x)) * splat(UNSCALE);
  return vmax(splat(0.0f), x) + log1p_unit<W::bits>(z);
}
// arctan for 0 <= t <= 1: minimax fit of degree 17, relative error 2e-8.
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
// 1/2 + atan(x)/pi; the negative tail by 1/x, since the sum would cancel.
template <class W>
static NL_INLINE vf nl_cauchy(W&, vf x, None) {
  const vf a = vabs(x), one = splat(1.0f);
  const vm large = less(one, a);
  const vf t = atan_unit(select(large, one / a, a)) * splat(0.31830988618379067f);
  const vf below = select(large, t, splat(0.5f) - t);
  return select(less(x, splat(0.0f)), below, one - below);
}

constexpr float FAR = 14.43f;  // exp(-FAR^2 / 2) is 0; the smallest exponent that decay accepts
// 2^32 exp(-(a + low)^2 / 2) for 0 <= a <= FAR or nan, the square compensated.
template <class L>
static NL_INLINE Apart gauss(vf a, L low) {
  const vf square = a * a;
  if constexpr (std::is_same<L, None>::value) return decay_apart<1>(square, Sure{product_error(a, a, square)});
  else return decay_apart<1>(square, fma(a + a, low, product_error(a, a, square)));
}
template <class W, class L>
static NL_INLINE vf nl_phi(W& w, vf x, L low) {
  const vf whole = vabs(x), a = vmin(splat(FAR), whole), factor = splat(0.3989422804f * UNSCALE);
  w.small_gauss(-whole);
  if constexpr (W::exact) {
    const Apart e = gauss(a, signed_like(bounded(low), x));
    return (fma(factor, e.rest, splat(-1.1335170e-8f * UNSCALE)) + factor) * e.power;  // 1 / sqrt(2 pi) in two parts
  } else {
    return decay<W, 1>(a * a, None{}) * factor;
  }
}
// exp(a^2/2) Phi(-a) for 0 <= a <= FAR, exact at 0. For 16 bits t P(t) with t = 1 / (1 + k a): minimax fits of degree 6 and
// 8, relative error 2e-6 and 4e-8. For 24 bits P / (sqrt(2 pi) a P + Q), which P's rounding errors hardly move where a is
// large, of degree 5 and 4: 2e-9; the factor 7/4 keeps the rounded numbers near 0 from just above a power of two. P carries
// a factor of 2^-32, the inverse of gauss's scale.
static NL_INLINE vf scaled_back(float c) { return splat(c * UNSCALE); }
template <class W>
static NL_INLINE vf tail_ratio(vf a) {
  const vf one = splat(1.0f);
  if constexpr (W::bits < 24) {
    const vf t = one / fma(a, splat(0.35f), one), s = t - one;
    vf p;
    if constexpr (W::bits == 8) {
      p = scaled_back(0.04234453663229942f);
      p = fma(p, s, scaled_back(0.07712402939796448f));
      p = fma(p, s, scaled_back(-0.048044171184301376f));
      p = fma(p, s, scaled_back(-0.10160136967897415f));
      p = fma(p, s, scaled_back(0.2607848644256592f));
      p = fma(p, s, scaled_back(0.6398018002510071f));
    } else {
      p = scaled_back(-0.028918391093611717f);
      p = fma(p, s, scaled_back(-0.08837652206420898f));
      p = fma(p, s, scaled_back(-0.06278267502784729f));
      p = fma(p, s, scaled_back(0.01708093471825123f));
      p = fma(p, s, scaled_back(-0.06372708082199097f));
      p = fma(p, s, scaled_back(-0.10252707451581955f));
      p = fma(p, s, scaled_back(0.26106029748916626f));
      p = fma(p, s, scaled_back(0.6398329138755798f));
    }
    return fma(p, s, scaled_back(0.5f)) * t;
  } else {
    vf p = scaled_back(0.002169993007555604f), q = splat(0.005439918488264084f);
    p = fma(p, a, scaled_back(0.026014789938926697f)), q = fma(q, a, splat(0.06518180668354034f));
    p = fma(p, a, scaled_back(0.14906363189220428f)), q = fma(q, a, splat(0.36336952447891235f));
    p = fma(p, a, scaled_back(0.4943820536136627f)), q = fma(q, a, splat(1.1011626720428467f));
    p = fma(fma(p, a, scaled_back(0.9490822553634644f)), a, scaled_back(0.875f));
    return p / fma(a, fma(p, splat(2.5066282746f / UNSCALE), q), splat(1.75f));
  }
}
template <class W, class L>
static NL_INLINE vf nl_Phi(W& w, vf x, L low) {
  const vf a = vmin(splat(FAR), vabs(x));
  w.small_gauss(x);
  vf tail, ratio = tail_ratio<W>(a);
  if constexpr (W::exact) {
    const auto near = signed_like(bounded(low), x);
    // The ratio's derivative is a times the ratio, minus 1 / sqrt(2 pi).
    if constexpr (!std::is_same<L, None>::value)
      ratio = fma(near, fma(a, ratio, scaled_back(-0.3989422804f)), ratio);
    const Apart e = gauss(a, near);
    tail = fma(ratio, e.rest, ratio) * e.power;
  } else {
    tail = ratio * decay<W, 1>(a * a, None{});
  }
  return by_sign(x, tail, splat(1.0f) - tail);
}
// erf(x) = 1 - 2 Phi(-x sqrt 2); a series near 0.
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
  Fast<W::bits> w;
  const vf tail = nl_Phi(w, a * splat(-1.41421356f), None{});
  return select(less(a, splat(0.6f)), p, copysign_from(fma(splat(-2.0f), tail, splat(1.0f)), x));
}
}  // namespace
