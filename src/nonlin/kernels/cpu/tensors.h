// A tensor of torch as memory: its numbers, sizes and strides, asked in C. In Python these questions, and a new
// tensor, cost more than a small kernel.
//
// Nothing of torch is linked. Its C interface (aoti_torch_...), which is stable from version to version, and three
// functions in C++ are found by name in the libraries that the process has loaded; `watch` binds them. Everything takes
// the general way if one is missing, or if `look` answers otherwise than Python (activation/fast_path.py).
#pragma once
#include <Python.h>
#include <descrobject.h>

#include <algorithm>

#include "driver.h"

namespace {

// A reference that is given back at the end of its scope.
struct Ref {
  PyObject* at;
  explicit Ref(PyObject* owned) : at(owned) {}
  Ref(const Ref&) = delete;
  ~Ref() { Py_XDECREF(at); }
  explicit operator bool() const { return at != nullptr; }
  PyObject* release() {
    PyObject* out = at;
    at = nullptr;
    return out;
  }
};

// The function behind an attribute of a class in C.
struct Attribute {
  getter get;
  void* closure;
  bool find(PyObject* cls, const char* name) {
    Ref found(PyObject_GetAttrString(cls, name));
    if (!found || Py_TYPE(found.at) != &PyGetSetDescr_Type) return PyErr_Clear(), false;
    const PyGetSetDef* of = reinterpret_cast<PyGetSetDescrObject*>(found.at)->d_getset;
    get = of->get, closure = of->closure;
    return get != nullptr;
  }
  PyObject* of(PyObject* x) const { return get(x, closure); }
  bool is(PyObject* x, PyObject* wanted) const {
    Ref value(of(x));
    if (!value) PyErr_Clear();
    return value.at == wanted;
  }
};
// torch's C interface. A tensor is passed as the address of the one word that a C++ tensor is.
typedef void* Handle;
typedef int32_t (*ask_t)(void* const*, int32_t*);
typedef int32_t (*count_t)(void* const*, int64_t*);
typedef int32_t (*sizes_t)(void* const*, const int64_t**);
typedef int32_t (*address_t)(void* const*, void**);
typedef int32_t (*make_t)(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, Handle*);
typedef int32_t (*end_t)(Handle);
typedef bool (*state_t)(void* const*);
typedef PyObject* (*wrap_t)(const void*);

// What is asked of torch, bound once by `watch`.
struct Torch {
  bool bound;
  PyObject *tensor, *parameter, *recording, *batched;
  PyObject *modes, *functions, *transforms, *traced;  // each returns something true, or not None, where it is at work
  PyObject *forward_ad, *level;                       // the dictionary of a module, and the name of a number in it
  PyObject *threads;                                  // returns how many threads a call may take
  parallel_t parallel;                                // starts them; null where there is no OpenMP
  PyObject *to_save, *short_, *order;                 // names of attributes of a context
  Attribute place, nested, requires_grad;
  ask_t device, layout, dtype;
  count_t dim, numel;
  sizes_t sizes, strides;
  address_t data;
  make_t empty;
  end_t end;
  state_t negative, zero;
  wrap_t wrap;
} torch;
constexpr int32_t CPU = 0, STRIDED = 0, SINGLE = 6, EXACT = 7;  // torch's numbers of a device, a layout and two dtypes

static bool says(PyObject* function, PyObject* wanted) {
  Ref value(PyObject_CallNoArgs(function));
  if (!value) PyErr_Clear();
  return value.at == wanted;
}
// Whether a mode, a transform or a trace watches what is called. The modes of functions come first: with one at work,
// even a tensor's attributes are its business.
static bool watched() {
  if (!says(torch.functions, Py_False)) return true;
  Ref modes(PyObject_CallNoArgs(torch.modes));
  if (!modes || PyObject_IsTrue(modes.at) || !says(torch.transforms, Py_None) || !says(torch.traced, Py_None))
    return PyErr_Clear(), true;
  PyObject* level = PyDict_GetItemWithError(torch.forward_ad, torch.level);  // borrowed
  return !level || PyLong_AsLong(level) >= 0;
}
// What a C++ function of torch says of a tensor; true where it throws, as for a tensor that has left torch.func's vmap.
static bool holds(state_t state, void* const* word) {
  try {
    return state(word);
  } catch (...) {
    return true;
  }
}
// A plain tensor of the CPU, of any strides.
constexpr int64_t DIMENSIONS = 8;
struct Plain {
  void* word;
  const int64_t *sizes, *strides;
  int64_t dim, n;
  int32_t dtype;
  void* data;
  bool contiguous;

  // A zero without memory and a negative view are refused: they hold other numbers than their memory does. So is what
  // has numbers but no memory of its own, such as a tensor around another.
  bool find_strided(PyObject* x) {
    const PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(x));
    if (type != torch.tensor && type != torch.parameter) return false;
    if (!torch.nested.is(x, Py_False)) return false;
    Ref place(torch.place.of(x));
    word = place ? PyLong_AsVoidPtr(place.at) : nullptr;
    if (!word) return PyErr_Clear(), false;
    int32_t device, layout;
    if (torch.device(&word, &device) || device != CPU || torch.layout(&word, &layout) || layout != STRIDED ||
        holds(torch.negative, &word) || holds(torch.zero, &word) || torch.dtype(&word, &dtype) || torch.dim(&word, &dim) ||
        torch.numel(&word, &n) || torch.sizes(&word, &sizes) || torch.strides(&word, &strides))
      return false;
    contiguous = true;
    for (int64_t d = dim - 1, step = 1; n && d >= 0; step *= sizes[d--])
      if (sizes[d] != 1 && strides[d] != step) contiguous = false;
    return (contiguous || dim <= DIMENSIONS) && torch.data(&word, &data) == 0 && (data || n == 0);
  }
  bool find(PyObject* x) { return find_strided(x) && contiguous; }
  // Whether the numbers lie without gaps, in any order of the dimensions.
  bool without_gaps() const {
    int64_t step = 1;
    for (int64_t found = 0; found < dim; found++) {
      int64_t d = 0;
      while (d < dim && (sizes[d] == 1 || strides[d] != step)) d++;
      if (d == dim) break;
      step *= sizes[d];
    }
    return step == n;
  }
  bool like(const Plain& other) const {
    return dtype == other.dtype && dim == other.dim && std::equal(sizes, sizes + dim, other.sizes);
  }
  // A new tensor of this shape and dtype, with these strides; its memory in `at`.
  PyObject* empty(void** at, const int64_t* steps) const {
    Handle made;
    if (torch.empty(dim, sizes, steps, dtype, CPU, 0, &made)) return PyErr_NoMemory();
    PyObject* out = nullptr;
    try {
      out = torch.data(static_cast<void**>(made), at) ? PyErr_NoMemory() : torch.wrap(made);
    } catch (...) {
      PyErr_NoMemory();
    }
    torch.end(made);
    return out;
  }
};
// A learnable parameter of one element, which is read and written in its dtype.
struct Learned {
  Plain tensor;
  double value;
  bool find(PyObject* q) {
    if (!tensor.find(q) || tensor.n != 1 || (tensor.dtype != SINGLE && tensor.dtype != EXACT)) return false;
    value = tensor.dtype == EXACT ? *static_cast<double*>(tensor.data) : *static_cast<float*>(tensor.data);
    return true;
  }
  PyObject* gradient(double sum) const {
    void* at;
    PyObject* out = tensor.empty(&at, tensor.strides);
    if (out && tensor.dtype == EXACT) *static_cast<double*>(at) = sum;
    else if (out) *static_cast<float*>(at) = static_cast<float>(sum);
    return out;
  }
};

template <class F>
static bool bind(PyObject* given, const char* name, F* place) {
  PyObject* found = PyDict_GetItemString(given, name);
  void* at = found ? PyLong_AsVoidPtr(found) : nullptr;
  *place = reinterpret_cast<F>(at);
  return PyErr_Clear(), at != nullptr;
}
// watch(torch's objects, and addresses of its functions, by name): binds them; False where something is missing.
static PyObject* watch(PyObject*, PyObject* given) {
  torch.bound = false;
  struct { const char* name; PyObject** place; } const places[] = {
      {"tensor", &torch.tensor}, {"parameter", &torch.parameter}, {"recording", &torch.recording},
      {"batched", &torch.batched}, {"modes", &torch.modes}, {"functions", &torch.functions},
      {"transforms", &torch.transforms}, {"traced", &torch.traced}, {"forward_ad", &torch.forward_ad},
      {"threads", &torch.threads}};
  if (!PyDict_Check(given)) return PyErr_SetString(PyExc_TypeError, "watch takes a dictionary"), nullptr;
  for (const auto& p : places) {
    PyObject* found = PyDict_GetItemString(given, p.name);
    if (!found) return PyErr_Format(PyExc_KeyError, "watch lacks %s", p.name), nullptr;
    Py_XSETREF(*p.place, Py_NewRef(found));
  }
  if (!torch.level) torch.level = PyUnicode_InternFromString("_current_level");
  if (!torch.to_save) torch.to_save = PyUnicode_InternFromString("to_save");
  if (!torch.short_) torch.short_ = PyUnicode_InternFromString("short");
  if (!torch.order) torch.order = PyUnicode_InternFromString("order");
  bind(given, "parallel", &torch.parallel);
  torch.bound = torch.level && torch.to_save && torch.short_ && torch.order && PyDict_Check(torch.forward_ad) &&
                torch.place.find(torch.tensor, "_cdata") && torch.nested.find(torch.tensor, "is_nested") &&
                torch.requires_grad.find(torch.tensor, "requires_grad") &&
                bind(given, "aoti_torch_get_device_type", &torch.device) &&
                bind(given, "aoti_torch_get_layout", &torch.layout) && bind(given, "aoti_torch_get_dtype", &torch.dtype) &&
                bind(given, "aoti_torch_get_dim", &torch.dim) && bind(given, "aoti_torch_get_numel", &torch.numel) &&
                bind(given, "aoti_torch_get_sizes", &torch.sizes) && bind(given, "aoti_torch_get_strides", &torch.strides) &&
                bind(given, "aoti_torch_get_data_ptr", &torch.data) && bind(given, "aoti_torch_empty_strided", &torch.empty) &&
                bind(given, "aoti_torch_delete_tensor_object", &torch.end) &&
                bind(given, "_ZN2at4_ops6is_neg4callERKNS_6TensorE", &torch.negative) &&
                bind(given, "_ZN2at4_ops14_is_zerotensor4callERKNS_6TensorE", &torch.zero) &&
                bind(given, "_Z16THPVariable_WrapRKN2at10TensorBaseE", &torch.wrap);
  return PyBool_FromLong(torch.bound);
}
// look(x): (elements, torch's number of the dtype, address) of a plain contiguous tensor, else None.
static PyObject* look(PyObject*, PyObject* x) {
  Plain found;
  if (!torch.bound || !found.find(x)) Py_RETURN_NONE;
  return Py_BuildValue("LiN", static_cast<long long>(found.n), found.dtype, PyLong_FromVoidPtr(found.data));
}

}  // namespace
