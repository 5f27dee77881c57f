// The accuracy of a formula's results, and which of its lanes float32 cannot compute: W of every primitive in math.h.
#pragma once
#include "simd.h"

namespace {

// Significant bits of a result: 8 for bfloat16, 11 for float16, 24 for float32. Relative error of approximations: below
// 2^-17 for 8 bits, a five-hundredth of the last place; below 2^-22 for 11.
template <int B>
struct Fast {
  static constexpr bool exact = false, careful = false;
  static constexpr int bits = B;
  NL_INLINE void small_exp(vf) {}
  NL_INLINE void small_exp_either(vf) {}
  NL_INLINE void small_gauss(vf) {}
  NL_INLINE vm doubt() const { return vm{}; }
};
// The arguments of exponentials whose results may be subnormal: of exp between -220 and -80, of exp(-x^2 / 2) between
// -20.97 and -12.65. small_exp_either takes an argument and its negative.
static NL_INLINE vf minus_abs(vf x) { return (vf)((vi)x | (int32_t)0x80000000); }
struct Each {  // marks such lanes
  vm small{};
  NL_INLINE void small_exp(vf x) { small = small | between(x, -220.0f, -80.0f); }
  NL_INLINE void small_exp_either(vf x) { small_exp(minus_abs(x)); }
  NL_INLINE void small_gauss(vf x) { small = small | between(x, -20.97f, -12.65f); }
  NL_INLINE vm doubt() const { return small; }
};
struct Any {  // tells of several registers whether a lane of them may be such, by the smallest arguments
  bool exps = false, gausses = false;
  vf exp{}, gauss{};
  NL_INLINE void small_exp(vf x) { exps = true, exp = vmin(x, exp); }  // never nan
  NL_INLINE void small_exp_either(vf x) { small_exp(minus_abs(x)); }
  NL_INLINE void small_gauss(vf x) { gausses = true, gauss = vmin(x, gauss); }
  NL_INLINE vm doubt() const {
    vm found{};
    if (exps) found = found | less(exp, splat(-80.0f));
    if (gausses) found = found | less(gauss, splat(-12.65f));
    return found;
  }
};
// CAREFUL: for formulas that multiply three sigmoids or more: fully compensated.
template <class Watch, bool CAREFUL>
struct Exact : Watch {
  static constexpr bool exact = true, careful = CAREFUL;
  static constexpr int bits = 24;
};

}  // namespace
