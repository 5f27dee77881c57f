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

// exp(x), to about 1 ulp; 0 below -87.3, inf above 88.7; nan stays nan.
static inline vf vexp(vf x) {
  const vf top = splat(88.722839f), bottom = splat(-87.336544f);
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
