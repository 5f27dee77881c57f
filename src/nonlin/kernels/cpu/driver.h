// From a call on strided memory to the loops: cut it into chunks of fixed size, gather strided operands, distribute the
// chunks over threads. Chunks, and the sums over them, are independent of the number of threads.
#pragma once
#include <atomic>
#include <cstdlib>

#include "loops.h"

namespace {

// In elements: the smallest chunk of one thread; its chunk in a large call, long for streaming memory; a gather; the
// shortest row.
constexpr int64_t PIECE = 16384, LONG_PIECE = 65536, BLOCK = 512, DIRECT = 64;
constexpr int OPERANDS = 6;                                 // two inputs, the gradient, two gradients by them, value

typedef void (*parallel_t)(void (*)(void*), void*, unsigned, unsigned);
struct Operand {
  char* data;
  int64_t row, column;  // strides, in elements
};
// Laid out by Python: six words, then three per operand.
struct Call {
  int64_t rows, columns, threads;
  parallel_t parallel;  // GOMP_parallel of the process's OpenMP, or null
  const double* parameters;
  double* sums;
  Operand operands[OPERANDS];
};

struct Work {
  const nl_entry* entry;
  int dtype;
  int64_t size;  // bytes per element
  const Call* call;
  bool slopes, direct;
  int64_t rows_each, columns_each, across, tasks;
  double* sums;
  std::atomic<int64_t> next;
};

static void run_piece(const Work& w, int64_t n, char* const* at, double* sums) {
  const void* in[2] = {at[0], at[1]};
  if (w.slopes) {
    void* d[3] = {at[3], w.entry->inputs == 2 ? at[4] : at[5], at[5]};
    w.entry->slopes[w.dtype](n, in, at[2], w.call->parameters, d, sums);
  } else {
    w.entry->value[w.dtype](n, in, w.call->parameters, at[3]);
  }
}

template <class T>
static void copy(T* dense, T* strided, int64_t stride, int64_t n, bool out) {
  if (out)
    for (int64_t i = 0; i < n; i++) strided[i * stride] = dense[i];
  else if (stride == 2)  // the usual case, interleaved: a constant stride lets the compiler shuffle registers
    for (int64_t i = 0; i < n; i++) dense[i] = strided[2 * i];
  else
    for (int64_t i = 0; i < n; i++) dense[i] = strided[i * stride];
}
static void copy_bytes(int64_t size, char* dense, char* strided, int64_t stride, int64_t n, bool out) {
  if (stride == 1) std::memcpy(out ? strided : dense, out ? dense : strided, n * size);
  else if (size == 2) copy(reinterpret_cast<uint16_t*>(dense), reinterpret_cast<uint16_t*>(strided), stride, n, out);
  else if (size == 4) copy(reinterpret_cast<uint32_t*>(dense), reinterpret_cast<uint32_t*>(strided), stride, n, out);
  else copy(reinterpret_cast<uint64_t*>(dense), reinterpret_cast<uint64_t*>(strided), stride, n, out);
}

// Elements [first, first + n) of a chunk, in row order, through scratch memory.
static void gathered(const Work& w, int64_t r0, int64_t c0, int64_t columns, int64_t first, int64_t n, double* sums) {
  alignas(64) char scratch[OPERANDS][BLOCK * 8];
  char* at[OPERANDS];
  auto move = [&](int k, bool out) {
    const Operand& o = w.call->operands[k];
    for (int64_t done = 0; done < n;) {
      const int64_t r = (first + done) / columns, c = (first + done) % columns;
      const int64_t some = columns - c < n - done ? columns - c : n - done;
      copy_bytes(w.size, scratch[k] + done * w.size,
                 o.data + ((r0 + r) * o.row + (c0 + c) * o.column) * w.size, o.column, some, out);
      done += some;
    }
  };
  const int64_t r = first / columns, c = first % columns;
  for (int k = 0; k < OPERANDS; k++) {
    const Operand& o = w.call->operands[k];
    at[k] = o.data ? scratch[k] : nullptr;
    if (o.data && o.column == 1 && c + n <= columns) at[k] = o.data + ((r0 + r) * o.row + c0 + c) * w.size;
    else if (o.data && k < 3) move(k, false);
  }
  run_piece(w, n, at, sums);
  for (int k = 3; k < OPERANDS; k++)
    if (at[k] == scratch[k]) move(k, true);
}

static void run_task(const Work& w, int64_t task) {
  const Call& c = *w.call;
  const int64_t r0 = task / w.across * w.rows_each, c0 = task % w.across * w.columns_each;
  const int64_t rows = c.rows - r0 < w.rows_each ? c.rows - r0 : w.rows_each;
  const int64_t columns = c.columns - c0 < w.columns_each ? c.columns - c0 : w.columns_each;
  double* sums = w.sums + task * w.entry->parameters;
  if (!w.direct) {
    for (int64_t first = 0; first < rows * columns; first += BLOCK)
      gathered(w, r0, c0, columns, first, rows * columns - first < BLOCK ? rows * columns - first : BLOCK, sums);
    return;
  }
  for (int64_t r = r0; r < r0 + rows; r++) {
    char* at[OPERANDS];
    for (int k = 0; k < OPERANDS; k++) {
      const Operand& o = c.operands[k];
      at[k] = o.data ? o.data + (r * o.row + c0) * w.size : nullptr;
    }
    run_piece(w, columns, at, sums);
  }
}

static void worker(void* shared) {
  Work& w = *static_cast<Work*>(shared);
  for (int64_t task; (task = w.next.fetch_add(1)) < w.tasks;) run_task(w, task);
}

static int run(const nl_entry* entry, int dtype, const Call* call, bool slopes) {
  static const int64_t sizes[4] = {4, 2, 2, 8};
  if (call->rows == 0 || call->columns == 0) return 0;
  Work w{};
  w.entry = entry, w.dtype = dtype, w.size = sizes[dtype], w.call = call, w.slopes = slopes;
  w.direct = call->columns >= DIRECT || call->rows == 1;
  for (const Operand& o : call->operands) w.direct = w.direct && (!o.data || o.column == 1);
  const int64_t share = call->rows * call->columns / 16 / 64 * 64;  // a multiple of the loop, or every chunk would have a tail
  const int64_t piece = share < PIECE ? PIECE : share < LONG_PIECE ? share : LONG_PIECE;
  w.columns_each = call->columns < piece ? call->columns : piece;
  w.rows_each = w.columns_each < piece ? piece / w.columns_each : 1;
  w.across = (call->columns + w.columns_each - 1) / w.columns_each;
  w.tasks = (call->rows + w.rows_each - 1) / w.rows_each * w.across;
  const int64_t count = slopes ? w.tasks * entry->parameters : 0;
  w.sums = count ? static_cast<double*>(std::calloc(count, sizeof(double))) : nullptr;
  if (count && !w.sums) return 1;
  if (call->threads > 1 && w.tasks > 1 && call->parallel)
    call->parallel(worker, &w, static_cast<unsigned>(call->threads < w.tasks ? call->threads : w.tasks), 0);
  else
    worker(&w);
  for (int64_t i = 0; i < count; i++) call->sums[i % entry->parameters] += w.sums[i];
  std::free(w.sums);
  return 0;
}

// n contiguous elements, distributed over threads. With a gradient, the outputs are the gradients by the inputs (two, or
// one) and then the value; without, the first is the value. No learnable parameters: they need sums.
static void shared(const nl_entry* entry, int dtype, int64_t n, void* first, void* second, void* gradient,
                   void* const* places, int64_t threads, parallel_t parallel) {
  const bool two = entry->inputs == 2;
  Call call{1, n, threads, parallel, nullptr, nullptr, {}};
  void* const slopes[OPERANDS] = {first, two ? second : nullptr, gradient, places[0], two ? places[1] : nullptr,
                                  two ? places[2] : places[1]};
  void* const value[OPERANDS] = {first, two ? second : nullptr, nullptr, places[0], nullptr, nullptr};
  for (int k = 0; k < OPERANDS; k++) call.operands[k] = {static_cast<char*>((gradient ? slopes : value)[k]), n, 1};
  run(entry, dtype, &call, gradient != nullptr);
}

}  // namespace

struct nl_table {
  const char* name;
  const nl_entry* entries;
  bool (*here)();  // true if this processor has the instructions
};
#define NL_DRIVER(...)                                                                                            \
  static const nl_table tables[] = {__VA_ARGS__, {nullptr, nullptr, nullptr}};                                    \
  extern "C" {                                                                                                    \
  const char* nl_isa(int i) { return tables[i].name; }                                                            \
  int nl_here(int i) { return tables[i].here(); }                                                                 \
  const nl_entry* nl_find(int i, const char* identity) {                                                          \
    for (const nl_entry* e = tables[i].entries; e->identity; e++)                                                 \
      if (std::strcmp(e->identity, identity) == 0) return e;                                                      \
    return nullptr;                                                                                               \
  }                                                                                                               \
  int nl_value(const nl_entry* e, int dtype, const Call* call) { return run(e, dtype, call, false); }             \
  int nl_slopes(const nl_entry* e, int dtype, const Call* call) { return run(e, dtype, call, true); }             \
  void nl_flat(const nl_entry* e, int dtype, int64_t n, const void* first, const void* second, const double* par, \
               void* out) {                                                                                       \
    const void* in[2] = {first, second};                                                                          \
    e->value[dtype](n, in, par, out);                                                                             \
  }                                                                                                               \
  void nl_shared(const nl_entry* e, int dtype, int64_t n, void* first, void* second, void* gradient, void* a, void* b, \
                 void* c, int64_t threads, parallel_t parallel) {                                                 \
    void* const places[3] = {a, b, c};                                                                            \
    shared(e, dtype, n, first, second, gradient, places, threads, parallel);                                      \
  }                                                                                                               \
  nl_value_t nl_function(const nl_entry* e, int dtype) { return e->value[dtype]; }                                \
  nl_slopes_t nl_slopes_function(const nl_entry* e, int dtype) { return e->slopes[dtype]; }                       \
  void nl_flat_slopes(const nl_entry* e, int dtype, int64_t n, const void* first, const void* second,             \
                      const void* gradient, const double* par, void* d_first, void* d_second, void* value,        \
                      double* sums) {                                                                             \
    const void* in[2] = {first, second};                                                                          \
    void* d[3] = {d_first, e->inputs == 2 ? d_second : value, value};                                             \
    e->slopes[dtype](n, in, gradient, par, d, sums);                                                              \
  }                                                                                                               \
  }
