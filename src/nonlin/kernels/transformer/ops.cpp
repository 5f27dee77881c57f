// The small model's operations, each in one pass: matrix product, RMS normalization, attention with normalized and
// rotated queries and keys, cross-entropy. Float32, one thread, C linkage, no torch.
#include "bf16_gemm.h"
#include "gemm.h"
#include "math.h"

// The sum, and the largest, of a register's numbers, in a tree.
static inline float total(vf v) {
#if defined(NL_AVX512)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float line[VL];
  store(line, v);
  for (int n = VL / 2; n; n /= 2)
    for (int i = 0; i < n; i++) line[i] += line[i + n];
  return line[0];
#endif
}
static inline float top_of(vf v) {
#if defined(NL_AVX512)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float line[VL];
  store(line, v);
  for (int n = VL / 2; n; n /= 2)
    for (int i = 0; i < n; i++) line[i] = line[i + n] > line[i] ? line[i + n] : line[i];
  return line[0];
#endif
}

// v, and from its n-th number on `other`.
static NL_INLINE vf first_of(vf v, int64_t n, float other) {
  static const int32_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  vi lanes;
  std::memcpy(&lanes, numbers, sizeof lanes);
  const vi keep = lanes < (vi{} + static_cast<int32_t>(n));
  return (vf)((keep & (vi)v) | (~keep & (vi)splat(other)));
}

static inline float dot(const float* a, const float* b, int64_t n) {
  vf acc{};
  int64_t i = 0;
  for (; i + VL <= n; i += VL) acc += load(a + i) * load(b + i);
  float s = total(acc);
  for (; i < n; i++) s += a[i] * b[i];
  return s;
}

// sum of a b c
static inline float dot3(const float* a, const float* b, const float* c, int64_t n) {
  vf acc{};
  int64_t i = 0;
  for (; i + VL <= n; i += VL) acc += load(a + i) * load(b + i) * load(c + i);
  float s = total(acc);
  for (; i < n; i++) s += a[i] * b[i] * c[i];
  return s;
}

static inline float largest(const float* a, int64_t n) {
  vf top = splat(a[0]);
  int64_t i = 0;
  for (; i + VL <= n; i += VL) top = vmax(load(a + i), top);
  float best = top_of(top);
  for (; i < n; i++) best = a[i] > best ? a[i] : best;
  return best;
}

extern "C" {

// y = x * inverse_rms(x) * w by row; inverse_rms is saved for backward.
void nl_rms_norm(int64_t rows, int64_t d, float eps, const float* x, const float* w, float* y, float* inverse_rms) {
  for (int64_t r = 0; r < rows; r++, x += d, y += d) {
    const float s = 1.0f / std::sqrt(dot(x, x, d) / d + eps);
    inverse_rms[r] = s;
    for (int64_t i = 0; i < d; i++) y[i] = x[i] * s * w[i];
  }
}

// dx = s (w dy - x s^2 mean(w dy x)); dw += dy x s
void nl_rms_norm_backward(int64_t rows, int64_t d, const float* x, const float* w, const float* inverse_rms,
                          const float* dy, float* dx, float* dw) {
  for (int64_t r = 0; r < rows; r++, x += d, dy += d, dx += d) {
    const float s = inverse_rms[r];
    const float mean = dot3(w, dy, x, d) * s * s / d;
    for (int64_t i = 0; i < d; i++) {
      dw[i] += dy[i] * x[i] * s;
      dx[i] = s * (w[i] * dy[i] - x[i] * mean);
    }
  }
}

// Mean cross-entropy and its gradient by the logits, divided by the number of rows; the gradient may be null. Losses
// are summed in double precision.
double nl_cross_entropy(int64_t rows, int64_t v, const float* logits, const int64_t* target, float* gradient) {
  double loss = 0;
  float* p = scratch(2, v + VL);
  for (int64_t r = 0; r < rows; r++, logits += v) {
    const float top = largest(logits, v);
    float sum = 0;
    int64_t i = 0;
    vf acc{};
    for (; i + VL <= v; i += VL) {
      const vf e = vexp(load(logits + i) - splat(top));
      store(p + i, e);
      acc += e;
    }
    for (; i < v; i++) sum += p[i] = std::exp(logits[i] - top);
    sum += total(acc);
    loss += std::log(static_cast<double>(sum)) + top - logits[target[r]];
    if (gradient) {
      const float scale = 1.0f / (sum * rows);
      for (int64_t j = 0; j < v; j++) gradient[j] = p[j] * scale;
      gradient[target[r]] -= 1.0f / rows;
      gradient += v;
    }
  }
  return loss / rows;
}
}  // extern "C"

// Scale one head by its inverse root mean square s and by w, rotate it by the position's angles.
static inline void scale_rotate(const float* __restrict x, const float* __restrict w, const float* __restrict cos,
                                const float* __restrict sin, float s, int64_t h, float* __restrict out) {
  const int64_t half = h / 2;
  int64_t i = 0;
  for (int64_t j = half; i + VL <= half; i += VL, j += VL) {
    const vf a = load(x + i) * splat(s) * load(w + i), b = load(x + j) * splat(s) * load(w + j);
    store(out + i, a * load(cos + i) - b * load(sin + i)), store(out + j, b * load(cos + i) + a * load(sin + i));
  }
  for (; i < half; i++) {
    const float a = x[i] * s * w[i], b = x[i + half] * s * w[i + half];
    out[i] = a * cos[i] - b * sin[i];
    out[i + half] = b * cos[i] + a * sin[i];
  }
}

static inline float norm_rotate(const float* x, const float* w, const float* cos, const float* sin, float eps,
                                int64_t h, float* out) {
  const float s = 1.0f / std::sqrt(dot(x, x, h) / h + eps);
  scale_rotate(x, w, cos, sin, s, h, out);
  return s;
}

static inline void norm_rotate_backward(const float* x, const float* w, const float* cos, const float* sin, float s,
                                        int64_t h, const float* g, float* dx, float* dw) {
  const int64_t half = h / 2;
  float dn[512];
  int64_t i = 0;
  for (int64_t j = half; i + VL <= half; i += VL, j += VL) {
    store(dn + i, load(g + i) * load(cos + i) + load(g + j) * load(sin + i));
    store(dn + j, load(g + j) * load(cos + i) - load(g + i) * load(sin + i));
  }
  for (; i < half; i++) {
    dn[i] = g[i] * cos[i] + g[i + half] * sin[i];
    dn[i + half] = g[i + half] * cos[i] - g[i] * sin[i];
  }
  const float mean = dot3(w, dn, x, h) * s * s / h;
  i = 0;
  for (; i + VL <= h; i += VL) {
    const vf dni = load(dn + i), xi = load(x + i);
    store(dw + i, load(dw + i) + dni * xi * splat(s));
    store(dx + i, load(dx + i) + splat(s) * (load(w + i) * dni - xi * splat(mean)));
  }
  for (; i < h; i++) {
    dw[i] += dn[i] * x[i] * s;
    dx[i] += s * (w[i] * dn[i] - x[i] * mean);
  }
}

struct Shape {
  int64_t batch, time, heads, kv_heads, width;  // width of one head
};

// Causal softmax of query i's scores: probabilities over the keys that it may see, zeros up to ld, in place or elsewhere.
template <class T>
static void causal_softmax(float* row, int64_t i, int64_t ld, float scale, T* out) {
  const int64_t last = i / VL * VL;  // where the register of the last key begins
  store(row + last, first_of(load(row + last), i + 1 - last, -HUGE_VALF));
  vf top = load(row), acc{};
  for (int64_t j = VL; j <= last; j += VL) top = vmax(load(row + j), top);
  const vf most = splat(top_of(top)), by = splat(scale);
  for (int64_t j = 0; j <= last; j += VL) {
    const vf e = vexp((load(row + j) - most) * by);
    store(row + j, e);
    acc += e;
  }
  const vf inverse = splat(1.0f / total(acc));
  for (int64_t j = 0; j <= last; j += VL) put(out + j, load(row + j) * inverse);
  for (int64_t j = last + VL; j < ld; j += VL) put(out + j, vf{});
}

// Products of a causal matrix, whose row i has i + 1 columns, or of one that is wanted there alone, BLOCK rows at a time.
constexpr int64_t BLOCK = 2 * MR;
static inline int64_t columns_of(int64_t i0, int64_t T) { return std::min(i0 + BLOCK, T); }

static float* packed(int slot, const float* b, int64_t rs, int64_t cs, int64_t k, int64_t n) {
  float* out = scratch(slot, k * ((n + NR - 1) / NR * NR));
  pack_b(b, rs, cs, k, n, out);
  return out;
}

// The lower triangle of C = A B^T, for rows of h numbers; what lies above it is not all written.
static void triangle(int64_t T, int64_t h, const float* a, int64_t rs, const float* b_panels, float* c, int64_t ldc) {
  for (int64_t i = 0; i < T; i += BLOCK)
    panel_rows(std::min(BLOCK, T - i), columns_of(i, T), h, a + i * rs, rs, 1, b_panels, h, 0, c + i * ldc, ldc, false);
}

// C = L B, for a lower triangle L.
static void lower(int64_t T, int64_t h, const float* l, int64_t ld, const float* b_panels, float* c, int64_t ldc) {
  for (int64_t i = 0; i < T; i += BLOCK)
    panel_rows(std::min(BLOCK, T - i), h, columns_of(i, T), l + i * ld, ld, 1, b_panels, T, 0, c + i * ldc, ldc, false);
}

// C = L^T B (+ C), for a lower triangle L.
static void lower_transposed(int64_t T, int64_t h, const float* l, int64_t ld, const float* b_panels, float* c,
                             int64_t ldc, bool accumulate) {
  for (int64_t j = 0; j < T; j += BLOCK)
    panel_rows(std::min(BLOCK, T - j), h, T - j, l + j * ld + j, 1, ld, b_panels, T, j, c + j * ldc, ldc, accumulate);
}

// The probabilities (batch, heads, time, ld) are saved for backward.
extern "C" void nl_attention(Shape s, float eps, const float* q, const float* k, const float* v, const float* wq,
                             const float* wk, const float* cos, const float* sin, float* out, float* probabilities) {
  const int64_t T = s.time, h = s.width, ld = (T + VL - 1) / VL * VL, group = s.heads / s.kv_heads;
  float *qr = scratch(3, T * h), *kr = scratch(4, T * h);
  for (int64_t b = 0; b < s.batch; b++)
    for (int64_t n = 0; n < s.heads; n++) {
      const int64_t m = n / group, q_ld = s.heads * h, k_ld = s.kv_heads * h;
      const float *qh = q + b * T * q_ld + n * h, *kh = k + b * T * k_ld + m * h, *vh = v + b * T * k_ld + m * h;
      float* p = probabilities + (b * s.heads + n) * T * ld;
      for (int64_t t = 0; t < T; t++) {
        norm_rotate(qh + t * q_ld, wq, cos + t * h, sin + t * h, eps, h, qr + t * h);
        norm_rotate(kh + t * k_ld, wk, cos + t * h, sin + t * h, eps, h, kr + t * h);
      }
      triangle(T, h, qr, h, packed(0, kr, 1, h, h, T), p, ld);
      for (int64_t i = 0; i < T; i++) causal_softmax(p + i * ld, i, ld, 1.0f / std::sqrt(static_cast<float>(h)), p + i * ld);
      lower(T, h, p, ld, packed(0, vh, k_ld, 1, T, h), out + b * T * q_ld + n * h, q_ld);
    }
}

// The gradient by query i's scores, of that by its probabilities, of which only the keys that it may see are there; in
// place or elsewhere, zeros up to ld.
template <class T>
static void causal_softmax_backward(const T* p, float* dp, int64_t i, int64_t ld, float scale, T* ds) {
  const int64_t last = i / VL * VL;
  store(dp + last, first_of(load(dp + last), i + 1 - last, 0));
  vf acc{};
  for (int64_t j = 0; j <= last; j += VL) acc += load(p + j) * load(dp + j);
  const vf mean = splat(total(acc)), by = splat(scale);
  for (int64_t j = 0; j <= last; j += VL) put(ds + j, load(p + j) * (load(dp + j) - mean) * by);
  for (int64_t j = last + VL; j < ld; j += VL) put(ds + j, vf{});
}

// The caller zeroes the gradients dq, dk, dv, dwq, dwk.
extern "C" void nl_attention_backward(Shape s, float eps, const float* q, const float* k, const float* v,
                                      const float* wq, const float* wk, const float* cos, const float* sin,
                                      const float* probabilities, const float* dout, float* dq, float* dk, float* dv,
                                      float* dwq, float* dwk) {
  const int64_t T = s.time, h = s.width, ld = (T + VL - 1) / VL * VL, group = s.heads / s.kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(h));
  float *qr = scratch(3, T * h), *kr = scratch(4, T * h), *ds = scratch(5, T * ld), *dr = scratch(6, T * h),
        *inverse = scratch(7, 2 * T);
  for (int64_t b = 0; b < s.batch; b++)
    for (int64_t n = 0; n < s.heads; n++) {
      const int64_t m = n / group, q_ld = s.heads * h, k_ld = s.kv_heads * h;
      const int64_t qo = b * T * q_ld + n * h, ko = b * T * k_ld + m * h;
      const float* p = probabilities + (b * s.heads + n) * T * ld;
      for (int64_t t = 0; t < T; t++) {
        inverse[t] = norm_rotate(q + qo + t * q_ld, wq, cos + t * h, sin + t * h, eps, h, qr + t * h);
        inverse[T + t] = norm_rotate(k + ko + t * k_ld, wk, cos + t * h, sin + t * h, eps, h, kr + t * h);
      }
      lower_transposed(T, h, p, ld, packed(0, dout + qo, q_ld, 1, T, h), dv + ko, k_ld, true);
      triangle(T, h, dout + qo, q_ld, packed(0, v + ko, 1, k_ld, h, T), ds, ld);
      for (int64_t t = 0; t < T; t++) causal_softmax_backward(p + t * ld, ds + t * ld, t, ld, scale, ds + t * ld);
      lower(T, h, ds, ld, packed(0, kr, h, 1, T, h), dr, h);
      for (int64_t t = 0; t < T; t++)
        norm_rotate_backward(q + qo + t * q_ld, wq, cos + t * h, sin + t * h, inverse[t], h, dr + t * h,
                             dq + qo + t * q_ld, dwq);
      lower_transposed(T, h, ds, ld, packed(0, qr, h, 1, T, h), dr, h, false);
      for (int64_t t = 0; t < T; t++)
        norm_rotate_backward(k + ko + t * k_ld, wk, cos + t * h, sin + t * h, inverse[T + t], h, dr + t * h,
                             dk + ko + t * k_ld, dwk);
    }
}

#include "adamw.h"
#include "bf16_ops.h"
#include "float32_ops.h"
#include "layer.h"
