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
  NL_INLINE void small_exp_either(double) {}
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
  else if constexpr (W::exact) return fused(f, g, a);
  else return fma(f, g, a);
}

// a / b for a constant b and 1 / b rounded: of normal numbers the bits of a division, by a product and its correction.
template <class W, class V>
static NL_INLINE V divided(V a, V b, V inverse) {
#if defined(NL_FUSED)
  if constexpr (!std::is_same<V, double>::value && !W::exact) {
    const V quotient = a * inverse;
    return fma(fma(-quotient, b, a), inverse, quotient);  // nan for infinity, which double precision repairs
  }
#endif
  return a / b;
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
  if constexpr (W::exact && std::is_same<V, vf>::value) return fused(a, b, low * b);
  else return a * b;
}

// NaN guard: a nan without a nan input is 0 times infinity far from the origin; the limit is 0. Float32 recomputes the
// lane in double precision, so only double is guarded here.
template <class... More>
static NL_INLINE vm whole(vf, More...) { return vm{}; }
static NL_INLINE vf mended(vf x, vm) { return x; }
static NL_INLINE bool whole(double a) { return a == a; }
template <class... More>
static NL_INLINE bool whole(double a, More... more) { return a == a && whole(more...); }
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
static NL_INLINE vf ones(vm m) { return select(m, splat(1.0f), splat(0.0f)); }

// Powers and quotients of numbers this large overflow float32 in an intermediate step although the result fits; tiny
// numbers underflow if they are scaled down or squared.
template <class K, class W>
struct Range {
  static constexpr bool large = K::powers, small = K::scaled && W::exact;
  vf most{};
  vm near{};
  NL_INLINE void take(const vf* in) {
    for (int k = 0; k < K::inputs; k++) {
      if constexpr (large) most = vmax(vabs(in[k]), most);
      if constexpr (small) near = near | tiny(in[k], K::near);
    }
  }
  NL_INLINE vm outside() const {
    if constexpr (large) return near | less(splat(K::far), most);
    else return near;
  }
};

// Broadcast a parameter. A nan becomes the canonical one: other payloads might not survive exponent arithmetic.
static NL_INLINE vf learned(double par) { return splat(par == par ? static_cast<float>(par) : NAN); }

// Arrays that a struct's functions read and write are aligned: as a template's argument, the type of a register loses
// the attribute that it may lie anywhere.
template <class K, class T>
struct Loops {
  // A light formula waits for memory alone, which comes sooner to one cache line after the other (decision 0123).
  static constexpr int R = K::light && std::is_same<T, float>::value ? 16 / VL : TOGETHER;
  static constexpr int STEP = R * VL, all = K::inputs + K::parameters;
  using Some = Lanes<T, R>;
  // Lanes: which lanes need double precision is asked of one register; Any: whether any of several registers does.
  template <class Watch, bool CAREFUL>
  using Policy = std::conditional_t<K::exact || std::is_same<T, float>::value, Exact<Watch, CAREFUL>,
                                    Fast<std::is_same<T, bf16>::value ? 8 : 11>>;

  static void value(int64_t n, const void* const* inputs, const double* par64, void* output) {
    alignas(sizeof(vf)) vf par[K::parameters + 1];
    for (int k = 0; k < K::parameters; k++) par[k] = learned(par64[k]);
    const T* in[K::inputs];
    for (int k = 0; k < K::inputs; k++) in[k] = static_cast<const T*>(inputs[k]);
    T* out = static_cast<T*>(output);
    int64_t i = 0;
    for (; i + STEP <= n; i += STEP)
      if (__builtin_expect(!piece(in, i, par, out + i), 0)) checked_piece(STEP, in, i, par64, out + i);
    if (i < n) checked_piece(n - i, in, i, par64, out + i);
  }

  // d: gradients by the inputs (each may be null), then the value (may be null); sums: gradients by the parameters.
  static void slopes(int64_t n, const void* const* inputs, const void* gradient, const double* par64, void* const* d,
                     double* sums) {
    alignas(sizeof(vf)) vf par[K::parameters + 1];
    for (int k = 0; k < K::parameters; k++) par[k] = learned(par64[k]);
    double lanes[K::parameters + 1][VL] = {};
    const void* const same[2] = {gradient, gradient};
    if (K::linear && !d[K::inputs]) inputs = same;  // the derivatives are constants: the inputs need not be read
    int64_t i = 0;
    for (; i + STEP <= n; i += STEP)
      if (__builtin_expect(!block(i, inputs, gradient, par, d, lanes), 0))
        checked_block(STEP, i, inputs, gradient, par64, d, lanes);
    if (i < n) checked_block(n - i, i, inputs, gradient, par64, d, lanes);
    for (int k = 0; k < K::parameters; k++)
      for (int j = 0; j < VL; j++) sums[k] += lanes[k][j];
  }

 private:
  static NL_INLINE void take(const T* from, int k, vf (*x)[K::inputs]) {
    vf some[R];
    Some::load(from, some);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) x[r][k] = some[r];
  }
  // STEP numbers; false, and nothing is written, if one of them may need double precision.
  static NL_INLINE bool piece(const T* const* in, int64_t i, const vf* par, T* out) {
    alignas(sizeof(vf)) vf x[R][K::inputs], y[R];
    Policy<Any, K::careful_value> w;
    Range<K, decltype(w)> range;
#pragma GCC unroll 4
    for (int k = 0; k < K::inputs; k++) take(in[k] + i, k, x);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      y[r] = K::template value<vf>(w, x[r], par);
      range.take(x[r]);
    }
    if (__builtin_expect(any(nan_among<R>(y) | w.doubt() | range.outside()), 0)) return false;
    Some::store(out, y, false);
    return true;
  }
  // At most STEP numbers, one register after the other, of which lanes are computed in double precision.
  __attribute__((noinline)) static void checked_piece(int64_t count, const T* const* in, int64_t i, const double* par64,
                                                      T* out) {
    alignas(sizeof(vf)) vf par[K::parameters + 1], x[R][K::inputs], y[R] = {};
    for (int k = 0; k < K::parameters; k++) par[k] = learned(par64[k]);
    T held[STEP];
    for (int k = 0; k < K::inputs; k++) take(whole_step(count, in[k] + i, held), k, x);
    for (int r = 0; r < Some::registers(count); r++) {
      Policy<Each, K::careful_value> w;
      Range<K, decltype(w)> range;
      y[r] = K::template value<vf>(w, x[r], par);
      range.take(x[r]);
      const vm doubt = is_nan(y[r]) | w.doubt() | range.outside();
      if (!any(doubt)) continue;
      const vf which = ones(doubt);
      repair_value<K>(x[r], par64, &which, &y[r]);
    }
    put(count, y, out);
  }
  // The same for derivatives.
  static NL_INLINE bool block(int64_t i, const void* const* inputs, const void* gradient, const vf* par,
                              void* const* d, double (*lanes)[VL]) {
    alignas(sizeof(vf)) vf x[R][K::inputs], made[R][all + 1], grad[R];  // made: gradients, then the value
    Policy<Any, K::careful> w;
    Range<K, decltype(w)> range;
#pragma GCC unroll 4
    for (int k = 0; k < K::inputs; k++) take(static_cast<const T*>(inputs[k]) + i, k, x);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      made[r][all] = K::template slopes<vf>(w, x[r], par, made[r]);
      range.take(x[r]);
    }
    asm volatile("" ::: "memory");  // loaded earlier, the gradient would be spilled
    Some::load(static_cast<const T*>(gradient) + i, grad);
    vm rare = w.doubt() | range.outside();
#pragma GCC unroll 4
    for (int k = 0; k < all; k++) {
      vf some[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) some[r] = made[r][k] = grad[r] * made[r][k];
      rare = rare | nan_among<R>(some);
    }
    if (d[K::inputs]) {  // else the compiler moves the value's own operations here, which nobody needs
      vf some[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) some[r] = made[r][all];
      rare = rare | nan_among<R>(some);
    }
    if (__builtin_expect(any(rare), 0)) return false;
#pragma GCC unroll 4
    for (int k = 0; k <= K::inputs; k++) {
      vf some[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) some[r] = made[r][k < K::inputs ? k : all];
      if (d[k]) Some::store(static_cast<T*>(d[k]) + i, some, false);
    }
    for (int k = 0; k < K::parameters; k++) {
      vf part[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) part[r] = made[r][K::inputs + k];
      add_lanes(lanes[k], sum_of<R>(part));
    }
    return true;
  }
  __attribute__((noinline)) static void checked_block(int64_t count, int64_t i, const void* const* inputs,
                                                      const void* gradient, const double* par64, void* const* d,
                                                      double (*lanes)[VL]) {
    alignas(sizeof(vf)) vf par[K::parameters + 1], x[R][K::inputs], grad[R], made[all + 1][R] = {};
    for (int k = 0; k < K::parameters; k++) par[k] = learned(par64[k]);
    T held[STEP];
    for (int k = 0; k < K::inputs; k++) take(whole_step(count, static_cast<const T*>(inputs[k]) + i, held), k, x);
    Some::load(whole_step(count, static_cast<const T*>(gradient) + i, held), grad);
    for (int r = 0; r < Some::registers(count); r++) {
      Policy<Each, K::careful> w;
      Range<K, decltype(w)> range;
      alignas(sizeof(vf)) vf one[all + 1];
      one[all] = K::template slopes<vf>(w, x[r], par, one);
      for (int k = 0; k < all; k++) one[k] = grad[r] * one[k];
      range.take(x[r]);
      const vm doubt = nan_among<all + 1>(one) | w.doubt() | range.outside();
      if (any(doubt)) {
        const vf which = ones(doubt);
        repair_slopes<K>(x[r], grad[r], par64, &which, one, &one[all]);
      }
      for (int k = 0; k <= all; k++) made[k][r] = one[k];
    }
    for (int k = 0; k <= K::inputs; k++)
      if (d[k]) put(count, made[k < K::inputs ? k : all], static_cast<T*>(d[k]) + i);
    for (int k = 0; k < K::parameters; k++) {
      const vf* part = made[K::inputs + k];
      if (count == STEP) add_lanes(lanes[k], sum_of<R>(part));
      else
        for (int r = 0; r < R; r++)
          for (int j = 0; j < VL; j++)
            if (Some::place(r, j) < count) lanes[k][j] += part[r][j];
    }
  }
  // Where STEP numbers can be read: these, or a copy of fewer with zeros after them.
  static NL_INLINE const T* whole_step(int64_t count, const T* from, T (&held)[STEP]) {
    if (count == STEP) return from;
    std::memset(held, 0, sizeof held);
    std::memcpy(held, from, count * sizeof(T));
    return held;
  }
  static NL_INLINE void put(int64_t count, const vf* y, T* out) {
    if (count == STEP) return Some::store(out, y, true);
    T held[STEP];
    Some::store(held, y, true);
    std::memcpy(out, held, count * sizeof(T));
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
