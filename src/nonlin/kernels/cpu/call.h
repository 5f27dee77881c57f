// A call of an activation on plain tensors of the CPU, in C, of whatever strides: one input, gate and up, or both in one
// tensor. Other calls take the general way.
#pragma once
#include "tensors.h"

namespace {

constexpr Py_ssize_t MOST = 8;  // learnable parameters

// An activation's functions for one dtype: its entry, and that dtype's place in it.
struct Kernel {
  int32_t dtype, code;
  const nl_entry* entry;
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
      if (kernels[k].dtype == x.dtype) return &kernels[k];
    return nullptr;
  }
};

// An operand of a call: memory, and a stride for each dimension of the call's shape.
struct Operated {
  void* data;
  const int64_t* strides;
};
// The strides of a result: those of the tensors where they lie alike and without gaps, else contiguous ones.
struct Lie {
  bool alike;
  const int64_t* strides;
  int64_t contiguous[DIMENSIONS];
  Lie(const Plain& x, std::initializer_list<const Plain*> others) : alike(x.contiguous || x.without_gaps()) {
    for (const Plain* other : others)
      alike = alike && (x.contiguous ? other->contiguous : std::equal(x.strides, x.strides + x.dim, other->strides));
    strides = alike ? x.strides : contiguous;
    for (int64_t d = std::min(x.dim, DIMENSIONS) - 1, step = 1; d >= 0; step *= x.sizes[d--]) contiguous[d] = step;
  }
};
// A call of the driver on operands (two inputs, the gradient, two gradients by the inputs, the value; those without
// memory are left out) of one shape.
struct Planned {
  Call call;
  int64_t n;

  // Where all lie alike and without gaps.
  Planned(int64_t n, const Operated* all, const double* parameters, double* sums)
      : call{1, n, 1, nullptr, parameters, sums, {}}, n(n) {
    for (int k = 0; k < OPERANDS; k++) call.operands[k] = {static_cast<char*>(all[k].data), n, 1};
  }
  // Of any strides: dimensions that are one walk through memory for all are joined. More than two may remain.
  bool fits = true;
  Planned(const Plain& x, const Operated* all, const double* parameters, double* sums)
      : call{1, 1, 1, nullptr, parameters, sums, {}}, n(x.n) {
    for (int k = 0; k < OPERANDS; k++) call.operands[k] = {static_cast<char*>(all[k].data), 0, 1};
    int found = 0;
    for (int64_t d = 0; d < x.dim; d++) {
      if (x.sizes[d] == 1) continue;
      bool joins = found > 0;
      for (int k = 0; k < OPERANDS; k++)
        joins = joins && (!all[k].data || call.operands[k].column == all[k].strides[d] * x.sizes[d]);
      if (joins) call.columns *= x.sizes[d];
      else if (found++ == 2) { fits = false; return; }
      else call.rows = call.columns, call.columns = x.sizes[d];
      for (int k = 0; k < OPERANDS; k++) {
        Operand& o = call.operands[k];
        if (!joins) o.row = found == 1 ? 0 : o.column;
        if (o.data) o.column = all[k].strides[d];
      }
    }
  }
  // False with an error set. Python's other threads go on while many numbers are computed.
  bool run(const Kernel& kernel, bool slopes) {
    if (n <= PIECE) return ::run(kernel.entry, kernel.code, &call, slopes) == 0 || (PyErr_NoMemory(), false);
    Ref threads(PyObject_CallNoArgs(torch.threads));
    if (!threads) return false;
    call.threads = PyLong_AsLongLong(threads.at), call.parallel = torch.parallel;
    if (PyErr_Occurred()) return false;
    PyThreadState* here = PyEval_SaveThread();
    const int failed = ::run(kernel.entry, kernel.code, &call, slopes);
    PyEval_RestoreThread(here);
    return !failed || (PyErr_NoMemory(), false);
  }
};
// Whether a value or gradients of these tensors can be computed here.
static bool fits(const Plain& x, const Lie& lie, std::initializer_list<const Plain*> others) {
  if (lie.alike) return true;
  if (x.dim > DIMENSIONS) return false;
  static char any;
  Operated all[OPERANDS] = {{&any, x.strides}, {}, {}, {&any, lie.strides}};
  int k = 1;
  for (const Plain* other : others) all[k++] = {&any, other->strides};
  return Planned(x, all, nullptr, nullptr).fits;
}
// The value of inputs that fit.
static PyObject* value_of(const Kernel& kernel, const Plain* x, Py_ssize_t inputs, const double* parameters) {
  const Plain& last = x[inputs - 1];
  const Lie lie(x[0], {&last});
  void* at;
  Ref out(x[0].empty(&at, lie.strides));
  if (!out) return nullptr;
  if (lie.alike && x[0].n <= PIECE) {
    const void* in[2] = {x[0].data, last.data};
    kernel.entry->value[kernel.code](x[0].n, in, parameters, at);
    return out.release();
  }
  const Operated all[OPERANDS] = {{x[0].data, x[0].strides}, {inputs == 2 ? last.data : nullptr, last.strides}, {}, {at, lie.strides}};
  Planned call = lie.alike ? Planned(x[0].n, all, parameters, nullptr) : Planned(x[0], all, parameters, nullptr);
  return call.run(kernel, false) ? out.release() : nullptr;
}
// The gradients by the inputs into `d`, which lie as `lie` says.
static bool slopes_of(const Kernel& kernel, const Plain* x, Py_ssize_t inputs, const Plain& gradient, void* const* d, const Lie& lie,
                      const double* parameters, double* sums) {
  const Operated all[OPERANDS] = {{x[0].data, x[0].strides}, {inputs == 2 ? x[1].data : nullptr, x[inputs - 1].strides},
                                  {gradient.data, gradient.strides}, {d[0], lie.strides}, {d[1], lie.strides}, {}};
  return (lie.alike ? Planned(x[0].n, all, parameters, sums) : Planned(x[0], all, parameters, sums)).run(kernel, true);
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
      if (!inputs[k].find_strided(all[k] = args[k])) return false;
      gradient = gradient || torch.requires_grad.is(args[k], Py_True);
    }
    const Plain& last = inputs[count - 1];
    if (!last.like(inputs[0]) || !(kernel = s->kernel(inputs[0])) || !fits(inputs[0], Lie(inputs[0], {&last}), {&last}))
      return false;
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
  if (!found.gradient || says(torch.recording, Py_False))
    return value_of(*found.kernel, found.inputs, s->inputs, found.parameters);
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
  for (Py_ssize_t k = 0; right && k < s->inputs; k++) right = inputs[k].find_strided(args[2 + k]);
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
  return value_of(*kernel, inputs, s->inputs, parameters);
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
  if (batched.at != Py_False || !gradient.find_strided(args[0])) return PyErr_Clear(), Py_NewRef(Py_None);
  for (Py_ssize_t k = 0; k < s->inputs; k++)
    if (!inputs[k].find_strided(args[1 + k]) || !inputs[k].like(gradient)) Py_RETURN_NONE;
  for (Py_ssize_t k = 0; k < s->parameters; k++) {
    if (!learned[k].find(args[1 + s->inputs + k])) Py_RETURN_NONE;
    parameters[k] = learned[k].value;
  }
  const Plain& last = inputs[s->inputs - 1];
  const Kernel* kernel = s->kernel(gradient);
  const Lie lie(inputs[0], {&last, &gradient});
  if (!kernel || !fits(inputs[0], lie, {&last, &gradient})) Py_RETURN_NONE;
  Ref out(PyTuple_New(count));
  if (!out) return nullptr;
  PyTuple_SET_ITEM(out.at, 0, Py_NewRef(Py_None));
  void* d[3] = {};
  for (Py_ssize_t k = 0; k < s->inputs; k++) {
    PyObject* made = gradient.empty(&d[k], lie.strides);
    if (!made) return nullptr;
    PyTuple_SET_ITEM(out.at, 1 + k, made);
  }
  if (lie.alike && gradient.n <= PIECE) {
    const void* in[2] = {inputs[0].data, last.data};
    kernel->entry->slopes[kernel->code](gradient.n, in, gradient.data, parameters, d, sums);
  } else if (!slopes_of(*kernel, inputs, s->inputs, gradient, d, lie, parameters, sums)) {
    return nullptr;
  }
  for (Py_ssize_t k = 0; k < s->parameters; k++) {
    PyObject* made = learned[k].gradient(sums[k]);
    if (!made) return nullptr;
    PyTuple_SET_ITEM(out.at, 1 + s->inputs + k, made);
  }
  return out.release();
}

// short.serve(dtype by torch's number, its place in an entry, address of the entry)
static PyObject* serve(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  Short* s = reinterpret_cast<Short*>(self);
  if (count != 3 || s->known == 4)
    return PyErr_SetString(PyExc_TypeError, "serve takes one of four dtypes by torch's number, its place and an address"), nullptr;
  const long dtype = PyLong_AsLong(args[0]), code = PyLong_AsLong(args[1]);
  const nl_entry* entry = static_cast<const nl_entry*>(PyLong_AsVoidPtr(args[2]));
  if (PyErr_Occurred()) return nullptr;
  s->kernels[s->known++] = {static_cast<int32_t>(dtype), static_cast<int32_t>(code), entry};
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
  Py_XDECREF(s->definition), Py_XDECREF(s->names), Py_XDECREF(s->record);
  Py_TYPE(self)->tp_free(self);
}
template <class F>
static PyCFunction method(F function) { return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)); }
static PyObject* definition_of(PyObject* self, void*) { return Py_NewRef(reinterpret_cast<Short*>(self)->definition); }

// In packed.h.
static PyObject* packed(PyObject* self, PyObject* const* args, Py_ssize_t count);
static PyObject* packed_gradients(PyObject* self, PyObject* const* args, Py_ssize_t count);
static PyMethodDef short_methods[] = {{"gradients", method(gradients), METH_FASTCALL, nullptr},
                                      {"packed", method(packed), METH_FASTCALL, nullptr},
                                      {"packed_gradients", method(packed_gradients), METH_FASTCALL, nullptr},
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

}  // namespace
