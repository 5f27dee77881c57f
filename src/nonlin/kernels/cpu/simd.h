// One vector register of float32: loads and stores of every storage type, masks, and exact error terms.
//
// Compiled once for each instruction set. Every fused multiply-add is explicit, so that AVX2 and AVX-512 give
// the same bits. Activation kernels are compiled without contraction; transformer/gemm.h is not.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Instruction sets enabled by the compiler; a test that emulates AVX-512 defines these itself (avx512_by_simde.h).
#if defined(__AVX512F__)
#define NL_AVX512
#endif
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
#define NL_AVX512BF16
#endif

// Whether fma rounds once.
#if defined(NL_AVX512) || (defined(__AVX2__) && defined(__FMA__)) || defined(__aarch64__)
#define NL_FUSED
#endif

#if defined(NL_AVX512)
constexpr int VL = 16;
#elif defined(__AVX__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

typedef float vf __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef double vd __attribute__((vector_size(VL * 8), aligned(8), may_alias));
#define NL_INLINE inline __attribute__((always_inline))

namespace {

static NL_INLINE vf load(const float* p) { return *reinterpret_cast<const vf*>(p); }
static NL_INLINE void store(float* p, vf v, bool = true) { *reinterpret_cast<vf*>(p) = v; }
// x - 0 equals x bitwise and compiles to one broadcast; 0 + x would turn -0 into 0.
static NL_INLINE vf splat(float x) { return x - vf{}; }

// Masks. by_mask returns a, or 0 if the mask is not set. vmax(a, b) and vmin(a, b) return b if either is nan: with a
// constant as a, a nan in b is preserved.
#if defined(NL_AVX512)
typedef __mmask16 vm;
static NL_INLINE vm less(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
static NL_INLINE vm nan_in(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q); }
static NL_INLINE vm differs(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NEQ_OQ); }
static NL_INLINE vf select(vm m, vf a, vf b) { return (vf)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
static NL_INLINE vf by_mask(vm m, vf a) { return (vf)_mm512_maskz_mov_ps(m, (__m512)a); }
static NL_INLINE bool any(vm m) { return m != 0; }
static NL_INLINE vf vmax(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
static NL_INLINE vf vmin(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
static NL_INLINE vf vsqrt(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
static NL_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#elif defined(__AVX2__)
typedef vi vm;
static NL_INLINE vm less(vf a, vf b) { return (vi)_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ); }
static NL_INLINE vm nan_in(vf a, vf b) { return (vi)_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_UNORD_Q); }
static NL_INLINE vm differs(vf a, vf b) { return (vi)_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NEQ_OQ); }
static NL_INLINE vf select(vm m, vf a, vf b) { return (vf)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)m); }
static NL_INLINE vf by_mask(vm m, vf a) { return (vf)(m & (vi)a); }
static NL_INLINE bool any(vm m) { return _mm256_movemask_ps((__m256)m) != 0; }
static NL_INLINE vf vmax(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
static NL_INLINE vf vmin(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
static NL_INLINE vf vsqrt(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
#if defined(__FMA__)
static NL_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else
static NL_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }
#endif
#else
typedef vi vm;
static NL_INLINE vm less(vf a, vf b) { return a < b; }
static NL_INLINE vm nan_in(vf a, vf b) { return (a != a) | (b != b); }
static NL_INLINE vm differs(vf a, vf b) { return (a < b) | (b < a); }
static NL_INLINE vf select(vm m, vf a, vf b) { return (vf)((m & (vi)a) | (~m & (vi)b)); }
static NL_INLINE vf by_mask(vm m, vf a) { return (vf)(m & (vi)a); }
static NL_INLINE bool any(vm m) {
  int32_t all = 0;
  for (int i = 0; i < VL; i++) all |= m[i];
  return all != 0;
}
static NL_INLINE vf vmax(vf a, vf b) { return select(a > b, a, b); }
static NL_INLINE vf vmin(vf a, vf b) { return select(a < b, a, b); }
static NL_INLINE vf vsqrt(vf a) {
  vf out{};
  for (int i = 0; i < VL; i++) out[i] = __builtin_sqrtf(a[i]);
  return out;
}
#if defined(__aarch64__)
static NL_INLINE vf fma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
static NL_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }
#endif
#endif

static NL_INLINE vm is_nan(vf a) { return nan_in(a, a); }
template <int N>
static NL_INLINE vm nan_among(const vf* v) {
  vm found{};
#pragma GCC unroll 16
  for (int i = 0; i < N; i += 2) found = found | nan_in(v[i], v[i + 1 < N ? i + 1 : i]);
  return found;
}

// Two-product: a * b - product exactly, for product = fl(a * b).
static NL_INLINE vf product_error(vf a, vf b, vf product) {
#if defined(NL_FUSED)
  return fma(a, b, -product);
#else
  const vd exact = __builtin_convertvector(a, vd) * __builtin_convertvector(b, vd);
  return __builtin_convertvector(exact - __builtin_convertvector(product, vd), vf);
#endif
}
// a * b + c rounded once, where two roundings would show in the result; a sum in double is as good.
static NL_INLINE vf fused(vf a, vf b, vf c) {
#if defined(NL_FUSED)
  return fma(a, b, c);
#else
  const vd product = __builtin_convertvector(a, vd) * __builtin_convertvector(b, vd);
  return __builtin_convertvector(product + __builtin_convertvector(c, vd), vf);
#endif
}
// Two-sum (Knuth): a + b - sum exactly, for sum = fl(a + b).
template <class V>
static NL_INLINE V sum_error(V a, V b, V sum) {
  const V t = sum - a;
  return (a - (sum - t)) + (b - t);
}

static NL_INLINE vf vabs(vf x) { return (vf)((vi)x & 0x7fffffff); }
// a if the sign bit of x is set, else b; unspecified for nan and zero.
static NL_INLINE vf by_sign(vf x, vf a, vf b) {
#if defined(__AVX2__) && !defined(NL_AVX512)
  return (vf)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)x);
#else
  return select(less(x, vf{}), a, b);
#endif
}
// low < x < high for negative bounds; as integers, the bits of negative floats are in reverse order.
static NL_INLINE vm between(vf x, float low, float high) {
#if defined(NL_AVX512)
  return _mm512_mask_cmp_ps_mask(less(splat(low), x), (__m512)x, (__m512)splat(high), _CMP_LT_OQ);
#else
  int32_t first, last;
  std::memcpy(&first, &high, 4), std::memcpy(&last, &low, 4);
  const uint32_t shift = 0x80000000u - static_cast<uint32_t>(first);
  return (vi)((vi)x + static_cast<int32_t>(shift)) < static_cast<int32_t>(static_cast<uint32_t>(last) + shift);
#endif
}
// 0 < |x| < bound, compared as integers shifted so that 0 becomes the largest.
static NL_INLINE vm tiny(vf x, float bound) {
#if defined(NL_AVX512)
  return less(vabs(x), splat(bound)) & less(splat(0.0f), vabs(x));
#else
  uint32_t end;
  std::memcpy(&end, &bound, 4);
  return (vi)(((vu)x & 0x7fffffffu) + 0x7fffffffu) < static_cast<int32_t>(end + 0x7fffffffu);
#endif
}
static NL_INLINE vf copysign_from(vf magnitude, vf sign) {
  return (vf)(((vi)magnitude & 0x7fffffff) | ((vi)sign & (int32_t)0x80000000));
}

// Storage types: bfloat16 (the upper half of a float32) and IEEE half precision.
struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };
typedef uint16_t vh __attribute__((vector_size(VL * 2), aligned(2), may_alias));

static NL_INLINE vf load(const bf16* p) {
#if defined(__AVX2__) && !defined(NL_AVX512)
  return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
#else
  return (vf)(__builtin_convertvector(*reinterpret_cast<const vh*>(p), vu) << 16);
#endif
}
// Round to nearest even into the upper halves. A nan stays a nan with its sign, if nans are possible.
static NL_INLINE vu rounded_bits(vf v, bool nan) {
  const vu bits = (vu)v, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return nan ? (vu)select(is_nan(v), (vf)(bits | 0x400000), (vf)rounded) : rounded;
}
static NL_INLINE void store(bf16* p, vf v, bool nan) {
#if defined(NL_AVX512BF16)
  // The instruction flushes subnormals to zero; they take the general path.
  if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)v, 0x20) == 0, 1)) {
    const __m256bh made = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(p, &made, sizeof made);
    return;
  }
#endif
#if defined(__AVX2__) && !defined(NL_AVX512)
  const __m256i wide = (__m256i)(rounded_bits(v, nan) >> 16);
  const __m128i made = _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), made);
#else
  *reinterpret_cast<vh*>(p) = __builtin_convertvector(rounded_bits(v, nan) >> 16, vh);
#endif
}
#if defined(NL_AVX512)
static NL_INLINE vf load(const fp16* p) {
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static NL_INLINE void store(fp16* p, vf v, bool) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__) && defined(__AVX2__)
static NL_INLINE vf load(const fp16* p) {
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static NL_INLINE void store(fp16* p, vf v, bool) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
// Half precision by integer arithmetic, one element at a time.
static inline float fp16_value(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
  uint32_t bits = sign | (exponent == 31 ? 0x7f800000u | (fraction << 13) : ((exponent + 112) << 23) | (fraction << 13));
  float out;
  std::memcpy(&out, &bits, 4);
  if (exponent == 0) out = (sign ? -1.0f : 1.0f) * fraction * 5.9604644775390625e-08f;  // 2^-24
  return out;
}
static inline uint16_t fp16_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = (bits >> 16) & 0x8000;
  const uint32_t a = bits & 0x7fffffff;
  if (a > 0x7f800000) return sign | 0x7e00 | ((a >> 13) & 0x1ff);
  if (a >= 0x477ff000) return sign | 0x7c00;  // 65520 and above
  if (a < 0x38800000) {                       // below 2^-14: adding 2^-1 aligns the bits to keep
    float y;
    std::memcpy(&y, &a, 4);
    y += 0.5f;
    uint32_t kept;
    std::memcpy(&kept, &y, 4);
    return sign | static_cast<uint16_t>(kept - 0x3f000000);
  }
  return sign | static_cast<uint16_t>((a + 0xfff + ((a >> 13) & 1) - 0x38000000) >> 13);
}
static inline vf load(const fp16* p) {
  vf out{};
  for (int i = 0; i < VL; i++) out[i] = fp16_value(p[i].bits);
  return out;
}
static inline void store(fp16* p, vf v, bool) {
  for (int i = 0; i < VL; i++) p[i].bits = fp16_of(v[i]);
}
#endif

// Unroll factor: enough registers to hide the latency of each dependency chain (decision 0052). The compiler interleaves
// their instructions, so no branch may separate them.
constexpr int TOGETHER = 4;

// Loads and stores of R registers. bfloat16 comes in pairs of registers, even and odd elements: a shift and a mask
// split them, a blend joins them. Every operand of a kernel is split the same way.
template <class T, int R = TOGETHER>
struct Lanes {
  static constexpr int place(int r, int j) { return r * VL + j; }  // offset in memory of lane j of register r
  static constexpr int registers(int64_t count) { return static_cast<int>((count + VL - 1) / VL); }  // that hold so many
  static NL_INLINE void load(const T* p, vf* out) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) out[r] = ::load(p + r * VL);
  }
  static NL_INLINE void store(T* p, const vf* v, bool nan) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) ::store(p + r * VL, v[r], nan);
  }
};
#if defined(NL_AVX512BF16)
// The order of 16-bit numbers that alternates those of two halves.
typedef uint16_t vw __attribute__((vector_size(64)));
static const vw ALTERNATE = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                             8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
#endif
typedef uint32_t vu_halves __attribute__((vector_size(VL * 4), aligned(2), may_alias));
template <int R>
struct Lanes<bf16, R> {
  static constexpr int place(int r, int j) { return r / 2 * 2 * VL + 2 * j + r % 2; }
  static constexpr int registers(int64_t count) { return static_cast<int>((count + 2 * VL - 1) / (2 * VL) * 2); }
  static NL_INLINE void load(const bf16* p, vf* out) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r += 2) {
      const vu both = *reinterpret_cast<const vu_halves*>(p + r * VL);
      out[r] = (vf)(both << 16), out[r + 1] = (vf)(both & 0xffff0000u);
    }
  }
  static NL_INLINE void store(bf16* p, const vf* v, bool nan) {
#if defined(NL_AVX512BF16)
    // The instruction flushes subnormals to zero; they take the general path.
    __mmask16 subnormal = 0;
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) subnormal = subnormal | _mm512_fpclass_ps_mask((__m512)v[r], 0x20);
    if (__builtin_expect(subnormal == 0, 1)) {
#pragma GCC unroll 4
      for (int r = 0; r < R; r += 2) {
        const __m512bh halves = _mm512_cvtne2ps_pbh((__m512)v[r + 1], (__m512)v[r]);
        _mm512_storeu_si512(p + r * VL, _mm512_permutexvar_epi16((__m512i)ALTERNATE, (__m512i)halves));
      }
      return;
    }
#endif
#pragma GCC unroll 4
    for (int r = 0; r < R; r += 2) {
      const vu even = rounded_bits(v[r], nan) >> 16, odd = rounded_bits(v[r + 1], nan);
#if defined(__AVX2__) && !defined(NL_AVX512)
      *reinterpret_cast<vu_halves*>(p + r * VL) = (vu)_mm256_blend_epi16((__m256i)even, (__m256i)odd, 0xaa);
#else
      *reinterpret_cast<vu_halves*>(p + r * VL) = even | (odd & 0xffff0000u);
#endif
    }
  }
};

}  // namespace
