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

// Micro-kernel: one register tile of C. a(i, k) = a[i * rs + k * cs]; b is a packed panel; writes `columns` columns.
template <int ROWS>
static inline void micro(int64_t kc, const float* __restrict a, int64_t rs, int64_t cs, const float* __restrict b,
                         float* __restrict c, int64_t ldc, bool accumulate, int columns) {
  vf acc[ROWS][2];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = vf{};
  for (int64_t k = 0; k < kc; k++) {
    const vf b0 = load(b + k * NR), b1 = load(b + k * NR + VL);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const vf x = splat(a[i * rs + k * cs]);
      acc[i][0] += x * b0;
      acc[i][1] += x * b1;
    }
  }
  if (columns == NR) {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      float* row = c + i * ldc;
      if (accumulate) acc[i][0] += load(row), acc[i][1] += load(row + VL);
      store(row, acc[i][0]), store(row + VL, acc[i][1]);
    }
  } else {
    float line[NR];
    for (int i = 0; i < ROWS; i++) {
      store(line, acc[i][0]), store(line + VL, acc[i][1]);
      for (int j = 0; j < columns; j++) c[i * ldc + j] = line[j] + (accumulate ? c[i * ldc + j] : 0.0f);
    }
  }
}

template <int ROWS = MR>
static inline void micro_rows(int rows, int64_t kc, const float* a, int64_t rs, int64_t cs, const float* b, float* c,
                              int64_t ldc, bool accumulate, int columns) {
  if (rows == ROWS) return micro<ROWS>(kc, a, rs, cs, b, c, ldc, accumulate, columns);
  if constexpr (ROWS > 1) micro_rows<ROWS - 1>(rows, kc, a, rs, cs, b, c, ldc, accumulate, columns);
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
    for (int64_t k0 = 0; k0 < kc; k0 += 16)  // short runs of k keep the strided writes in cache
      for (int jj = 0; jj < columns; jj++)
        for (int64_t k = k0; k < std::min(k0 + 16, kc); k++) out[k * NR + jj] = b[k * rs + (j + jj) * cs];
  }
}

// Pack strided rows of A into panels of MR rows, k outermost.
static void pack_a(const float* a, int64_t rs, int64_t cs, int64_t m, int64_t kc, float* out) {
  for (int64_t i = 0; i < m; i += MR, out += kc * MR) {
    const int rows = static_cast<int>(std::min<int64_t>(MR, m - i));
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
