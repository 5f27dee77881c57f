// Chooses among the catalog's kernels, compiled once per instruction set; this file runs on any processor.
#if __has_include(<Python.h>)
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NL_PYTHON
#endif
#include "driver.h"
#if defined(NL_PYTHON)
#include "block.h"
#include "packed.h"
#endif

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

#if defined(NL_PYTHON)
// call(function, n, first, second, out): a kernel's value on few elements, without ctypes' overhead.
static PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 5) {
    PyErr_SetString(PyExc_TypeError, "call takes a function, a count and three addresses");
    return nullptr;
  }
  const auto function = reinterpret_cast<nl_value_t>(PyLong_AsVoidPtr(args[0]));
  const int64_t n = PyLong_AsLongLong(args[1]);
  const void* in[2] = {PyLong_AsVoidPtr(args[2]), PyLong_AsVoidPtr(args[3])};
  void* out = PyLong_AsVoidPtr(args[4]);
  if (PyErr_Occurred()) return nullptr;
  function(n, in, nullptr, out);
  Py_RETURN_NONE;
}
// call_slopes(function, n, first, second, gradient, three outputs): gradients by the inputs, then the value; a null
// output is not written.
static PyObject* call_slopes(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 8) {
    PyErr_SetString(PyExc_TypeError, "call_slopes takes a function, a count and six addresses");
    return nullptr;
  }
  const auto function = reinterpret_cast<nl_slopes_t>(PyLong_AsVoidPtr(args[0]));
  const int64_t n = PyLong_AsLongLong(args[1]);
  const void* in[2] = {PyLong_AsVoidPtr(args[2]), PyLong_AsVoidPtr(args[3])};
  const void* gradient = PyLong_AsVoidPtr(args[4]);
  void* d[3] = {PyLong_AsVoidPtr(args[5]), PyLong_AsVoidPtr(args[6]), PyLong_AsVoidPtr(args[7])};
  if (PyErr_Occurred()) return nullptr;
  function(n, in, gradient, nullptr, d, nullptr);
  Py_RETURN_NONE;
}
static PyMethodDef methods[] = {{"call", method(call), METH_FASTCALL, nullptr},
                                {"call_slopes", method(call_slopes), METH_FASTCALL, nullptr},
                                {"watch", watch, METH_O, nullptr}, {"look", look, METH_O, nullptr},
                                {"saved", method(saved), METH_FASTCALL, nullptr},
                                {"saved_packed", method(saved_packed), METH_FASTCALL, nullptr},
                                {"fit", method(fit), METH_FASTCALL, nullptr},
                                {"projections", method(projections), METH_FASTCALL, nullptr}, {}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_catalog", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__catalog() {
  PyObject* made = PyModule_Create(&module);
  if (made && !add_short(made)) Py_CLEAR(made);
  return made;
}
#endif
