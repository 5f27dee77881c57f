// Loops over memory: turn a generated struct into functions over n contiguous elements of a storage type.
//
// Everything is in an unnamed namespace: the same names are compiled once per instruction set, and the linker must not
// merge them.
#pragma once
#include "math64.h"

namespace {

template <class V>
static NL_INLINE V number(float single, double exact);
template <>
NL_INLINE vf number<vf>(float single, double) { return splat(single); }
template <>
NL_INLINE double number<double>(float, double exact) { return exact; }

struct Wide {
  static constexpr bool exact = true;
  NL_INLINE void small_exp(double) {}
};
// For a primitive that is the result: correct for subnormal results too.
template <class W>
struct Alone : W {
  NL_INLINE void small_gauss(vf) {}
};
template <class W, class V>
static NL_INLINE std::conditional_t<W::exact, V, None> low_part(V low) {
  if constexpr (W::exact) return low;
  else return {};
}

// a + b for b = f g. ONCE: rounded once, since no user needs an error term. In double, b is the NaN-guarded product.
template <class W, bool ONCE, class V>
static NL_INLINE V added(V a, V b, V f, V g) {
  if constexpr (std::is_same<V, double>::value || (W::exact && !ONCE)) return a + b;
  else return fma(f, g, a);
}

// Add a long product's error term, if results are exact.
template <class W, class V>
static NL_INLINE V settled(V value, V low) {
  if constexpr (W::exact) {
    const V sum = value + low;
    if constexpr (std::is_same<V, vf>::value) return select(is_nan(low), value, sum);
    else return low - low == 0 ? sum : value;
  } else {
    return value;
  }
}
// total + part for the compensated part of value = f g: its error term is added to the total first, so it is not rounded
// by itself.
template <class W, class V>
static NL_INLINE V joined(V total, V part, V value, V low, V f, V g) {
  if constexpr (std::is_same<V, double>::value) return total + part;
  else if constexpr (W::exact) return value + select(is_nan(low), total, total + low);
  else return fma(f, g, total);
}

// (a + low) b, if results are exact. A nan in low marks the lane for recomputation in double precision.
template <class W, class V>
static NL_INLINE V magnified(V a, V b, V low) {
  if constexpr (W::exact && std::is_same<V, vf>::value) return fma(a, b, low * b);
  else return a * b;
}

// NaN guard: a nan without a nan input is 0 times infinity far from the origin; the limit is 0. Float32 recomputes the
// lane in double precision, so only double is guarded here.
static NL_INLINE vm whole(vf a) { return vm{}; }
static NL_INLINE vm whole(vf a, vf b) { return vm{}; }
static NL_INLINE vm whole(vf a, vf b, vf c) { return vm{}; }
static NL_INLINE vf mended(vf x, vm) { return x; }
static NL_INLINE bool whole(double a) { return a == a; }
static NL_INLINE bool whole(double a, double b) { return a == a && b == b; }
static NL_INLINE bool whole(double a, double b, double c) { return whole(a, b) && c == c; }
static NL_INLINE double mended(double x, bool whole) { return x != x && whole ? 0.0 : x; }

static NL_INLINE void add_lanes(double* sum, vf part) {
#if defined(__AVX2__) && !defined(NL_AVX512)
  const __m256 p = (__m256)part;
  _mm256_storeu_pd(sum, _mm256_add_pd(_mm256_loadu_pd(sum), _mm256_cvtps_pd(_mm256_castps256_ps128(p))));
  _mm256_storeu_pd(sum + 4, _mm256_add_pd(_mm256_loadu_pd(sum + 4), _mm256_cvtps_pd(_mm256_extractf128_ps(p, 1))));
#else
  *reinterpret_cast<vd*>(sum) += __builtin_convertvector(part, vd);
#endif
}

// Pairwise sum of a few registers: as exact as its terms.
template <int R>
static NL_INLINE vf sum_of(const vf* v) {
  if constexpr (R == 1) return v[0];
  else return sum_of<R / 2>(v) + sum_of<R / 2>(v + R / 2);
}

// Recompute the marked lanes in double precision.
template <class K>
__attribute__((noinline, cold)) static void repair_value(const vf* in, const double* par, const vf* bad, vf* out) {
  for (int j = 0; j < VL; j++) {
    if ((*bad)[j] == 0) continue;
    double x[K::inputs];
    for (int k = 0; k < K::inputs; k++) x[k] = in[k][j];
    Wide w;
    (*out)[j] = static_cast<float>(K::template value<double>(w, x, par));
  }
}
template <class K>
__attribute__((noinline, cold)) static void repair_slopes(const vf* in, vf grad, const double* par, const vf* bad,
                                                          vf* d, vf* out) {
  for (int j = 0; j < VL; j++) {
    if ((*bad)[j] == 0) continue;
    double x[K::inputs], slope[K::inputs + K::parameters];
    for (int k = 0; k < K::inputs; k++) x[k] = in[k][j];
    Wide w;
    (*out)[j] = static_cast<float>(K::template slopes<double>(w, x, par, slope));
    for (int k = 0; k < K::inputs + K::parameters; k++) d[k][j] = static_cast<float>(grad[j] * slope[k]);
  }
}

// Powers and quotients of numbers this large overflow float32 in an intermediate step although the result fits; tiny
// numbers underflow if they are scaled down or squared.
template <class K, class W>
static NL_INLINE vm far_out(const vf* in) {
  vm far{};
  if constexpr (K::scaled && W::exact)
    for (int k = 0; k < K::inputs; k++) far = far | tiny(in[k], K::near);
  if constexpr (K::powers)
    for (int k = 0; k < K::inputs; k++) far = far | less(splat(K::far), vabs(in[k]));
  return far;
}
static NL_INLINE vf ones(vm m) { return select(m, splat(1.0f), splat(0.0f)); }

// Lanes whose float32 result may be wrong.
template <class K, class W>
static NL_INLINE vm doubtful(const W& w, const vf* in) {
  if constexpr (W::exact) return w.small | far_out<K, W>(in);
  else return far_out<K, W>(in);
}

// Recompute the marked lanes of one register. By copies: operands passed by address would live in memory from the start.
template <class K>
static NL_INLINE void mend_value(const vf* in, const double* par64, vm bad, vf* out) {
  vf x[K::inputs], fixed = *out;
  for (int k = 0; k < K::inputs; k++) x[k] = in[k];
  const vf which = ones(bad);
  repair_value<K>(x, par64, &which, &fixed);
  *out = fixed;
}
template <class K>
static NL_INLINE void mend_slopes(const vf* in, vf grad, const double* par64, vm bad, vf* made) {
  constexpr int all = K::inputs + K::parameters;
  vf x[K::inputs], fixed[all], value = made[all];
  for (int k = 0; k < K::inputs; k++) x[k] = in[k];
  for (int k = 0; k < all; k++) fixed[k] = made[k];
  const vf which = ones(bad);
  repair_slopes<K>(x, grad, par64, &which, fixed, &value);
  for (int k = 0; k < all; k++) made[k] = fixed[k];
  made[all] = value;
}

// Broadcast a parameter. A nan becomes the canonical one: other payloads might not survive exponent arithmetic.
static NL_INLINE vf learned(double par) { return splat(par == par ? static_cast<float>(par) : NAN); }

template <class K, class T>
struct Loops {
  template <bool CAREFUL>
  using Policy = std::conditional_t<K::exact || std::is_same<T, float>::value, std::conditional_t<CAREFUL, Careful, Exact>,
                                    Fast<std::is_same<T, bf16>::value ? 8 : 11>>;
  static constexpr int R = TOGETHER, STEP = R * VL;

  static void value(int64_t n, const void* const* inputs, const double* par64, void* output) {
    vf par[K::parameters + 1];
    for (int k = 0; k < K::parameters; k++) par[k] = learned(par64[k]);
    const T* in[K::inputs];
    for (int k = 0; k < K::inputs; k++) in[k] = static_cast<const T*>(inputs[k]);
    T* out = static_cast<T*>(output);
    int64_t i = 0;
    for (; i + STEP <= n; i += STEP) piece(in, i, par, par64, out + i);
    if (i == n) return;
    T rest[K::inputs + 1][STEP] = {};
    const T* from[K::inputs];
    for (int k = 0; k < K::inputs; k++) {
      std::memcpy(rest[k], in[k] + i, (n - i) * sizeof(T));
      from[k] = rest[k];
    }
    piece(from, 0, par, par64, rest[K::inputs]);
    std::memcpy(out + i, rest[K::inputs], (n - i) * sizeof(T));
  }

  // d: gradients by the inputs (each may be null), then the value (may be null); sums: gradients by the parameters.
  static void slopes(int64_t n, const void* const* inputs, const void* gradient, const double* par64, void* const* d,
                     double* sums) {
    vf par[K::parameters + 1];
    for (int k = 0; k < K::parameters; k++) par[k] = learned(par64[k]);
    double lanes[K::parameters + 1][VL] = {};
    const void* const same[2] = {gradient, gradient};
    if (K::linear && !d[K::inputs]) inputs = same;  // the derivatives are constants: the inputs need not be read
    int64_t i = 0;
    for (; i + STEP <= n; i += STEP) block(STEP, i, inputs, gradient, par, par64, d, lanes);
    if (i < n) tail(n - i, i, inputs, gradient, par64, d, lanes);
    for (int k = 0; k < K::parameters; k++)
      for (int j = 0; j < VL; j++) sums[k] += lanes[k][j];
  }

 private:
  static NL_INLINE void take(const T* from, int k, vf (*x)[K::inputs]) {
    vf some[R];
    Lanes<T>::load(from, some);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) x[r][k] = some[r];
  }
  static NL_INLINE void piece(const T* const* in, int64_t i, const vf* par, const double* par64, T* out) {
    vf x[R][K::inputs], y[R];
    vm doubt[R], rare{};
#pragma GCC unroll 4
    for (int k = 0; k < K::inputs; k++) take(in[k] + i, k, x);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      Policy<K::careful_value> w;
      y[r] = K::template value<vf>(w, x[r], par);
      doubt[r] = doubtful<K>(w, x[r]);
      rare = rare | doubt[r];
    }
    if (__builtin_expect(any(rare | nan_among<R>(y)), 0)) {
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) mend_value<K>(x[r], par64, doubt[r] | is_nan(y[r]), &y[r]);
      Lanes<T>::store(out, y, true);
    } else {
      Lanes<T>::store(out, y, false);
    }
  }
  static NL_INLINE void block(int count, int64_t i, const void* const* inputs, const void* gradient, const vf* par,
                              const double* par64, void* const* d, double (*lanes)[VL]) {
    constexpr int all = K::inputs + K::parameters;
    vf x[R][K::inputs], made[R][all + 1], grad[R];  // made: gradients by inputs and parameters, then the value
    vm doubt[R], rare{};
#pragma GCC unroll 4
    for (int k = 0; k < K::inputs; k++) take(static_cast<const T*>(inputs[k]) + i, k, x);
    Lanes<T>::load(static_cast<const T*>(gradient) + i, grad);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      Policy<K::careful> w;
      made[r][all] = K::template slopes<vf>(w, x[r], par, made[r]);
#pragma GCC unroll 4
      for (int k = 0; k < all; k++) made[r][k] = grad[r] * made[r][k];
      doubt[r] = doubtful<K>(w, x[r]);
      rare = rare | doubt[r] | nan_among<all>(made[r]);
    }
    if (d[K::inputs]) {  // else the compiler moves the value's own operations here, which nobody needs
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) rare = rare | is_nan(made[r][all]);
    }
    auto put = [&](bool nan) {
#pragma GCC unroll 4
      for (int k = 0; k <= K::inputs; k++) {
        vf some[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) some[r] = made[r][k < K::inputs ? k : all];
        if (d[k]) Lanes<T>::store(static_cast<T*>(d[k]) + i, some, nan);
      }
    };
    if (__builtin_expect(any(rare), 0)) {
#pragma GCC unroll 4
      for (int r = 0; r < R; r++)
        mend_slopes<K>(x[r], grad[r], par64, doubt[r] | nan_among<all + 1>(made[r]), made[r]);
      put(true);
    } else {
      put(false);
    }
    for (int k = 0; k < K::parameters; k++) {
      vf part[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) part[r] = made[r][K::inputs + k];
      if (count == STEP) add_lanes(lanes[k], sum_of<R>(part));
      else
        for (int r = 0; r < R; r++)
          for (int j = 0; j < VL; j++)
            if (Lanes<T>::place(r, j) < count) lanes[k][j] += part[r][j];
    }
  }
  __attribute__((noinline)) static void tail(int64_t count, int64_t i, const void* const* inputs, const void* gradient,
                                             const double* par64, void* const* d, double (*lanes)[VL]) {
    vf par[K::parameters + 1];
    for (int k = 0; k < K::parameters; k++) par[k] = learned(par64[k]);
    T rest[2 * K::inputs + 2][STEP] = {};
    const void* in[K::inputs];
    void* to[K::inputs + 1];
    for (int k = 0; k < K::inputs; k++) {
      in[k] = std::memcpy(rest[k], static_cast<const T*>(inputs[k]) + i, count * sizeof(T));
    }
    std::memcpy(rest[K::inputs], static_cast<const T*>(gradient) + i, count * sizeof(T));
    for (int k = 0; k <= K::inputs; k++) to[k] = rest[K::inputs + 1 + k];
    block(static_cast<int>(count), 0, in, rest[K::inputs], par, par64, to, lanes);
    for (int k = 0; k <= K::inputs; k++)
      if (d[k]) std::memcpy(static_cast<T*>(d[k]) + i, to[k], count * sizeof(T));
  }
};

template <class K>
struct Loops<K, double> {
  static void value(int64_t n, const void* const* inputs, const double* par, void* output) {
    for (int64_t i = 0; i < n; i++) {
      double x[K::inputs];
      for (int k = 0; k < K::inputs; k++) x[k] = static_cast<const double*>(inputs[k])[i];
      Wide w;
      static_cast<double*>(output)[i] = K::template value<double>(w, x, par);
    }
  }
  static void slopes(int64_t n, const void* const* inputs, const void* gradient, const double* par, void* const* d,
                     double* sums) {
    for (int64_t i = 0; i < n; i++) {
      double x[K::inputs], slope[K::inputs + K::parameters];
      for (int k = 0; k < K::inputs; k++) x[k] = static_cast<const double*>(inputs[k])[i];
      const double grad = static_cast<const double*>(gradient)[i];
      Wide w;
      const double out = K::template slopes<double>(w, x, par, slope);
      for (int k = 0; k < K::inputs; k++)
        if (d[k]) static_cast<double*>(d[k])[i] = grad * slope[k];
      if (d[K::inputs]) static_cast<double*>(d[K::inputs])[i] = out;
      for (int k = 0; k < K::parameters; k++) sums[k] += grad * slope[K::inputs + k];
    }
  }
};

}  // namespace

typedef void (*nl_value_t)(int64_t, const void* const*, const double*, void*);
typedef void (*nl_slopes_t)(int64_t, const void* const*, const void*, const double*, void* const*, double*);
// One activation: float32, bfloat16, float16, float64.
struct nl_entry {
  const char* identity;
  int inputs, parameters;
  nl_value_t value[4];
  nl_slopes_t slopes[4];
};
#define NL_ENTRY(identity, K)                                                                        \
  {identity, K::inputs, K::parameters,                                                               \
   {Loops<K, float>::value, Loops<K, bf16>::value, Loops<K, fp16>::value, Loops<K, double>::value}, \
   {Loops<K, float>::slopes, Loops<K, bf16>::slopes, Loops<K, fp16>::slopes, Loops<K, double>::slopes}}
#ifndef NL_ISA
#define NL_ISA own
#endif
#define NL_JOIN2(a, b) a##b
#define NL_JOIN(a, b) NL_JOIN2(a, b)
#define NL_TABLE(...)                                                           \
  extern "C" const nl_entry NL_JOIN(nl_entries_, NL_ISA)[] = {__VA_ARGS__, {}};
