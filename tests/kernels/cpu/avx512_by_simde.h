// AVX-512 for a processor without it: the intrinsics that our code uses, by SIMDe where it has them, else by one number
// at a time as Intel's manual describes the instruction. Included before everything else by the compiler.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512/blend.h>
#include <simde/x86/avx512/cmp.h>
#include <simde/x86/avx512/fmadd.h>
#include <simde/x86/avx512/max.h>
#include <simde/x86/avx512/min.h>
#include <simde/x86/avx512/sqrt.h>

#define NL_AVX512

// A comparison of the lanes in k.
#define _mm512_mask_cmp_ps_mask(k, a, b, how) static_cast<__mmask16>((k) & _mm512_cmp_ps_mask(a, b, how))

// VSCALEFPS: a times 2 to the floor of b, rounded once.
static inline __m512 nl_scalef(__m512 a, __m512 b) {
  for (int i = 0; i < 16; i++) a[i] = std::isnan(b[i]) ? b[i] : std::ldexp(a[i], static_cast<int>(std::floor(b[i])));
  return a;
}
#define _mm512_scalef_ps(a, b) nl_scalef(a, b)

// VFIXUPIMMPS: what the table says of the kind of each number in b, of the responses that our code asks for.
static inline __m512 nl_fixup(__m512 b, int table) {
  for (int i = 0; i < 16; i++) {
    const float x = b[i];
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const bool below = std::signbit(x);
    const int kind = std::isnan(x) ? !(bits & 0x400000) : x == 0 ? 2 : x == 1 ? 3 :
                     std::isinf(x) ? (below ? 4 : 5) : below ? 6 : 7;
    bits |= 0x400000;
    switch (table >> 4 * kind & 15) {
      case 1: break;
      case 2: std::memcpy(&b[i], &bits, 4); break;
      case 8: b[i] = 0; break;
      case 9: b[i] = -1; break;
      case 10: b[i] = 1; break;
      default: throw "a response that is not emulated";
    }
  }
  return b;
}
#define _mm512_fixupimm_ps(a, b, c, flags) nl_fixup(b, static_cast<int>((c)[0]))

// VFPCLASSPS, of which 0x20 asks for subnormal numbers.
static inline __mmask16 nl_subnormal(__m512 a) {
  unsigned found = 0;
  for (int i = 0; i < 16; i++) found |= static_cast<unsigned>(std::fpclassify(a[i]) == FP_SUBNORMAL) << i;
  return static_cast<__mmask16>(found);
}
#define _mm512_fpclass_ps_mask(a, kinds) ((kinds) == 0x20 ? nl_subnormal(a) : throw "only subnormal numbers")

// VCVTNEPS2BF16: to nearest, ties to even; subnormal numbers become zero, a nan stays one.
static inline __m256i nl_bf16(__m512 a) {
  uint16_t made[16];
  for (int i = 0; i < 16; i++) {
    const float x = a[i];
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (std::isnan(x)) made[i] = static_cast<uint16_t>(bits >> 16 | 0x40);
    else if (std::fpclassify(x) == FP_SUBNORMAL) made[i] = static_cast<uint16_t>(bits >> 16 & 0x8000);
    else made[i] = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  __m256i out;
  std::memcpy(&out, made, sizeof out);
  return out;
}
#define __m256bh __m256i
#define _mm512_cvtneps_pbh(a) nl_bf16(a)

// VCVTNE2PS2BF16: two registers, the second one below. VPERMW: any 16-bit numbers of one register.
static inline __m512i nl_two_bf16(__m512 above, __m512 below) {
  const __m256i parts[2] = {nl_bf16(below), nl_bf16(above)};
  __m512i out;
  std::memcpy(&out, parts, sizeof out);
  return out;
}
static inline __m512i nl_permuted(__m512i order, __m512i numbers) {
  uint16_t from[32], which[32], made[32];
  std::memcpy(from, &numbers, sizeof from), std::memcpy(which, &order, sizeof which);
  for (int i = 0; i < 32; i++) made[i] = from[which[i] & 31];
  __m512i out;
  std::memcpy(&out, made, sizeof out);
  return out;
}
#define __m512bh __m512i
#define _mm512_cvtne2ps_pbh(above, below) nl_two_bf16(above, below)
#define _mm512_permutexvar_epi16(order, numbers) nl_permuted(order, numbers)
static inline void nl_store(void* p, __m512i a) { std::memcpy(p, &a, sizeof a); }
#define _mm512_storeu_si512(p, a) nl_store(p, a)

// VCVTPH2PS and VCVTPS2PH, by the narrower ones of F16C.
static inline __m512 nl_from_half(__m256i h) {
  __m512 out;
  const __m256 parts[2] = {_mm256_cvtph_ps(_mm256_castsi256_si128(h)), _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))};
  std::memcpy(&out, parts, sizeof out);
  return out;
}
static inline __m256i nl_to_half(__m512 a) {
  __m256 parts[2];
  std::memcpy(parts, &a, sizeof parts);
  return _mm256_set_m128i(_mm256_cvtps_ph(parts[1], _MM_FROUND_TO_NEAREST_INT),
                          _mm256_cvtps_ph(parts[0], _MM_FROUND_TO_NEAREST_INT));
}
#define _mm512_cvtph_ps(h) nl_from_half(h)
#define _mm512_cvtps_ph(a, rounding) nl_to_half(a)
