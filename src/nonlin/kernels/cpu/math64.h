// The primitives in double precision, one number at a time: for float64 tensors, and for the lanes that float32
// cannot hold (subnormal results, products of 0 and infinity).
#pragma once
#include <cmath>

#include "math.h"

namespace {

static NL_INLINE double plus(double a, double b) { return a + b; }
static NL_INLINE double plus(double a, None) { return a; }
static NL_INLINE double negated(double a) { return -a; }
static NL_INLINE None negated(None) { return {}; }
static NL_INLINE double signed_like(double low, double x) { return std::signbit(x) ? -low : low; }
static NL_INLINE None signed_like(None, double) { return {}; }
static NL_INLINE double product_error(double a, double b, double product) { return __builtin_fma(a, b, -product); }
static NL_INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
static NL_INLINE double low_of(double taken, double a, double a_low, double b_low) { return a == taken ? a_low : b_low; }
static NL_INLINE double remainder(double a, double b, double quotient) { return __builtin_fma(-quotient, b, a); }
static NL_INLINE double number_or(double low) { return std::fabs(low) < 0.0078125 ? low : 0.0; }
static NL_INLINE double number_or(None) { return 0.0; }

template <class W, class L>
static inline double nl_exp(W&, double x, L low) {
  const double e = std::exp(x);
  return std::isinf(e) ? e : e + e * number_or(low);
}
template <class W>
static NL_INLINE double nl_abs(W&, double x, None) { return std::fabs(x); }
template <class W>
static NL_INLINE double nl_step(W&, double x, None) { return x > 0 ? 1.0 : x != x ? x : 0.0; }
template <class W>
static NL_INLINE double nl_nonnegative(W&, double x, None) { return x >= 0 ? 1.0 : x != x ? x : 0.0; }
template <class W>
static NL_INLINE double nl_sign(W&, double x, None) { return x > 0 ? 1.0 : x < 0 ? -1.0 : x; }
static NL_INLINE double nl_max(double a, double b) { return a != a ? a : a > b ? a : b; }
static NL_INLINE double nl_min(double a, double b) { return a != a ? a : a < b ? a : b; }
static NL_INLINE double nl_max_number(double number, double x) { return number > x ? number : x; }
static NL_INLINE double nl_min_number(double number, double x) { return number < x ? number : x; }
static NL_INLINE double nl_sqrt(double x) { return std::sqrt(x); }
template <int SIDE = 0, class W, class L>
static inline Both<double> nl_sigmoids(W& w, double x, L low) {
  const double z = nl_exp(w, -std::fabs(x), negated(signed_like(low, x))), small = z / (1.0 + z), large = 1.0 / (1.0 + z);
  return {x < 0 ? small : large, x < 0 ? large : small, small * large};
}
template <class W, class L>
static inline double nl_expm1(W&, double x, L) { return std::expm1(x); }
template <class W, class L>
static inline double nl_tanh(W&, double x, L) { return std::tanh(x); }
template <class W, class L>
static inline double nl_log1p(W&, double x, L) { return std::log1p(x); }
template <class W, class L>
static inline double nl_softplus(W& w, double x, L low) {
  return (x > 0 ? x : 0.0) + std::log1p(nl_exp(w, -std::fabs(x), negated(signed_like(low, x))));
}
template <class W>
static inline double nl_atan(W&, double x, None) { return std::atan(x); }
template <class W>
static inline double nl_cauchy(W&, double x, None) {
  constexpr double inverse_pi = 0.31830988618379067154;
  const double below = (std::fabs(x) > 1 ? std::atan(1 / std::fabs(x)) : 1.5707963267948966 - std::atan(std::fabs(x)));
  return x < 0 ? below * inverse_pi : 1 - below * inverse_pi;
}
template <class W, class L>
static inline double nl_phi(W&, double x, L low) {
  const double a = std::fabs(x) > 50 ? 50 : x, square = a * a;
  const double rest = -0.5 * __builtin_fma(a, a, -square) - a * number_or(low);
  return x != x ? x : std::exp(-0.5 * square) * (1 + rest) * 0.39894228040143267794;
}
// By erfc, plus the error term of x / sqrt(2) times the tail's derivative.
template <class W, class L>
static inline double nl_Phi(W&, double x, L low) {
  constexpr double r = 0.70710678118654752440, r_low = -4.8336466567264567e-17;
  const double z = -x * r, rest = -__builtin_fma(x, r, z) - x * r_low - number_or(low) * r;
  const double whole = 0.5 * std::erfc(z);
  const double far = z > 1 ? 1 - 2 * rest * z : 1;  // the derivative of log erfc is about -2z
  return std::isinf(x) ? (x > 0 ? 1.0 : 0.0) : whole == 0 ? 0.0 : whole * far;  // far overflows where whole is 0
}
template <class W, class L>
static inline double nl_erf(W&, double x, L) { return std::erf(x); }

}  // namespace
