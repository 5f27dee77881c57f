// The products of a feed-forward block for few tokens; hidden units that are zero may be left out.
//
// Accumulated in float32 and rounded once, when the output is stored. An output element is summed by one thread in the
// order of the units, so results do not depend on the number of threads.
#include "simd.h"

#include <atomic>
#include <vector>

namespace {

constexpr int R = TOGETHER, STEP = R * VL, TOKENS = 8;
constexpr int64_t ROWS = 32, WIDTH = 512, AT_ONCE = 4, PROBES = 64;
static_assert(WIDTH % STEP == 0, "stripes are whole steps");

typedef void (*parallel_t)(void (*)(void*), void*, unsigned, unsigned);

template <class Work>
struct Shared {
  const Work* work;
  int64_t tasks;
  std::atomic<int64_t> next;
};
template <class Work>
static void worker(void* given) {
  auto& shared = *static_cast<Shared<Work>*>(given);
  for (int64_t task; (task = shared.next.fetch_add(1)) < shared.tasks;) shared.work->run(task);
}
template <class Work>
static void distribute(const Work& work, int64_t tasks, int64_t threads, parallel_t parallel) {
  Shared<Work> shared{&work, tasks, {0}};
  if (threads > 1 && tasks > 1 && parallel)
    parallel(worker<Work>, &shared, static_cast<unsigned>(threads < tasks ? threads : tasks), 0);
  else
    worker<Work>(&shared);
}

// STEP elements, or what is left of them and zeros, as float32 in the order of Lanes.
template <class T>
static NL_INLINE void take(const T* p, int64_t left, vf* out) {
  if (__builtin_expect(left >= STEP, 1)) return Lanes<T>::load(p, out);
  T some[STEP] = {};
  std::memcpy(some, p, left * sizeof(T));
  Lanes<T>::load(some, out);
}
template <class T>
static NL_INLINE float one(const T* p) {
  vf out[R];
  take(p, 1, out);
  return out[0][0];
}
static NL_INLINE float total(vf v) {
  float t[VL];
  store(t, v);
  for (int width = VL / 2; width; width /= 2)
    for (int j = 0; j < width; j++) t[j] += t[j + width];
  return t[0];
}

// The sums of N tokens in registers: a recursion, since an array that a loop indexes would stay in memory. A chains of
// additions per token, as far as registers reach.
template <int N, int A = N <= 2 ? 4 : N <= 4 ? 2 : 1>
struct Sums {
  vf a{}, b{}, c{}, d{};
  Sums<N - 1, A> rest;
  NL_INLINE void add(const vf* v, const float* x, int64_t padded) {
    a = fma(v[0], load(x), a);
    vf& second = A == 1 ? a : b;
    second = fma(v[1], load(x + VL), second);
    vf& third = A == 4 ? c : a;
    third = fma(v[2], load(x + 2 * VL), third);
    vf& fourth = A == 4 ? d : second;
    fourth = fma(v[3], load(x + 3 * VL), fourth);
    rest.add(v, x + padded, padded);
  }
  NL_INLINE void put(float* out, int64_t apart, float shift, int64_t tokens) const {
    if (tokens == 0) return;
    const vf all = A == 1 ? a : A == 2 ? a + b : (a + b) + (c + d);
    *out = total(all) + shift;
    rest.put(out + apart, apart, shift, tokens - 1);
  }
};
template <int A>
struct Sums<0, A> {
  NL_INLINE void add(const vf*, const float*, int64_t) {}
  NL_INLINE void put(float*, int64_t, float, int64_t) const {}
};
static_assert(R == 4, "Sums takes four registers at a time");

// out[n, k] = x[n] . weight[row k] + bias[row k]; rows are all, or those of index.
template <class T>
struct Rows {
  int64_t tokens, inputs, padded, count, stride;
  const T *weight, *bias;
  const int32_t* index;
  const float* x;  // (tokens, padded), in the order of Lanes, and rows of zeros up to 1, 2, 4 or 8
  float* out;

  template <int N>
  void some(int64_t from, int64_t to) const {
    int64_t k = from;
    if (N > 2)  // two rows share what is read of x, which is more than the first cache holds
      for (; k + 2 <= to; k += 2) {
        const int64_t row = at(k), next = at(k + 1);
        const T *w = weight + row * stride, *other = weight + next * stride;
        Sums<N> sums, others;
        for (int64_t i = 0; i < inputs; i += STEP) {
          vf v[R], u[R];
          take(w + i, inputs - i, v);
          take(other + i, inputs - i, u);
          sums.add(v, x + i, padded);
          others.add(u, x + i, padded);
        }
        sums.put(out + k, count, bias ? one(bias + row) : 0.0f, tokens);
        others.put(out + k + 1, count, bias ? one(bias + next) : 0.0f, tokens);
      }
    for (; k < to; k++) {
      const int64_t row = at(k);
      const T* w = weight + row * stride;
      if (index && k + 1 < count) __builtin_prefetch(weight + at(k + 1) * stride);
      Sums<N> sums;
      for (int64_t i = 0; i < inputs; i += STEP) {
        vf v[R];
        take(w + i, inputs - i, v);
        sums.add(v, x + i, padded);
      }
      sums.put(out + k, count, bias ? one(bias + row) : 0.0f, tokens);
    }
  }
  int64_t at(int64_t k) const { return index ? index[k] : k; }
  void run(int64_t task) const {
    const int64_t from = task * ROWS, to = from + ROWS < count ? from + ROWS : count;
    if (tokens == 1) return some<1>(from, to);
    if (tokens == 2) return some<2>(from, to);
    if (tokens <= 4) return some<4>(from, to);
    some<8>(from, to);
  }
};

static int64_t padded_width(int64_t inputs) { return (inputs + STEP - 1) / STEP * STEP; }

// x as float32 in the order of Lanes, padded with zeros; returns whether all of it is finite.
template <class T>
static bool widen(int64_t tokens, int64_t inputs, int64_t padded, const T* x, int64_t stride, float* out) {
  vf rest{};
  for (int64_t n = 0; n < tokens; n++)
    for (int64_t i = 0; i < inputs; i += STEP) {
      vf v[R];
      take(x + n * stride + i, inputs - i, v);
      for (int r = 0; r < R; r++) {
        rest = fma(v[r], vf{}, rest);
        store(out + n * padded + i + r * VL, v[r]);
      }
    }
  return !any(is_nan(rest));
}

template <class T>
static void round_to(const float* x, int64_t n, T* out) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) store(out + i, load(x + i), true);
  if (i == n) return;
  float some[VL] = {};
  T rest[VL];
  std::memcpy(some, x + i, (n - i) * sizeof(float));
  store(rest, load(some), true);
  std::memcpy(out + i, rest, (n - i) * sizeof(T));
}

// out[n] = sum over units u of coefficient[u, n] weight[unit u] + bias, by stripes of the outputs.
template <class T>
struct Units {
  int64_t tokens, outputs, count, stride, out_stride;
  const T *weight, *bias;
  const int32_t* unit;
  const float* coefficient;
  T* out;

  void run(int64_t task) const {
    const int64_t from = task * WIDTH, width = outputs - from < WIDTH ? outputs - from : WIDTH;
    alignas(64) float sums[TOKENS][WIDTH];
    for (int64_t n = 0; n < tokens; n++)
      for (int64_t i = 0; i < width; i += STEP) {
        vf v[R] = {};
        if (bias) take(bias + from + i, width - i, v);
        for (int r = 0; r < R; r++) store(sums[n] + i + r * VL, v[r]);
      }
    int64_t u = 0;
    for (; u + AT_ONCE <= count; u += AT_ONCE) add<AT_ONCE>(sums, u, from, width);
    for (; u < count; u++) add<1>(sums, u, from, width);
    for (int64_t n = 0; n < tokens; n++) put(sums[n], out + n * out_stride + from, width);
  }
  template <int U>
  NL_INLINE void add(float (*sums)[WIDTH], int64_t u, int64_t from, int64_t width) const {
    const T* w[U];
    for (int j = 0; j < U; j++) w[j] = weight + unit[u + j] * stride + from;
    for (int64_t next = u + U; next < u + 2 * U && next < count; next++) {
      const T* ahead = weight + unit[next] * stride + from;
      for (int64_t i = 0; i < width; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(ahead + i);
    }
    if (tokens == 1) return once<U, T>(sums[0], coefficient + u, w, width, [](const T* p, int64_t left, vf* v) {
      take(p, left, v);
    });
    alignas(64) float wide[U][WIDTH];  // converted once for all tokens
    const float* from_wide[U];
    for (int j = 0; j < U; j++) {
      from_wide[j] = wide[j];
      for (int64_t i = 0; i < width; i += STEP) {
        vf v[R];
        take(w[j] + i, width - i, v);
        for (int r = 0; r < R; r++) store(wide[j] + i + r * VL, v[r]);
      }
    }
    for (int64_t n = 0; n < tokens; n++)
      once<U, float>(sums[n], coefficient + u * tokens + n, from_wide, width, [](const float* p, int64_t, vf* v) {
        for (int r = 0; r < R; r++) v[r] = load(p + r * VL);
      });
  }
  // One token's share of U units; nothing where its coefficients are zero.
  template <int U, class W, class Take>
  NL_INLINE void once(float* sums, const float* coefficients, const W* const* w, int64_t width, Take taken) const {
    vf c[U];
    bool zero = true;
    for (int j = 0; j < U; j++) {
      const float value = coefficients[j * tokens];
      zero = zero && value == 0.0f;
      c[j] = splat(value);
    }
    if (zero) return;
    for (int64_t i = 0; i < width; i += STEP) {
      vf sum[R], v[R];
      for (int r = 0; r < R; r++) sum[r] = load(sums + i + r * VL);
#pragma GCC unroll 4
      for (int j = 0; j < U; j++) {
        taken(w[j] + i, width - i, v);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sum[r] = fma(c[j], v[r], sum[r]);
      }
      for (int r = 0; r < R; r++) store(sums + i + r * VL, sum[r]);
    }
  }
  static void put(const float* sums, T* to, int64_t width) {
    for (int64_t i = 0; i < width; i += STEP) {
      vf v[R];
      for (int r = 0; r < R; r++) v[r] = load(sums + i + r * VL);
      if (width - i >= STEP) {
        Lanes<T>::store(to + i, v, true);
      } else {
        T rest[STEP];
        Lanes<T>::store(rest, v, true);
        std::memcpy(to + i, rest, (width - i) * sizeof(T));
      }
    }
  }
};

// Two products of the same rows, their tasks one after the other.
template <class T>
struct Two {
  Rows<T> first, second;
  int64_t tasks;  // of the first
  void run(int64_t task) const { task < tasks ? first.run(task) : second.run(task - tasks); }
};

typedef void (*value_t)(int64_t n, const void* const* in, const double* parameters, void* out);

// A whole block, dense: its output, rounded as its hidden values are. Returns 0 where these or the input are not finite.
template <class T>
static int block(const int64_t* w) {
  const int64_t tokens = w[1], inputs = w[2], hidden = w[3], outputs = w[4], threads = w[14];
  const auto at = [&](int k) { return reinterpret_cast<const T*>(w[k]); };
  const auto parallel = reinterpret_cast<parallel_t>(w[15]);
  const int64_t lines = tokens <= 2 ? tokens : tokens <= 4 ? 4 : 8;
  const int64_t padded = padded_width(inputs), padded_hidden = padded_width(hidden), n = tokens * hidden;
  thread_local std::vector<float> memory;
  memory.assign(lines * (padded + padded_hidden) + 3 * n + tokens * outputs, 0.0f);
  float *x = memory.data(), *h = x + lines * padded, *a = h + lines * padded_hidden, *b = a + n, *made = b + n;
  float* out = made + n;
  if (!widen(tokens, inputs, padded, at(5), inputs, x)) return 0;
  const int64_t tasks = (hidden + ROWS - 1) / ROWS;
  const Rows<T> up{tokens, inputs, padded, hidden, inputs, at(7), at(10), nullptr, x, b};
  if (w[6]) {
    Rows<T> gate = up;
    gate.weight = at(6), gate.bias = at(9), gate.out = a;
    distribute(Two<T>{gate, up, tasks}, 2 * tasks, threads, parallel);
  } else {
    distribute(up, tasks, threads, parallel);
  }
  const void* in[2] = {w[6] ? a : b, b};
  reinterpret_cast<value_t>(w[13])(n, in, nullptr, made);
  T* rounded = reinterpret_cast<T*>(a);
  if constexpr (sizeof(T) == 4) rounded = made;
  else round_to(made, n, rounded);
  if (!widen(tokens, hidden, padded_hidden, rounded, hidden, h)) return 0;
  T* to = reinterpret_cast<T*>(w[12]);
  if constexpr (sizeof(T) == 4) out = to;
  const Rows<T> down{tokens, hidden, padded_hidden, outputs, hidden, at(8), at(11), nullptr, h, out};
  distribute(down, (outputs + ROWS - 1) / ROWS, threads, parallel);
  if constexpr (sizeof(T) != 4) round_to(out, tokens * outputs, to);
  return 1;
}

// Whether a few of the units' weights are bit for bit those of the original, (outputs, units) with these strides.
template <class T>
static bool current(const Units<T>& u, const T* original, int64_t row, int64_t column) {
  const int64_t apart = u.count / PROBES + 1;
  for (int64_t k = 0; k < u.count; k += apart) {
    const int64_t unit = u.unit[k], o = static_cast<int64_t>(static_cast<uint32_t>(unit + 1) * 2654435761u % u.outputs);
    if (std::memcmp(u.weight + unit * u.stride + o, original + o * row + unit * column, sizeof(T))) return false;
  }
  return true;
}

// A nan is above every threshold: it reaches the output.
static NL_INLINE bool above(float x, float threshold) { return !(std::fabs(x) <= threshold); }

template <class T>
static int rows(const int64_t* w) {
  Rows<T> rows{w[1], w[2], padded_width(w[2]), w[3], w[4], reinterpret_cast<const T*>(w[5]),
               reinterpret_cast<const T*>(w[6]), reinterpret_cast<const int32_t*>(w[7]),
               reinterpret_cast<const float*>(w[8]), reinterpret_cast<float*>(w[9])};
  if (w[10] && !widen(rows.tokens, rows.inputs, rows.padded, reinterpret_cast<const T*>(w[10]), w[11],
                      reinterpret_cast<float*>(w[8])))
    return 0;
  distribute(rows, (rows.count + ROWS - 1) / ROWS, w[12], reinterpret_cast<parallel_t>(w[13]));
  return 1;
}

template <class T>
static int units(const int64_t* w, float threshold) {
  const int64_t tokens = w[1], given = w[3];
  const float *hidden = reinterpret_cast<const float*>(w[8]), *chosen = reinterpret_cast<const float*>(w[9]);
  const int32_t* index = reinterpret_cast<const int32_t*>(w[7]);
  int32_t* unit = reinterpret_cast<int32_t*>(w[10]);
  float* coefficient = reinterpret_cast<float*>(w[11]);
  int64_t count = 0;
  for (int64_t k = 0; k < given; k++) {
    bool used = false;
    for (int64_t n = 0; n < tokens; n++) {
      const float h = hidden[n * given + k];
      const bool wanted = above(chosen[n * given + k], threshold) && h != 0.0f;  // a nan differs from 0
      coefficient[count * tokens + n] = wanted ? h : 0.0f;
      used = used || wanted;
    }
    unit[count] = index ? index[k] : static_cast<int32_t>(k);
    count += used;
  }
  Units<T> units{tokens, w[2], count, w[4], w[15], reinterpret_cast<const T*>(w[5]), reinterpret_cast<const T*>(w[6]),
                 unit, coefficient, reinterpret_cast<T*>(w[14])};
  if (w[16] && !current(units, reinterpret_cast<const T*>(w[16]), w[17], w[18])) return -1;
  distribute(units, (units.outputs + WIDTH - 1) / WIDTH, w[12], reinterpret_cast<parallel_t>(w[13]));
  return static_cast<int>(count);
}

}  // namespace

// Calls are words laid out by Python, the first of them the storage type: float32, bfloat16, float16.
extern "C" {

int64_t nl_padded(int64_t inputs) { return padded_width(inputs); }

// Returns 0, and computes nothing, where the input holds infinite numbers or nan.
int nl_rows(const int64_t* w) {
  return w[0] == 0 ? rows<float>(w) : w[0] == 1 ? rows<bf16>(w) : rows<fp16>(w);
}

// Returns 0 where the block is to be computed otherwise: numbers on the way are not finite.
int nl_block(const int64_t* w) {
  return w[0] == 0 ? block<float>(w) : w[0] == 1 ? block<bf16>(w) : block<fp16>(w);
}

// The units above the threshold for any token: their indices, and the values of both (tokens, units) at them, dense.
int nl_choose(int64_t tokens, int64_t units, const float* chosen, const float* gate, float threshold, int32_t* index,
              float* chosen_out, float* gate_out) {
  int64_t count = 0;
  for (int64_t k = 0; k < units; k++) {
    bool used = false;
    for (int64_t n = 0; n < tokens; n++) used = used || above(chosen[n * units + k], threshold);
    index[count] = static_cast<int32_t>(k);
    count += used;
  }
  for (int64_t n = 0; n < tokens; n++)
    for (int64_t a = 0; a < count; a++) {
      chosen_out[n * count + a] = chosen[n * units + index[a]];
      gate_out[n * count + a] = gate[n * units + index[a]];
    }
  return static_cast<int>(count);
}

// Returns the number of units whose weights were read, or -1 where these are not the original's any more.
int nl_units(const int64_t* w, float threshold) {
  return w[0] == 0 ? units<float>(w, threshold) : w[0] == 1 ? units<bf16>(w, threshold) : units<fp16>(w, threshold);
}
}
