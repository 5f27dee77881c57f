// The catalog's kernels, compiled once for each instruction set; this file, compiled for any processor, chooses.
#include "native_driver.h"

extern "C" {
extern const nl_entry nl_entries_portable[];
#if defined(NL_X86)
extern const nl_entry nl_entries_avx2[], nl_entries_avx512[], nl_entries_avx512bf16[];
#endif
}

static bool always() { return true; }
#if defined(NL_X86)
static bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
NL_DRIVER({"avx512bf16", nl_entries_avx512bf16, has_avx512bf16}, {"avx512", nl_entries_avx512, has_avx512},
          {"avx2", nl_entries_avx2, has_avx2}, {"portable", nl_entries_portable, always})
#else
NL_DRIVER({"portable", nl_entries_portable, always})
#endif
