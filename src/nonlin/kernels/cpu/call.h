// A call of an activation on plain tensors, in C: what torch is asked about a tensor, and for a new one, costs more in
// Python than a small kernel.
//
// Nothing of torch is linked. Its C interface (aoti_torch_...), which is stable from version to version, and three
// functions in C++ are found by name in the libraries that the process has loaded; `watch` binds them. Everything takes
// the general way if one is missing, or if `look` answers otherwise than Python (activation/fast_path.py).
#pragma once
#include <Python.h>
#include <descrobject.h>

#include <algorithm>
#include <initializer_list>

#include "driver.h"

namespace {

constexpr Py_ssize_t MOST = 8;  // learnable parameters

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
  PyObject *to_save, *short_;                         // names of attributes of a context
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
// A plain contiguous tensor of the CPU.
struct Plain {
  void* word;
  const int64_t *sizes, *strides;
  int64_t dim, n;
  int32_t dtype;
  void* data;

  // A zero without memory and a negative view are refused: they hold other numbers than their memory does. So is what
  // has numbers but no memory of its own, such as a tensor around another.
  bool find(PyObject* x) {
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
    for (int64_t d = dim - 1, step = 1; n && d >= 0; step *= sizes[d--])
      if (sizes[d] != 1 && strides[d] != step) return false;
    return torch.data(&word, &data) == 0 && (data || n == 0);
  }
  bool like(const Plain& other) const {
    return dtype == other.dtype && dim == other.dim && std::equal(sizes, sizes + dim, other.sizes);
  }
  // A new tensor of this shape and dtype; its memory in `at`.
  PyObject* empty(void** at) const {
    Handle made;
    if (torch.empty(dim, sizes, strides, dtype, CPU, 0, &made)) return PyErr_NoMemory();
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
    PyObject* out = tensor.empty(&at);
    if (out && tensor.dtype == EXACT) *static_cast<double*>(at) = sum;
    else if (out) *static_cast<float*>(at) = static_cast<float>(sum);
    return out;
  }
};

// An activation's functions for one dtype; above the number of elements of one thread, those in Python.
struct Kernel {
  int32_t dtype;
  PyObject *shared_value, *shared_slopes;
  nl_value_t value;
  nl_slopes_t slopes;
};
static PyTypeObject short_type = {PyVarObject_HEAD_INIT(nullptr, 0)};
struct Short {
  PyObject_HEAD
  vectorcallfunc vectorcall;
  PyObject *definition, *names, *record;  // the definition is the caller's own
  double initial[MOST];
  Py_ssize_t inputs, parameters, known;
  Kernel kernels[4];

  const Kernel* kernel(const Plain& x) const {
    for (Py_ssize_t k = 0; k < known; k++)
      if (kernels[k].dtype == x.dtype) return x.n > PIECE && parameters ? nullptr : &kernels[k];
    return nullptr;
  }
};

// A call in Python of a count and addresses.
static bool call_shared(PyObject* function, int64_t n, std::initializer_list<const void*> addresses) {
  PyObject* words[8] = {PyLong_FromLongLong(n)};
  size_t count = 1;
  for (const void* at : addresses) words[count++] = PyLong_FromVoidPtr(const_cast<void*>(at));
  Ref done(PyErr_Occurred() ? nullptr : PyObject_Vectorcall(function, words, count, nullptr));
  while (count) Py_XDECREF(words[--count]);
  return static_cast<bool>(done);
}
static PyObject* value_of(const Short* s, const Kernel* kernel, const Plain* x, const double* parameters) {
  void* at;
  Ref out(x[0].empty(&at));
  if (!out) return nullptr;
  const void* in[2] = {x[0].data, x[s->inputs - 1].data};
  if (x[0].n <= PIECE) kernel->value(x[0].n, in, parameters, at);
  else if (!call_shared(kernel->shared_value, x[0].n, {in[0], in[1], at})) return nullptr;
  return out.release();
}
static bool same(PyObject* name, PyObject* wanted) { return name == wanted || PyUnicode_Compare(name, wanted) == 0; }

// The arguments of a call: inputs, then learnable parameters by name in any order; those left out are at their start.
struct Arguments {
  const Kernel* kernel;
  Plain inputs[2];
  bool gradient = false, tensors = true;  // something requires a gradient; all parameters are tensors
  PyObject* all[2 + MOST];
  double parameters[MOST];

  bool find(const Short* s, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    const Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    if (!torch.bound || count != s->inputs || named > s->parameters || watched()) return false;
    for (Py_ssize_t k = 0; k < count; k++) {
      if (!inputs[k].find(all[k] = args[k])) return false;
      gradient = gradient || torch.requires_grad.is(args[k], Py_True);
    }
    if ((count == 2 && !inputs[0].like(inputs[1])) || !(kernel = s->kernel(inputs[0]))) return false;
    Py_ssize_t used = 0;
    for (Py_ssize_t k = 0; k < s->parameters; k++) {
      PyObject* q = nullptr;
      for (Py_ssize_t i = 0; i < named && !q; i++)
        if (same(PyTuple_GET_ITEM(names, i), PyTuple_GET_ITEM(s->names, k))) q = args[count + i];
      used += q != nullptr;
      parameters[k] = s->initial[k];
      tensors = tensors && q && !PyFloat_CheckExact(q);
      if (!q) continue;
      if (PyFloat_CheckExact(q)) {
        parameters[k] = PyFloat_AS_DOUBLE(q);
        continue;
      }
      Learned found;
      if (!found.find(q)) return false;
      parameters[k] = found.value;
      gradient = gradient || torch.requires_grad.is(q, Py_True);
      all[count + k] = q;
    }
    return used == named;
  }
};

// short(*inputs, **parameters): the activation, its gradient recorded; None for what needs the general way.
static PyObject* call_short(PyObject* self, PyObject* const* args, size_t flags, PyObject* names) {
  const Short* s = reinterpret_cast<Short*>(self);
  Arguments found;
  if (!found.find(s, args, PyVectorcall_NARGS(flags), names)) Py_RETURN_NONE;
  if (!found.gradient || says(torch.recording, Py_False)) return value_of(s, found.kernel, found.inputs, found.parameters);
  if (!found.tensors) Py_RETURN_NONE;
  PyObject* all[4 + MOST] = {nullptr, self};
  const Py_ssize_t count = s->inputs + s->parameters;
  for (Py_ssize_t k = 0; k < count; k++) all[2 + k] = found.all[k];
  return PyObject_Vectorcall(s->record, all + 1, (1 + count) | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
}

// saved(ctx, short, *tensors): the value of tensors that a call has accepted; they are saved for backward.
static PyObject* saved(PyObject*, PyObject* const* args, Py_ssize_t count) {
  const bool ours = count > 2 && Py_TYPE(args[1]) == &short_type;
  const Short* s = ours ? reinterpret_cast<Short*>(args[1]) : nullptr;
  Plain inputs[2];
  double parameters[MOST];
  bool right = s && count == 2 + s->inputs + s->parameters;
  for (Py_ssize_t k = 0; right && k < s->inputs; k++) right = inputs[k].find(args[2 + k]);
  for (Py_ssize_t k = 0; right && k < s->parameters; k++) {
    Learned found;
    right = found.find(args[2 + s->inputs + k]);
    parameters[k] = found.value;
  }
  const Kernel* kernel = right ? s->kernel(inputs[0]) : nullptr;
  if (!kernel) return PyErr_SetString(PyExc_TypeError, "saved takes a context and what a call has accepted"), nullptr;
  Ref tensors(PyTuple_New(count - 2));
  if (!tensors) return nullptr;
  for (Py_ssize_t k = 2; k < count; k++) PyTuple_SET_ITEM(tensors.at, k - 2, Py_NewRef(args[k]));
  if (PyObject_SetAttr(args[0], torch.to_save, tensors.at) || PyObject_SetAttr(args[0], torch.short_, args[1]))
    return nullptr;
  return value_of(s, kernel, inputs, parameters);
}

// short.gradients(gradient, *tensors): None for the activation itself, then the gradients by the tensors; or None for
// what needs the general way.
static PyObject* gradients(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  const Short* s = reinterpret_cast<Short*>(self);
  if (count != 1 + s->inputs + s->parameters || !says(torch.recording, Py_False) || watched()) Py_RETURN_NONE;
  Plain gradient, inputs[2];
  Learned learned[MOST];
  double parameters[MOST], sums[MOST] = {};
  Ref batched(PyObject_CallOneArg(torch.batched, args[0]));
  if (batched.at != Py_False || !gradient.find(args[0])) return PyErr_Clear(), Py_NewRef(Py_None);
  for (Py_ssize_t k = 0; k < s->inputs; k++)
    if (!inputs[k].find(args[1 + k]) || !inputs[k].like(gradient)) Py_RETURN_NONE;
  for (Py_ssize_t k = 0; k < s->parameters; k++) {
    if (!learned[k].find(args[1 + s->inputs + k])) Py_RETURN_NONE;
    parameters[k] = learned[k].value;
  }
  const Kernel* kernel = s->kernel(gradient);
  if (!kernel) Py_RETURN_NONE;
  Ref out(PyTuple_New(count));
  if (!out) return nullptr;
  PyTuple_SET_ITEM(out.at, 0, Py_NewRef(Py_None));
  void* d[3] = {};
  for (Py_ssize_t k = 0; k < s->inputs; k++) {
    PyObject* made = gradient.empty(&d[k]);
    if (!made) return nullptr;
    PyTuple_SET_ITEM(out.at, 1 + k, made);
  }
  const void* in[2] = {inputs[0].data, inputs[s->inputs - 1].data};
  if (gradient.n <= PIECE) kernel->slopes(gradient.n, in, gradient.data, parameters, d, sums);
  else if (!call_shared(kernel->shared_slopes, gradient.n, {in[0], in[1], gradient.data, d[0], d[1], d[2]})) return nullptr;
  for (Py_ssize_t k = 0; k < s->parameters; k++) {
    PyObject* made = learned[k].gradient(sums[k]);
    if (!made) return nullptr;
    PyTuple_SET_ITEM(out.at, 1 + s->inputs + k, made);
  }
  return out.release();
}

// short.serve(dtype, then the functions of value and derivatives, each for few and for many elements).
static PyObject* serve(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  Short* s = reinterpret_cast<Short*>(self);
  if (count != 5 || s->known == 4)
    return PyErr_SetString(PyExc_TypeError, "serve takes one of four dtypes by torch's number, two addresses and two functions"), nullptr;
  Kernel& k = s->kernels[s->known];
  k.value = reinterpret_cast<nl_value_t>(PyLong_AsVoidPtr(args[1]));
  k.slopes = reinterpret_cast<nl_slopes_t>(PyLong_AsVoidPtr(args[2]));
  const long dtype = PyLong_AsLong(args[0]);
  if (PyErr_Occurred()) return nullptr;
  k.dtype = static_cast<int32_t>(dtype), k.shared_value = Py_NewRef(args[3]), k.shared_slopes = Py_NewRef(args[4]);
  s->known++;
  Py_RETURN_NONE;
}

// Short(inputs, names, starts, record, definition)
static PyObject* new_short(PyTypeObject* type, PyObject* args, PyObject*) {
  Py_ssize_t inputs;
  PyObject *names, *starts, *record, *definition;
  if (!PyArg_ParseTuple(args, "nO!O!OO", &inputs, &PyTuple_Type, &names, &PyTuple_Type, &starts, &record, &definition))
    return nullptr;
  const Py_ssize_t parameters = PyTuple_GET_SIZE(names);
  if (inputs < 1 || inputs > 2 || parameters > MOST || PyTuple_GET_SIZE(starts) != parameters)
    return PyErr_SetString(PyExc_ValueError, "one or two inputs, at most eight parameters"), nullptr;
  PyObject* made = type->tp_alloc(type, 0);
  if (!made) return nullptr;
  Short* s = reinterpret_cast<Short*>(made);
  s->vectorcall = call_short, s->inputs = inputs, s->parameters = parameters;
  s->record = Py_NewRef(record), s->definition = Py_NewRef(definition), s->names = PyTuple_New(parameters);
  for (Py_ssize_t k = 0; k < parameters; k++) {
    PyObject* name = Py_NewRef(PyTuple_GET_ITEM(names, k));
    PyUnicode_InternInPlace(&name);
    PyTuple_SET_ITEM(s->names, k, name);
    s->initial[k] = PyFloat_AsDouble(PyTuple_GET_ITEM(starts, k));
  }
  if (PyErr_Occurred()) return Py_DECREF(made), nullptr;
  return made;
}
static void end_short(PyObject* self) {
  Short* s = reinterpret_cast<Short*>(self);
  for (Py_ssize_t k = 0; k < s->known; k++)
    Py_XDECREF(s->kernels[k].shared_value), Py_XDECREF(s->kernels[k].shared_slopes);
  Py_XDECREF(s->definition), Py_XDECREF(s->names), Py_XDECREF(s->record);
  Py_TYPE(self)->tp_free(self);
}
template <class F>
static PyCFunction method(F function) { return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)); }
static PyObject* definition_of(PyObject* self, void*) { return Py_NewRef(reinterpret_cast<Short*>(self)->definition); }

static PyMethodDef short_methods[] = {{"gradients", method(gradients), METH_FASTCALL, nullptr},
                                      {"serve", method(serve), METH_FASTCALL, nullptr}, {}};
static PyGetSetDef short_attributes[] = {{"definition", definition_of, nullptr, nullptr, nullptr}, {}};
// Adds the class of calls to the module; its fields are set here, since C++17 has no names for them.
static bool add_short(PyObject* module) {
  PyTypeObject& t = short_type;
  t.tp_name = "nonlin.kernels.cpu._catalog.Short";
  t.tp_basicsize = sizeof(Short);
  t.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL;
  t.tp_vectorcall_offset = offsetof(Short, vectorcall);
  t.tp_call = PyVectorcall_Call;
  t.tp_new = new_short, t.tp_dealloc = end_short;
  t.tp_methods = short_methods, t.tp_getset = short_attributes;
  return PyType_Ready(&t) == 0 && PyModule_AddObjectRef(module, "Short", reinterpret_cast<PyObject*>(&t)) == 0;
}

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
      {"transforms", &torch.transforms}, {"traced", &torch.traced}, {"forward_ad", &torch.forward_ad}};
  if (!PyDict_Check(given)) return PyErr_SetString(PyExc_TypeError, "watch takes a dictionary"), nullptr;
  for (const auto& p : places) {
    PyObject* found = PyDict_GetItemString(given, p.name);
    if (!found) return PyErr_Format(PyExc_KeyError, "watch lacks %s", p.name), nullptr;
    Py_XSETREF(*p.place, Py_NewRef(found));
  }
  if (!torch.level) torch.level = PyUnicode_InternFromString("_current_level");
  if (!torch.to_save) torch.to_save = PyUnicode_InternFromString("to_save");
  if (!torch.short_) torch.short_ = PyUnicode_InternFromString("short");
  torch.bound = torch.level && torch.to_save && torch.short_ && PyDict_Check(torch.forward_ad) &&
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
