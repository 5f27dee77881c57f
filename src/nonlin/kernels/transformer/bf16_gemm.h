// Matrix product of bfloat16 on one thread, sums in float32: C = A B (+ R).
//
// Both factors hold words: two neighbours along the summed dimension in 32 bits, the first one in the lower half. One
// instruction (vdpbf16ps) multiplies 16 pairs and adds the products of each pair to a float32; elsewhere a shift and a
// mask widen a word into two float32. Rows of a bfloat16 matrix are words as they lie; two rows become words along
// the other dimension by interleaving them. B is packed into panels of NR columns; a tile of C stays in registers
// over the whole sum, so nothing is rounded in between.
#pragma once
#include "gemm.h"

typedef uint32_t word;

static inline int64_t words(int64_t k) { return (k + 1) / 2; }
static inline int64_t panel_words(int64_t k, int64_t n) { return words(k) * ((n + NR - 1) / NR * NR); }

// A factor on the left: the word of row i and pair p is at[i * rs + p * cs].
struct Left {
  const word* at;
  int64_t rs, cs;
};

static NL_INLINE vf add_pairs(vf acc, vu a, vu b) {
#if defined(NL_AVX512BF16)
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));  // by the intrinsic GCC 12 stores every sum in every step
  return acc;
#else
  acc = fma((vf)(a << 16), (vf)(b << 16), acc);
  return fma((vf)(a & 0xffff0000u), (vf)(b & 0xffff0000u), acc);
#endif
}

static NL_INLINE void put(float* c, vf v) { store(c, v); }
static NL_INLINE void put(bf16* c, vf v) {
#if defined(NL_AVX512BF16)
  const __m256bh made = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(c, &made, sizeof made);
#else
  store(c, v, true);
#endif
}

// Micro-kernel: one register tile of C, `columns` wide. R, if any, is added to it. Its factor comes as three numbers: a
// struct on the stack, written in halves and read as a whole, would wait until all stores of the tile before are done.
template <int ROWS, class Out>
static inline void pair_tile(const word* __restrict at, int64_t rs, int64_t cs, int64_t pairs, const word* __restrict b,
                             Out* c, const float* r, int64_t ldc, int columns) {
  vf acc[ROWS][2];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = vf{};
  for (int64_t p = 0; p < pairs; p++) {
    vu b0, b1;
    std::memcpy(&b0, b + p * NR, sizeof b0), std::memcpy(&b1, b + p * NR + VL, sizeof b1);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const vu x = at[i * rs + p * cs] - vu{};
      acc[i][0] = add_pairs(acc[i][0], x, b0);
      acc[i][1] = add_pairs(acc[i][1], x, b1);
    }
  }
  if (columns == NR) {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      if (r) acc[i][0] += load(r + i * ldc), acc[i][1] += load(r + i * ldc + VL);
      put(c + i * ldc, acc[i][0]), put(c + i * ldc + VL, acc[i][1]);
    }
  } else {
    Out line[NR];
    float before[NR] = {};
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      if (r) std::memcpy(before, r + i * ldc, sizeof(float) * columns);
      put(line, acc[i][0] + load(before)), put(line + VL, acc[i][1] + load(before + VL));
      std::memcpy(c + i * ldc, line, sizeof(Out) * columns);
    }
  }
}

template <int ROWS = MR, class Out>
static inline void pair_rows(int rows, const word* at, int64_t rs, int64_t cs, int64_t pairs, const word* b, Out* c,
                             const float* r, int64_t ldc, int columns) {
  if (rows == ROWS) return pair_tile<ROWS>(at, rs, cs, pairs, b, c, r, ldc, columns);
  if constexpr (ROWS > 1) pair_rows<ROWS - 1>(rows, at, rs, cs, pairs, b, c, r, ldc, columns);
}

// A sum's pairs: all are in B's panels, first…last are summed.
struct Pairs {
  int64_t all, first, last;
  Pairs(int64_t k) : all(words(k)), first(0), last(words(k)) {}
  Pairs(int64_t k, int64_t from, int64_t to) : all(words(k)), first(from / 2), last(words(to)) {}
};

// C (m x n) = A B + R, for B in panels; R may be null or C itself.
template <class Out>
static void pair_gemm(int64_t m, int64_t n, Pairs k, Left a, const word* panels, Out* c, const float* r, int64_t ldc) {
  a.at += k.first * a.cs;
  for (int64_t i0 = 0; i0 < m; i0 += 8 * MR)
    for (int64_t j = 0; j < n; j += NR) {
      const int columns = static_cast<int>(std::min<int64_t>(NR, n - j));
      for (int64_t i = i0; i < std::min(i0 + 8 * MR, m); i += MR)
        pair_rows(static_cast<int>(std::min<int64_t>(MR, m - i)), a.at + i * a.rs, a.rs, a.cs, k.last - k.first,
                  panels + j * k.all + k.first * NR, c + i * ldc + j, r ? r + i * ldc + j : nullptr, ldc, columns);
    }
}

// Words of two rows of n numbers; the second row may be null, which is zeros.
template <class T>
static inline void interleave(const T* first, const T* second, int64_t n, word* out) {
  int64_t j = 0;
  for (; j + VL <= n; j += VL) {
    vu low, high{};
    if constexpr (sizeof(T) == 2) {
      low = __builtin_convertvector(*reinterpret_cast<const vh*>(first + j), vu);
      if (second) high = __builtin_convertvector(*reinterpret_cast<const vh*>(second + j), vu) << 16;
    } else {
      low = rounded_bits(load(first + j), true) >> 16;
      if (second) high = rounded_bits(load(second + j), true) & 0xffff0000u;
    }
    low |= high;
    std::memcpy(out + j, &low, sizeof low);
  }
  if (j < n) {
    T line[2][VL] = {};
    std::memcpy(line[0], first + j, sizeof(T) * (n - j));
    if (second) std::memcpy(line[1], second + j, sizeof(T) * (n - j));
    word end[VL];
    interleave(line[0], line[1], VL, end);
    std::memcpy(out + j, end, sizeof(word) * (n - j));
  }
}

// B (k x n), row-major: panels of its rows in pairs.
template <class T>
static void pack_rows(const T* b, int64_t ld, int64_t k, int64_t n, word* out) {
  const int64_t pairs = words(k);
  for (int64_t j = 0; j < n; j += NR) {
    const int64_t columns = std::min<int64_t>(NR, n - j);
    for (int64_t p = 0; p < pairs; p++, out += NR) {
      const T* first = b + 2 * p * ld + j;
      if (columns < NR) std::memset(out, 0, sizeof(word) * NR);
      interleave(first, 2 * p + 1 < k ? first + ld : nullptr, columns, out);
    }
  }
}

// Round n numbers to bfloat16.
static inline void round_row(const float* x, int64_t n, bf16* out) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) put(out + i, load(x + i));
  if (i < n) {
    float line[VL] = {};
    bf16 end[VL];
    std::memcpy(line, x + i, sizeof(float) * (n - i));
    put(end, load(line));
    std::memcpy(out + i, end, sizeof(bf16) * (n - i));
  }
}

// A row of n numbers as words; a last one stands beside a zero.
static inline void row_as_words(const bf16* x, int64_t n, word* out) {
  if (n % 2) out[n / 2] = 0;
  std::memcpy(out, x, sizeof(bf16) * n);
}
static inline void row_as_words(const float* x, int64_t n, word* out) {
  if (n % 2) out[n / 2] = 0;
  round_row(x, n, reinterpret_cast<bf16*>(out));
}

// Rows of X (m x k) as a left factor: in place where that can be, else in `room`, of m * words(k).
template <class T>
static Left left_rows(const T* x, int64_t ld, int64_t m, int64_t k, word* room) {
  if (sizeof(T) == 2 && k % 2 == 0 && ld % 2 == 0) return {reinterpret_cast<const word*>(x), ld / 2, 1};
  for (int64_t i = 0; i < m; i++) row_as_words(x + i * ld, k, room + i * words(k));
  return {room, words(k), 1};
}

// The transpose of X (m x k) as a left factor, in `room` of words(m) * k.
template <class T>
static Left left_columns(const T* x, int64_t ld, int64_t m, int64_t k, word* room) {
  for (int64_t i = 0; i < m; i += 2) interleave(x + i * ld, i + 1 < m ? x + (i + 1) * ld : nullptr, k, room + i / 2 * k);
  return {room, 1, k};
}

#if defined(NL_AVX512BF16)
static NL_INLINE __m512i sixteen_words(const bf16* x) { return _mm512_loadu_si512(x); }
static NL_INLINE __m512i sixteen_words(const float* x) {
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x));
}
// 16 x 16 words of 16 rows, transposed in registers.
template <class T>
static inline void transpose_words(const T* x, int64_t ld, word* out) {
  __m512i a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) a[i] = sixteen_words(x + i * ld);
  transpose_registers(a, b);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + i * NR, a[i]);
}
#endif

// The transpose of W (n x k), row-major: panels of pairs along its rows.
template <class T>
static void pack_transposed(const T* w, int64_t ld, int64_t k, int64_t n, word* out) {
  const int64_t pairs = words(k);
  for (int64_t j = 0; j < n; j += NR, out += pairs * NR) {
    const int64_t columns = std::min<int64_t>(NR, n - j);
    if (columns < NR) std::memset(out, 0, sizeof(word) * pairs * NR);
    word line[VL + 8];
    for (int64_t p0 = 0; p0 < pairs; p0 += VL) {  // short runs keep the strided writes in cache
      int64_t jj = 0;
#if defined(NL_AVX512BF16)
      if (2 * (p0 + VL) <= k)
        for (; jj + VL <= columns; jj += VL) transpose_words(w + (j + jj) * ld + 2 * p0, ld, out + p0 * NR + jj);
#endif
      for (; jj < columns; jj++) {
        const int64_t run = std::min<int64_t>(VL, pairs - p0);
        row_as_words(w + (j + jj) * ld + 2 * p0, std::min(2 * run, k - 2 * p0), line);
        for (int64_t p = 0; p < run; p++) out[(p0 + p) * NR + jj] = line[p];
      }
    }
  }
}
