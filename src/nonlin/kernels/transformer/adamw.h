// AdamW in one pass over memory, for many tensors at once: float32, one thread.
#pragma once
#include <cmath>
#include <cstdint>

struct AdamW {
  double rate, beta1, beta2, epsilon, decay;
};

// The sum of the squares of all tensors' numbers. Sums of a few thousand are float32, their total is double.
extern "C" double nl_sum_of_squares(int64_t count, const int64_t* sizes, const float* const* tensors) {
  constexpr int64_t PART = 4096;
  double sum = 0;
  for (int64_t n = 0; n < count; n++)
    for (int64_t i = 0; i < sizes[n]; i += PART) {
      const int64_t size = std::min(PART, sizes[n] - i);
      sum += dot(tensors[n] + i, tensors[n] + i, size);
    }
  return sum;
}

// One step of each tensor p with its gradient g times `scale`; m and v are its moments. `steps` counts a tensor's steps.
extern "C" void nl_adamw(int64_t count, const int64_t* sizes, float* const* ps, const float* const* gs,
                         float* const* ms, float* const* vs, float* const* steps, AdamW how, float scale) {
  const float keep = static_cast<float>(1 - how.rate * how.decay), epsilon = static_cast<float>(how.epsilon);
  const float first = static_cast<float>(1 - how.beta1), beta2 = static_cast<float>(how.beta2);
  const float second = static_cast<float>(1 - how.beta2);
  for (int64_t n = 0; n < count; n++) {
    const double step = *steps[n] += 1;
    const float rate = static_cast<float>(how.rate / (1 - std::pow(how.beta1, step)));
    const float correction = static_cast<float>(1 / std::sqrt(1 - std::pow(how.beta2, step)));
    float *__restrict p = ps[n], *__restrict m = ms[n], *__restrict v = vs[n];
    const float* __restrict g = gs[n];
    for (int64_t i = 0; i < sizes[n]; i++) {
      const float x = g[i] * scale;
      m[i] += first * (x - m[i]);
      v[i] = beta2 * v[i] + second * x * x;
      p[i] = p[i] * keep - rate * m[i] / (std::sqrt(v[i]) * correction + epsilon);
    }
  }
}
