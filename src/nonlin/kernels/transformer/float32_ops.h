// The small model's operations in float32, by the names that bf16_ops.h has for bfloat16.
#pragma once
#include "gemm.h"

// y_i = x W_i^T (+ residual), for W_i (n_i x d).
static void linears(int64_t rows, int64_t d, const float* x, int64_t count, const int64_t* n, const float* const* w,
                    const float* residual, float* const* y) {
  for (int64_t i = 0; i < count; i++) {
    gemm(rows, n[i], d, x, d, 1, w[i], 1, d, y[i], n[i], false);
    if (residual)
      for (int64_t j = 0; j < rows * n[i]; j++) y[i][j] += residual[j];
  }
}

// dx = sum of dy_i W_i, dW_i = dy_i^T x; either may be null.
static void linears_backward(int64_t rows, int64_t d, const float* x, int64_t count, const int64_t* n,
                             const float* const* w, const float* const* dy, float* dx, float* const* dw) {
  for (int64_t i = 0; i < count; i++) {
    if (dx) gemm(rows, d, n[i], dy[i], n[i], 1, w[i], d, 1, dx, d, i > 0);
    if (dw) gemm(n[i], d, rows, dy[i], 1, n[i], x, d, 1, dw[i], d, false);
  }
}

static void rms_norm(int64_t rows, int64_t d, float eps, const float* x, const float* w, float* y, float* scale) {
  nl_rms_norm(rows, d, eps, x, w, y, scale);
}

// dx = the norm's gradient + residual; dw is added to.
static void rms_norm_backward(int64_t rows, int64_t d, const float* x, const float* w, const float* scale,
                              const float* dy, const float* residual, float* dx, float* dw) {
  nl_rms_norm_backward(rows, d, x, w, scale, dy, dx, dw);
  for (int64_t i = 0; i < rows * d; i++) dx[i] += residual[i];
}

static void attention(Shape s, float eps, const float* q, const float* k, const float* v, const float* wq,
                      const float* wk, const float* cos, const float* sin, float* out, float* p, int64_t) {
  nl_attention(s, eps, q, k, v, wq, wk, cos, sin, out, p);
}

static void attention_backward(Shape s, float eps, const float* q, const float* k, const float* v, const float* wq,
                               const float* wk, const float* cos, const float* sin, const float* p, int64_t,
                               const float* dout, float* dq, float* dk, float* dv, float* dwq, float* dwk) {
  const size_t row = sizeof(float) * s.batch * s.time * s.width;
  std::memset(dq, 0, row * s.heads), std::memset(dk, 0, row * s.kv_heads), std::memset(dv, 0, row * s.kv_heads);
  nl_attention_backward(s, eps, q, k, v, wq, wk, cos, sin, p, dout, dq, dk, dv, dwq, dwk);
}

extern "C" {

void nl_linears(int64_t rows, int64_t d, const float* x, int64_t count, const int64_t* n, const float* const* w,
                float* const* y) {
  linears(rows, d, x, count, n, w, nullptr, y);
}

// y = residual + x W^T, or x W^T.
void nl_linear_add(int64_t rows, int64_t d, const float* x, int64_t n, const float* w, const float* residual, float* y) {
  linears(rows, d, x, 1, &n, &w, residual, &y);
}

void nl_linears_backward(int64_t rows, int64_t d, const float* x, int64_t count, const int64_t* n,
                         const float* const* w, const float* const* dy, float* dx, float* const* dw) {
  linears_backward(rows, d, x, count, n, w, dy, dx, dw);
}

void nl_linear_add_backward(int64_t rows, int64_t d, const float* x, int64_t n, const float* w, const float* dy,
                            float* dx, float* dw) {
  linears_backward(rows, d, x, 1, &n, &w, &dy, dx, dw ? &dw : nullptr);
}
}  // extern "C"
