// One layer of the small model, forward and backward, each in one call: what a layer's operations cost beside their
// arithmetic is the calls. The operations are those that are called one by one, in the same order: same bits.
//
// T is the type of what lies between two products, float or bf16.
#pragma once
#include "bf16_ops.h"
#include "float32_ops.h"

// A kernel of kernels/cpu/driver.h, by its two calls, and the values of its learnable parameters.
struct Activation {
  int (*value)(const void* entry, int dtype, const int64_t* call);
  int (*slopes)(const void* entry, int dtype, const int64_t* call);
  const void* entry;
  int64_t dtype, parameters;
  const double* values;
  double* sums;  // of the parameters' gradients
};

enum Weight { ATTENTION_NORM, Q, K, V, Q_NORM, K_NORM, O, FEED_FORWARD_NORM, GATE, UP, DOWN, WEIGHTS };

struct Layer {
  Shape shape;
  int64_t dim, hidden;
  float eps;
  const float *cos, *sin;
  const float* weights[WEIGHTS];  // GATE is null where the block is plain
  Activation activation;

  int64_t rows() const { return shape.batch * shape.time; }
  int64_t padded() const { return (shape.time + 15) / 16 * 16; }  // a whole vector register of any instruction set
  int64_t queries() const { return shape.heads * shape.width; }
  int64_t keys() const { return shape.kv_heads * shape.width; }
  bool gated() const { return weights[GATE] != nullptr; }
};

// Memory that is cut from the front; of null, it counts.
struct Cut {
  char* at;
  template <class T>
  T* take(int64_t n) {
    T* out = reinterpret_cast<T*>(at);
    at += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return out;
  }
};

// What forward leaves for backward.
template <class T>
struct Saved {
  T *normed, *q, *k, *v, *p, *attended, *normed2, *gate, *up, *hidden;
  float *middle, *scale, *scale2;
  char* end;
  Saved(const Layer& l, char* memory) {
    const int64_t rows = l.rows();
    Cut cut{memory};
    normed = cut.take<T>(rows * l.dim), normed2 = cut.take<T>(rows * l.dim), middle = cut.take<float>(rows * l.dim);
    q = cut.take<T>(rows * l.queries()), attended = cut.take<T>(rows * l.queries());
    k = cut.take<T>(rows * l.keys()), v = cut.take<T>(rows * l.keys());
    p = cut.take<T>(rows * l.shape.heads * l.padded());
    gate = l.gated() ? cut.take<T>(rows * l.hidden) : nullptr;
    up = cut.take<T>(rows * l.hidden), hidden = cut.take<T>(rows * l.hidden);
    scale = cut.take<float>(rows), scale2 = cut.take<float>(rows);
    end = cut.at;
  }
};

// Gradients on the way back.
template <class T>
struct Gradients {
  T *normed, *q, *k, *v, *attended, *gate, *up, *hidden;
  float* middle;
  char* end;
  Gradients(const Layer& l, char* memory) {
    const int64_t rows = l.rows();
    Cut cut{memory};
    hidden = cut.take<T>(rows * l.hidden), up = cut.take<T>(rows * l.hidden);
    gate = l.gated() ? cut.take<T>(rows * l.hidden) : nullptr;
    normed = cut.take<T>(rows * l.dim), middle = cut.take<float>(rows * l.dim);
    attended = cut.take<T>(rows * l.queries()), q = cut.take<T>(rows * l.queries());
    k = cut.take<T>(rows * l.keys()), v = cut.take<T>(rows * l.keys());
    end = cut.at;
  }
};

static void activate(const Layer& l, const void* first, const void* second, const void* gradient, const void* d_first,
                     const void* d_second, const void* value) {
  const Activation& a = l.activation;
  const int64_t n = l.rows() * l.hidden;
  // As driver.h's Call lies: rows, columns, threads, no pool, parameters, sums; then address and strides of six tensors.
  int64_t call[24] = {1, n, 1, 0, reinterpret_cast<int64_t>(a.values), reinterpret_cast<int64_t>(a.sums)};
  const void* at[6] = {first, second, gradient, d_first, d_second, value};
  for (int i = 0; i < 6; i++) call[6 + 3 * i] = reinterpret_cast<int64_t>(at[i]), call[7 + 3 * i] = n, call[8 + 3 * i] = 1;
  (gradient ? a.slopes : a.value)(a.entry, static_cast<int>(a.dtype), call);
}

template <class T>
static void layer(const Layer& l, const float* x, char* memory, float* out) {
  const Saved<T> s(l, memory);
  const int64_t rows = l.rows(), d = l.dim, n[3] = {l.queries(), l.keys(), l.keys()}, two[2] = {l.hidden, l.hidden};
  const float* const* w = l.weights;
  rms_norm(rows, d, l.eps, x, w[ATTENTION_NORM], s.normed, s.scale);
  T* const qkv[3] = {s.q, s.k, s.v};
  linears(rows, d, s.normed, 3, n, w + Q, nullptr, qkv);
  attention(l.shape, l.eps, s.q, s.k, s.v, w[Q_NORM], w[K_NORM], l.cos, l.sin, s.attended, s.p, l.padded());
  linears(rows, l.queries(), s.attended, 1, &d, w + O, x, &s.middle);
  rms_norm(rows, d, l.eps, s.middle, w[FEED_FORWARD_NORM], s.normed2, s.scale2);
  T* const parts[2] = {s.gate, s.up};
  const int plain = l.gated() ? 0 : 1;
  linears(rows, d, s.normed2, 2 - plain, two, w + GATE + plain, nullptr, parts + plain);
  activate(l, parts[plain], plain ? nullptr : s.up, nullptr, s.hidden, nullptr, nullptr);
  linears(rows, l.hidden, s.hidden, 1, &d, w + DOWN, s.middle, &out);
}

// The gradients dw of norms are added to; the caller zeroes them.
template <class T>
static void layer_backward(const Layer& l, const float* x, char* memory, const float* dout, char* room_, float* dx,
                           float* const* dw) {
  const Saved<T> s(l, memory);
  const Gradients<T> g(l, room_);
  const int64_t rows = l.rows(), d = l.dim, n[3] = {l.queries(), l.keys(), l.keys()}, two[2] = {l.hidden, l.hidden};
  const float* const* w = l.weights;
  const int plain = l.gated() ? 0 : 1;
  linears_backward(rows, l.hidden, s.hidden, 1, &d, w + DOWN, &dout, g.hidden, dw + DOWN);
  const T* const parts[2] = {s.gate, s.up};
  const T* const d_parts[2] = {g.gate, g.up};
  activate(l, parts[plain], plain ? nullptr : s.up, g.hidden, d_parts[plain], plain ? nullptr : g.up, nullptr);
  linears_backward(rows, d, s.normed2, 2 - plain, two, w + GATE + plain, d_parts + plain, g.normed, dw + GATE + plain);
  rms_norm_backward(rows, d, s.middle, w[FEED_FORWARD_NORM], s.scale2, g.normed, dout, g.middle, dw[FEED_FORWARD_NORM]);
  const float* const middle = g.middle;
  linears_backward(rows, l.queries(), s.attended, 1, &d, w + O, &middle, g.attended, dw + O);
  attention_backward(l.shape, l.eps, s.q, s.k, s.v, w[Q_NORM], w[K_NORM], l.cos, l.sin, s.p, l.padded(), g.attended, g.q,
                     g.k, g.v, dw[Q_NORM], dw[K_NORM]);
  const T* const qkv[3] = {g.q, g.k, g.v};
  linears_backward(rows, d, s.normed, 3, n, w + Q, qkv, g.normed, dw + Q);
  rms_norm_backward(rows, d, x, w[ATTENTION_NORM], s.scale, g.normed, g.middle, dx, dw[ATTENTION_NORM]);
}

extern "C" {

// Bytes of what forward leaves, or of backward's room.
int64_t nl_layer_bytes(const Layer* l, int narrow, int backward) {
  const auto size = [](const char* end) { return static_cast<int64_t>(reinterpret_cast<intptr_t>(end)); };
  if (backward) return narrow ? size(Gradients<bf16>(*l, nullptr).end) : size(Gradients<float>(*l, nullptr).end);
  return narrow ? size(Saved<bf16>(*l, nullptr).end) : size(Saved<float>(*l, nullptr).end);
}
void nl_layer(const Layer* l, int narrow, const float* x, char* memory, float* out) {
  if (narrow) layer<bf16>(*l, x, memory, out);
  else layer<float>(*l, x, memory, out);
}
void nl_layer_backward(const Layer* l, int narrow, const float* x, char* memory, const float* dout, char* room_,
                       float* dx, float* const* dw) {
  if (narrow) layer_backward<bf16>(*l, x, memory, dout, room_, dx, dw);
  else layer_backward<float>(*l, x, memory, dout, room_, dx, dw);
}
}  // extern "C"
