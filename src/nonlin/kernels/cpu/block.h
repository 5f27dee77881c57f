// Questions about a feed-forward block that would cost more in Python than a small product.
#pragma once
#include "call.h"

namespace {

// fit(x, gate, up, down, and the biases of the three): whether a block's tensors (..., D), (H, D), (H, D), (O, H), (H,),
// (H,) and (O,) are plain and contiguous, of these shapes and one dtype, and nothing watches what is called. Gate and
// biases may be None.
static PyObject* fit(PyObject*, PyObject* const* args, Py_ssize_t count) {
  enum { X, GATE, UP, DOWN, BIASES };
  Plain t[7];
  bool right = count == 7 && torch.bound && !watched();
  for (int k = 0; right && k < 7; k++) {
    const bool optional = k == GATE || k >= BIASES;
    if (args[k] == Py_None ? !optional : !t[k].find(args[k]) || t[k].dtype != t[X].dtype) right = false;
  }
  if (!right || t[X].dim < 1 || t[UP].dim != 2 || t[DOWN].dim != 2) Py_RETURN_FALSE;
  const int64_t hidden = t[UP].sizes[0], outputs = t[DOWN].sizes[0], lengths[3] = {hidden, hidden, outputs};
  right = t[X].sizes[t[X].dim - 1] == t[UP].sizes[1] && t[DOWN].sizes[1] == hidden &&
          (args[GATE] == Py_None || t[GATE].like(t[UP]));
  for (int k = 0; k < 3; k++)
    right = right && (args[BIASES + k] == Py_None || (t[BIASES + k].dim == 1 && t[BIASES + k].n == lengths[k]));
  return PyBool_FromLong(right);
}

// projections(stock, *modules): weights, then biases, of linear layers whose classes are in the dictionary `stock` with
// their forwards; None in place of a layer is none. None where calling one may do more than its product.
static PyObject* projections(PyObject*, PyObject* const* args, Py_ssize_t count) {
  static PyObject *forward, *parameters, *weight, *bias, *transposed, *hooks[4];
  if (!hooks[3]) {
    struct { PyObject** place; const char* name; } const names[] = {
        {&forward, "forward"}, {&parameters, "_parameters"}, {&weight, "weight"}, {&bias, "bias"}, {&transposed, "nf"},
        {&hooks[0], "_forward_hooks"}, {&hooks[1], "_forward_pre_hooks"}, {&hooks[2], "_backward_hooks"},
        {&hooks[3], "_backward_pre_hooks"}};
    for (const auto& n : names)
      if (!*n.place && !(*n.place = PyUnicode_InternFromString(n.name))) return nullptr;
  }
  if (count < 1 || !PyDict_Check(args[0])) return PyErr_SetString(PyExc_TypeError, "projections takes a dictionary"), nullptr;
  Ref out(PyTuple_New(2 * (count - 1)));
  if (!out) return nullptr;
  for (Py_ssize_t k = 0; k < count - 1; k++) {
    PyObject *module = args[1 + k], *found[2] = {Py_None, Py_None};
    Ref held(nullptr);
    if (module != Py_None) {
      PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(module));
      PyObject* wanted = PyDict_GetItemWithError(args[0], type);  // this and the following are borrowed
      Ref own(wanted ? PyObject_GetAttr(type, forward) : nullptr);
      held.at = own.at && own.at == wanted ? PyObject_GenericGetDict(module, nullptr) : nullptr;
      bool right = held.at && PyDict_Check(held.at) && !PyDict_GetItemWithError(held.at, forward) &&
                   !PyDict_GetItemWithError(held.at, transposed);
      for (PyObject* name : hooks) {
        PyObject* some = right ? PyDict_GetItemWithError(held.at, name) : nullptr;
        right = some && PyDict_Check(some) && PyDict_Size(some) == 0;
      }
      PyObject* all = right ? PyDict_GetItemWithError(held.at, parameters) : nullptr;
      if (!all || !PyDict_Check(all) || PyDict_Size(all) != 2) return PyErr_Clear(), Py_NewRef(Py_None);
      // A layer without a bias has None there; where it is missing, an attribute or a buffer stands for it.
      found[0] = PyDict_GetItemWithError(all, weight), found[1] = PyDict_GetItemWithError(all, bias);
      if (!found[0] || !found[1]) return PyErr_Clear(), Py_NewRef(Py_None);
    }
    PyTuple_SET_ITEM(out.at, k, Py_NewRef(found[0]));
    PyTuple_SET_ITEM(out.at, count - 1 + k, Py_NewRef(found[1]));
  }
  return out.release();
}

}  // namespace
