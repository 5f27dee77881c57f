// Single-precision matrix product on one thread: C = A B (+ C), any strides of A and B.
//
// Cache blocking as in BLIS: a panel of B (kc x NR) stays in the first-level cache while rows of A stream past it; the
// micro-kernel holds MR x NR of C in registers. The sizes follow the width of the vector registers.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "simd.h"

#if defined(NL_AVX512)
constexpr int MR = 12;
#else
constexpr int MR = 6;
#endif
constexpr int NR = 2 * VL;
constexpr int64_t KC = 256, MC = 20 * MR;

#if defined(NL_AVX512)
// 16 x 16 words, a register a row, transposed; b is room.
static NL_INLINE void transpose_registers(__m512i* a, __m512i* b) {
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2)
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]), b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // a[i + j]: words j of each quarter, of rows i…i + 3
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]), a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]), a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    b[j] = _mm512_shuffle_i32x4(a[j], a[j + 4], 0x88), b[j + 4] = _mm512_shuffle_i32x4(a[j], a[j + 4], 0xdd);
    b[j + 8] = _mm512_shuffle_i32x4(a[j + 8], a[j + 12], 0x88), b[j + 12] = _mm512_shuffle_i32x4(a[j + 8], a[j + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    a[j] = _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88), a[j + 4] = _mm512_shuffle_i32x4(b[j + 4], b[j + 12], 0x88);
    a[j + 8] = _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd), a[j + 12] = _mm512_shuffle_i32x4(b[j + 4], b[j + 12], 0xdd);
  }
}
#endif

// Micro-kernel: one register tile of C, WIDE registers a row. a(i, k) = a[i * rs + k * cs]; b is a packed panel; writes
// `columns` columns, at most WIDE * VL.
template <int ROWS, int WIDE>
static inline void micro(int64_t kc, const float* __restrict a, int64_t rs, int64_t cs, const float* __restrict b,
                         float* __restrict c, int64_t ldc, bool accumulate, int columns) {
  vf acc[ROWS][WIDE];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < WIDE; j++) acc[i][j] = vf{};
  for (int64_t k = 0; k < kc; k++) {
    vf right[WIDE];
    for (int j = 0; j < WIDE; j++) right[j] = load(b + k * NR + j * VL);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const vf x = splat(a[i * rs + k * cs]);
      for (int j = 0; j < WIDE; j++) acc[i][j] += x * right[j];
    }
  }
  if (columns == WIDE * VL) {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
      for (int j = 0; j < WIDE; j++) {
        float* at = c + i * ldc + j * VL;
        store(at, accumulate ? acc[i][j] + load(at) : acc[i][j]);
      }
  } else {
    float line[WIDE * VL];
    for (int i = 0; i < ROWS; i++) {
      for (int j = 0; j < WIDE; j++) store(line + j * VL, acc[i][j]);
      for (int j = 0; j < columns; j++) c[i * ldc + j] = line[j] + (accumulate ? c[i * ldc + j] : 0.0f);
    }
  }
}

template <int ROWS = MR>
static inline void micro_rows(int rows, int64_t kc, const float* a, int64_t rs, int64_t cs, const float* b, float* c,
                              int64_t ldc, bool accumulate, int columns) {
  if (rows == ROWS)
    return columns > VL ? micro<ROWS, 2>(kc, a, rs, cs, b, c, ldc, accumulate, columns)
                        : micro<ROWS, 1>(kc, a, rs, cs, b, c, ldc, accumulate, columns);
  if constexpr (ROWS > 1) micro_rows<ROWS - 1>(rows, kc, a, rs, cs, b, c, ldc, accumulate, columns);
}

// VL x VL numbers, of rows `ld` apart, transposed into rows NR apart.
static inline void transpose(const float* x, int64_t ld, float* out) {
#if defined(NL_AVX512)
  __m512i a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(x + i * ld);
  transpose_registers(a, b);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + i * NR, a[i]);
#elif defined(__AVX2__)
  __m256 a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(x + i * ld);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2)
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]), b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {  // a[i + j]: numbers j and j + 4 of rows i…i + 3
    a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44), a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44), a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    _mm256_storeu_ps(out + i * NR, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * NR, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
  }
#else
  for (int i = 0; i < VL; i++)
    for (int j = 0; j < VL; j++) out[j * NR + i] = x[i * ld + j];
#endif
}

// Pack B (kc x n) into panels of NR columns, the last one padded with zeros.
static void pack_b(const float* b, int64_t rs, int64_t cs, int64_t kc, int64_t n, float* out) {
  for (int64_t j = 0; j < n; j += NR, out += kc * NR) {
    const int columns = static_cast<int>(std::min<int64_t>(NR, n - j));
    if (cs == 1 && columns == NR) {
      for (int64_t k = 0; k < kc; k++) std::memcpy(out + k * NR, b + k * rs + j, NR * sizeof(float));
      continue;
    }
    if (columns < NR) std::memset(out, 0, sizeof(float) * kc * NR);
    for (int64_t k0 = 0; k0 < kc; k0 += VL) {  // short runs of k keep the strided writes in cache
      int jj = 0;
      if (rs == 1 && k0 + VL <= kc)
        for (; jj + VL <= columns; jj += VL) transpose(b + k0 + (j + jj) * cs, cs, out + k0 * NR + jj);
      for (; jj < columns; jj++)
        for (int64_t k = k0; k < std::min<int64_t>(k0 + VL, kc); k++) out[k * NR + jj] = b[k * rs + (j + jj) * cs];
    }
  }
}

// Pack strided rows of A into panels of MR rows, k outermost.
static void pack_a(const float* a, int64_t rs, int64_t cs, int64_t m, int64_t kc, float* out) {
  for (int64_t i = 0; i < m; i += MR, out += kc * MR) {
    const int rows = static_cast<int>(std::min<int64_t>(MR, m - i));
    if (rs == 1 && rows == MR) {
      for (int64_t k = 0; k < kc; k++) std::memcpy(out + k * MR, a + i + k * cs, MR * sizeof(float));
      continue;
    }
    for (int64_t k = 0; k < kc; k++)
      for (int ii = 0; ii < rows; ii++) out[k * MR + ii] = a[(i + ii) * rs + k * cs];
  }
}

static float* scratch(int slot, int64_t size) {
  thread_local std::vector<float> buffers[20];
  auto& buffer = buffers[slot];
  if (static_cast<int64_t>(buffer.size()) < size + 16) buffer.resize(size + 16);
  const auto address = reinterpret_cast<uintptr_t>(buffer.data());
  return reinterpret_cast<float*>((address + 63) & ~uintptr_t(63));
}

// Rows of a product with packed panels of B, `height` rows each, from their k0-th on: C = A B (+ C).
static void panel_rows(int64_t m, int64_t n, int64_t kc, const float* a, int64_t rs, int64_t cs, const float* packed_b,
                       int64_t height, int64_t k0, float* c, int64_t ldc, bool accumulate) {
  for (int64_t j = 0; j < n; j += NR)
    for (int64_t i = 0; i < m; i += MR)
      micro_rows(static_cast<int>(std::min<int64_t>(MR, m - i)), kc, a + i * rs, rs, cs, packed_b + j * height + k0 * NR,
                 c + i * ldc + j, ldc, accumulate, static_cast<int>(std::min<int64_t>(NR, n - j)));
}

static void gemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_rs, int64_t a_cs, const float* b,
                 int64_t b_rs, int64_t b_cs, float* c, int64_t ldc, bool accumulate) {
  if (k == 0 && !accumulate)
    for (int64_t i = 0; i < m; i++) std::memset(c + i * ldc, 0, sizeof(float) * n);
  const int64_t panels = (n + NR - 1) / NR;
  float* packed_b = scratch(0, std::min(k, KC) * panels * NR);
  float* packed_a = a_cs == 1 ? nullptr : scratch(1, MC * KC);
  for (int64_t k0 = 0; k0 < k; k0 += KC) {
    const int64_t kc = std::min(KC, k - k0);
    const bool add = accumulate || k0 > 0;
    pack_b(b + k0 * b_rs, b_rs, b_cs, kc, n, packed_b);
    for (int64_t i0 = 0; i0 < m; i0 += MC) {
      const int64_t mc = std::min(MC, m - i0);
      const float* block = a + i0 * a_rs + k0 * a_cs;
      if (packed_a) pack_a(block, a_rs, a_cs, mc, kc, packed_a);
      for (int64_t p = 0; p < panels; p++) {
        const int columns = static_cast<int>(std::min<int64_t>(NR, n - p * NR));
        for (int64_t i = 0; i < mc; i += MR) {
          const int rows = static_cast<int>(std::min<int64_t>(MR, mc - i));
          const float* pa = packed_a ? packed_a + i * kc : block + i * a_rs;
          micro_rows(rows, kc, pa, packed_a ? 1 : a_rs, packed_a ? MR : 1, packed_b + p * kc * NR,
                     c + (i0 + i) * ldc + p * NR, ldc, add, columns);
        }
      }
    }
  }
}
