// The small model's operations where matrix products are of bfloat16: what lies between two products is bfloat16 in
// memory, every sum is float32. The residual stream, its gradient and all weights are float32.
#pragma once
#include "bf16_gemm.h"

// Memory that a thread reuses, of n words.
static word* room(int slot, int64_t n) { return reinterpret_cast<word*>(scratch(slot, n)); }

static void widen(const bf16* x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) store(out + i, load(x + i));
  for (; i < n; i++) {
    const word bits = static_cast<word>(x[i].bits) << 16;
    std::memcpy(out + i, &bits, 4);
  }
}

// y_i = x W_i^T (+ residual), for W_i (n_i x d).
template <class Out>
static void linears(int64_t rows, int64_t d, const bf16* x, int64_t count, const int64_t* n, const float* const* w,
                    const float* residual, Out* const* y) {
  const Left left = left_rows(x, d, rows, d, room(8, rows * words(d)));
  for (int64_t i = 0; i < count; i++) {
    word* panels = room(9, panel_words(d, n[i]));
    pack_transposed(w[i], d, d, n[i], panels);
    pair_gemm(rows, n[i], Pairs(d), left, panels, y[i], residual, n[i]);
  }
}

// dx = sum of dy_i W_i, dW_i = dy_i^T x; either may be null.
template <class T>
static void linears_backward(int64_t rows, int64_t d, const bf16* x, int64_t count, const int64_t* n,
                             const float* const* w, const T* const* dy, bf16* dx, float* const* dw) {
  word* x_panels = room(8, panel_words(rows, d));
  if (dw) pack_rows(x, d, rows, d, x_panels);
  float* sum = dx && count > 1 ? scratch(10, rows * d) : nullptr;
  for (int64_t i = 0; i < count; i++) {
    if (dx) {
      word* panels = room(9, panel_words(n[i], d));
      pack_rows(w[i], d, n[i], d, panels);
      const Left left = left_rows(dy[i], n[i], rows, n[i], room(11, rows * words(n[i])));
      const float* before = i ? sum : nullptr;
      if (i + 1 < count) pair_gemm(rows, d, Pairs(n[i]), left, panels, sum, before, d);
      else pair_gemm(rows, d, Pairs(n[i]), left, panels, dx, before, d);
    }
    if (dw)
      pair_gemm(n[i], d, Pairs(rows), left_columns(dy[i], n[i], rows, n[i], room(11, words(rows) * n[i])), x_panels,
                dw[i], static_cast<const float*>(nullptr), d);
  }
}

static inline float mean_square(const float* x, int64_t n) {
  vf acc{};
  int64_t i = 0;
  for (; i + VL <= n; i += VL) acc += load(x + i) * load(x + i);
  float s = total(acc);
  for (; i < n; i++) s += x[i] * x[i];
  return s / n;
}

// One head of one sequence: its normalized and rotated rows as bfloat16, and their inverse root mean squares.
static void rotated_rows(const bf16* x, int64_t ld, const float* w, const float* cos, const float* sin, float eps,
                         int64_t T, int64_t h, bf16* out, float* inverse) {
  float plain[512], turned[512];
  const int64_t half = h / 2;
  if (half % VL == 0)
    for (int64_t t = 0; t < T; t++, cos += h, sin += h, x += ld, out += h) {
      vf acc{};
      for (int64_t i = 0; i < h; i += VL) acc += load(x + i) * load(x + i);
      const vf s = splat(inverse[t] = 1.0f / std::sqrt(total(acc) / h + eps));
      for (int64_t i = 0, j = half; i < half; i += VL, j += VL) {
        const vf a = load(x + i) * s * load(w + i), b = load(x + j) * s * load(w + j);
        put(out + i, a * load(cos + i) - b * load(sin + i)), put(out + j, b * load(cos + i) + a * load(sin + i));
      }
    }
  else for (int64_t t = 0; t < T; t++) {
    widen(x + t * ld, h, plain);
    inverse[t] = 1.0f / std::sqrt(mean_square(plain, h) + eps);
    scale_rotate(plain, w, cos + t * h, sin + t * h, inverse[t], h, turned);
    round_row(turned, h, out + t * h);
  }
}

static void rotated_rows_backward(const bf16* x, int64_t ld, const float* w, const float* cos, const float* sin,
                                  const float* inverse, int64_t T, int64_t h, const float* g, bf16* dx, float* dw) {
  float plain[512], made[512];
  const int64_t half = h / 2;
  if (half % VL == 0)
    for (int64_t t = 0; t < T; t++, cos += h, sin += h, g += h, x += ld, dx += ld) {
      vf acc{};
      for (int64_t i = 0, j = half; i < half; i += VL, j += VL) {
        const vf a = load(g + i) * load(cos + i) + load(g + j) * load(sin + j);
        const vf b = load(g + j) * load(cos + j) - load(g + i) * load(sin + i);
        store(made + i, a), store(made + j, b);
        acc += load(w + i) * a * load(x + i) + load(w + j) * b * load(x + j);
      }
      const vf s = splat(inverse[t]), mean = splat(total(acc) * inverse[t] * inverse[t] / h);
      for (int64_t i = 0; i < h; i += VL) {
        const vf dn = load(made + i), xi = load(x + i);
        store(dw + i, load(dw + i) + dn * xi * s), put(dx + i, s * (load(w + i) * dn - xi * mean));
      }
    }
  else for (int64_t t = 0; t < T; t++) {
    widen(x + t * ld, h, plain);
    std::memset(made, 0, sizeof(float) * h);
    norm_rotate_backward(plain, w, cos + t * h, sin + t * h, inverse[t], h, g + t * h, made, dw);
    round_row(made, h, dx + t * ld);
  }
}

// Rows i0…i0 + MR of a causal product see the first i0 + MR columns alone.
static inline int64_t seen(int64_t i0, int64_t T) { return std::min(i0 + MR, T); }

// Probabilities of one head as bfloat16, rows of ld numbers that end in zeros.
static void probabilities_of(int64_t T, int64_t ld, int64_t h, const bf16* q, const word* k_panels, bf16* p) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(h));
  float* scores = scratch(12, MR * ld);
  const Left left = left_rows(q, h, T, h, nullptr);
  for (int64_t i0 = 0; i0 < T; i0 += MR) {
    const int64_t rows = std::min<int64_t>(MR, T - i0);
    pair_gemm(rows, seen(i0, T), Pairs(h), Left{left.at + i0 * left.rs, left.rs, 1}, k_panels, scores,
              static_cast<const float*>(nullptr), ld);
    for (int64_t i = 0; i < rows; i++)
      causal_softmax(scores + i * ld, i0 + i, ld, scale, p + (i0 + i) * ld);
  }
}

extern "C" {

void nl_bf16_linears(int64_t rows, int64_t d, const bf16* x, int64_t count, const int64_t* n, const float* const* w,
                     bf16* const* y) {
  linears(rows, d, x, count, n, w, nullptr, y);
}

// y = residual + x W^T, or x W^T, in float32.
void nl_bf16_linear_add(int64_t rows, int64_t d, const bf16* x, int64_t n, const float* w, const float* residual,
                        float* y) {
  linears(rows, d, x, 1, &n, &w, residual, &y);
}

void nl_bf16_linears_backward(int64_t rows, int64_t d, const bf16* x, int64_t count, const int64_t* n,
                              const float* const* w, const bf16* const* dy, bf16* dx, float* const* dw) {
  linears_backward(rows, d, x, count, n, w, dy, dx, dw);
}

void nl_bf16_linear_add_backward(int64_t rows, int64_t d, const bf16* x, int64_t n, const float* w, const float* dy,
                                 bf16* dx, float* dw) {
  linears_backward(rows, d, x, 1, &n, &w, &dy, dx, dw ? &dw : nullptr);
}

// y = x * inverse_rms(x) * w by row, rounded to bfloat16.
void nl_bf16_rms_norm(int64_t rows, int64_t d, float eps, const float* x, const float* w, bf16* y, float* inverse_rms) {
  float* line = scratch(8, d);
  for (int64_t r = 0; r < rows; r++) {
    nl_rms_norm(1, d, eps, x + r * d, w, line, inverse_rms + r);
    round_row(line, d, y + r * d);
  }
}

void nl_bf16_rms_norm_backward(int64_t rows, int64_t d, const float* x, const float* w, const float* inverse_rms,
                               const bf16* dy, float* dx, float* dw) {
  float* line = scratch(8, d);
  for (int64_t r = 0; r < rows; r++) {
    widen(dy + r * d, d, line);
    nl_rms_norm_backward(1, d, x + r * d, w, inverse_rms + r, line, dx + r * d, dw);
  }
}

}  // extern "C"

static void rms_norm(int64_t rows, int64_t d, float eps, const float* x, const float* w, bf16* y, float* scale) {
  nl_bf16_rms_norm(rows, d, eps, x, w, y, scale);
}

// dx = the norm's gradient + residual; dw is added to.
static void rms_norm_backward(int64_t rows, int64_t d, const float* x, const float* w, const float* scale,
                              const bf16* dy, const float* residual, float* dx, float* dw) {
  nl_bf16_rms_norm_backward(rows, d, x, w, scale, dy, dx, dw);
  for (int64_t i = 0; i < rows * d; i++) dx[i] += residual[i];
}

// The probabilities (batch, heads, time, ld) are saved for backward; ld is time, rounded up to whole registers.
static void attention(Shape s, float eps, const bf16* q, const bf16* k, const bf16* v, const float* wq,
                      const float* wk, const float* cos, const float* sin, bf16* out, bf16* probabilities, int64_t ld) {
  const int64_t T = s.time, h = s.width, group = s.heads / s.kv_heads, q_ld = s.heads * h, k_ld = s.kv_heads * h;
  bf16 *qr = reinterpret_cast<bf16*>(room(3, T * h)), *kr = reinterpret_cast<bf16*>(room(4, T * h));
  float* inverse = scratch(5, T);
  word *k_panels = room(6, panel_words(h, T)), *v_panels = room(7, panel_words(T, h));
  for (int64_t b = 0; b < s.batch; b++)
    for (int64_t m = 0; m < s.kv_heads; m++) {
      const int64_t ko = b * T * k_ld + m * h;
      rotated_rows(k + ko, k_ld, wk, cos, sin, eps, T, h, kr, inverse);
      pack_transposed(kr, h, h, T, k_panels);
      pack_rows(v + ko, k_ld, T, h, v_panels);
      for (int64_t n = m * group; n < (m + 1) * group; n++) {
        const int64_t qo = b * T * q_ld + n * h;
        bf16* p = probabilities + (b * s.heads + n) * T * ld;
        rotated_rows(q + qo, q_ld, wq, cos, sin, eps, T, h, qr, inverse);
        probabilities_of(T, ld, h, qr, k_panels, p);
        const Left left = left_rows(p, ld, T, ld, nullptr);
        for (int64_t i0 = 0; i0 < T; i0 += MR)
          pair_gemm(std::min<int64_t>(MR, T - i0), h, Pairs(T, 0, seen(i0, T)), Left{left.at + i0 * left.rs, left.rs, 1},
                    v_panels, out + qo + i0 * q_ld, static_cast<const float*>(nullptr), q_ld);
      }
    }
}

// The caller zeroes dwq and dwk.
static void attention_backward(Shape s, float eps, const bf16* q, const bf16* k, const bf16* v, const float* wq,
                                const float* wk, const float* cos, const float* sin, const bf16* probabilities,
                                int64_t ld, const bf16* dout, bf16* dq, bf16* dk, bf16* dv, float* dwq, float* dwk) {
  const int64_t T = s.time, h = s.width, group = s.heads / s.kv_heads, q_ld = s.heads * h, k_ld = s.kv_heads * h;
  const float scale = 1.0f / std::sqrt(static_cast<float>(h));
  const float* none = nullptr;
  bf16 *qr = reinterpret_cast<bf16*>(room(3, T * h)), *kr = reinterpret_cast<bf16*>(room(4, T * h)),
       *ds = reinterpret_cast<bf16*>(room(5, T * ld));
  float *inverse = scratch(6, 2 * T), *dp = scratch(7, MR * ld), *dqr = scratch(9, T * h),
        *dkr = scratch(10, T * h), *dvr = scratch(11, T * h);
  word *v_panels = room(13, panel_words(h, T)), *k_panels = room(14, panel_words(T, h)),
       *q_panels = room(15, panel_words(T, h)), *o_panels = room(16, panel_words(T, h)),
       *p_words = room(17, words(T) * ld), *ds_words = room(18, words(T) * ld);
  for (int64_t b = 0; b < s.batch; b++)
    for (int64_t m = 0; m < s.kv_heads; m++) {
      const int64_t ko = b * T * k_ld + m * h;
      rotated_rows(k + ko, k_ld, wk, cos, sin, eps, T, h, kr, inverse + T);
      pack_transposed(v + ko, k_ld, h, T, v_panels);
      pack_rows(kr, h, T, h, k_panels);
      for (int64_t n = m * group; n < (m + 1) * group; n++) {
        const int64_t qo = b * T * q_ld + n * h;
        const bf16* p = probabilities + (b * s.heads + n) * T * ld;
        const bool more = n > m * group;  // the key's gradients are sums over its queries' heads
        rotated_rows(q + qo, q_ld, wq, cos, sin, eps, T, h, qr, inverse);
        pack_rows(dout + qo, q_ld, T, h, o_panels);
        pack_rows(qr, h, T, h, q_panels);
        const Left o_rows = left_rows(dout + qo, q_ld, T, h, nullptr), ds_rows = left_rows(ds, ld, T, ld, nullptr);
        for (int64_t i0 = 0; i0 < T; i0 += MR) {
          const int64_t rows = std::min<int64_t>(MR, T - i0);
          pair_gemm(rows, seen(i0, T), Pairs(h), Left{o_rows.at + i0 * o_rows.rs, o_rows.rs, 1}, v_panels, dp, none, ld);
          for (int64_t i = 0; i < rows; i++)
            causal_softmax_backward(p + (i0 + i) * ld, dp + i * ld, i0 + i, ld, scale, ds + (i0 + i) * ld);
          pair_gemm(rows, h, Pairs(T, 0, seen(i0, T)), Left{ds_rows.at + i0 * ds_rows.rs, ds_rows.rs, 1}, k_panels,
                    dqr + i0 * h, none, h);
        }
        const Left p_columns = left_columns(p, ld, T, ld, p_words), ds_columns = left_columns(ds, ld, T, ld, ds_words);
        for (int64_t j0 = 0; j0 < T; j0 += MR) {  // only queries from j0 on see the keys from j0 on
          const int64_t rows = std::min<int64_t>(MR, T - j0);
          pair_gemm(rows, h, Pairs(T, j0, T), Left{p_columns.at + j0, 1, p_columns.cs}, o_panels, dvr + j0 * h,
                    more ? dvr + j0 * h : none, h);
          pair_gemm(rows, h, Pairs(T, j0, T), Left{ds_columns.at + j0, 1, ds_columns.cs}, q_panels, dkr + j0 * h,
                    more ? dkr + j0 * h : none, h);
        }
        rotated_rows_backward(q + qo, q_ld, wq, cos, sin, inverse, T, h, dqr, dq + qo, dwq);
      }
      rotated_rows_backward(k + ko, k_ld, wk, cos, sin, inverse + T, T, h, dkr, dk + ko, dwk);
      for (int64_t t = 0; t < T; t++) round_row(dvr + t * h, h, dv + ko + t * k_ld);
    }
}

extern "C" {

void nl_bf16_attention(Shape s, float eps, const bf16* q, const bf16* k, const bf16* v, const float* wq,
                       const float* wk, const float* cos, const float* sin, bf16* out, bf16* probabilities, int64_t ld) {
  attention(s, eps, q, k, v, wq, wk, cos, sin, out, probabilities, ld);
}

void nl_bf16_attention_backward(Shape s, float eps, const bf16* q, const bf16* k, const bf16* v, const float* wq,
                                const float* wk, const float* cos, const float* sin, const bf16* probabilities,
                                int64_t ld, const bf16* dout, bf16* dq, bf16* dk, bf16* dv, float* dwq, float* dwk) {
  attention_backward(s, eps, q, k, v, wq, wk, cos, sin, probabilities, ld, dout, dq, dk, dv, dwq, dwk);
}
}  // extern "C"
