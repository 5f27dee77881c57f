// A call of a gated activation on gate and up in one tensor, in C.
#pragma once
#include "call.h"

namespace {

// Gate and up of a plain tensor (..., 2 hidden): two halves of its last dimension, or alternating numbers. ``order`` says
// which: 1, up comes first; 2, they alternate.
struct Halves {
  Plain part[2];
  int64_t sizes[DIMENSIONS], strides[DIMENSIONS];
  bool split(const Plain& whole, long order, int64_t bytes) {
    const int64_t at = whole.dim - 1;
    if (order < 0 || order > 3 || at < 0 || whole.dim > DIMENSIONS || whole.sizes[at] % 2) return false;
    const bool alternate = order & 2;
    std::copy(whole.sizes, whole.sizes + whole.dim, sizes), std::copy(whole.strides, whole.strides + whole.dim, strides);
    sizes[at] /= 2;
    const int64_t apart = (alternate ? 1 : sizes[at]) * strides[at] * bytes;
    if (alternate) strides[at] *= 2;
    for (int k = 0; k < 2; k++) {
      part[k] = whole;
      part[k].sizes = sizes, part[k].strides = strides, part[k].n = whole.n / 2;
      part[k].contiguous = whole.n == 0;
      const bool second = k != (order & 1);
      part[k].data = second && whole.n ? static_cast<char*>(whole.data) + apart : whole.data;
    }
    return true;
  }
};
static int64_t bytes_of(const Kernel& kernel) { return kernel.dtype == EXACT ? 8 : kernel.dtype == SINGLE ? 4 : 2; }

// What a call on a packed tensor needs: its kernel, and both halves as a result would lie.
struct Unpacked {
  Plain whole;
  const Kernel* kernel;
  Halves halves;
  int64_t contiguous[DIMENSIONS];  // strides of a result

  bool find(const Short* s, PyObject* x, long order) {
    if (s->inputs != 2 || s->parameters || !whole.find_strided(x) || !(kernel = s->kernel(whole)) ||
        !halves.split(whole, order, bytes_of(*kernel)))
      return false;
    for (int64_t d = whole.dim - 1, step = 1; d >= 0; step *= halves.sizes[d--]) contiguous[d] = step;
    return Planned(halves.part[0], operands(nullptr, nullptr).at, nullptr, nullptr).fits;
  }
  struct Operands { Operated at[OPERANDS]; };
  Operands operands(void* out, const Plain* gradient) const {
    const Operated gate{halves.part[0].data, halves.strides}, up{halves.part[1].data, halves.strides};
    if (!gradient) return {{gate, up, {}, {out ? out : halves.part[0].data, contiguous}, {}, {}}};
    return {{gate, up, {gradient->data, gradient->strides}, {}, {}, {}}};
  }
  // The value of what was found.
  PyObject* value() const {
    void* at;
    Ref out(halves.part[0].empty(&at, contiguous));
    if (!out) return nullptr;
    Planned call(halves.part[0], operands(at, nullptr).at, nullptr, nullptr);
    return whole.n == 0 || call.run(*kernel, false) ? out.release() : nullptr;
  }
};

// short.packed(x, order): the activation, its gradient recorded; None for what needs the general way.
static PyObject* packed(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  const Short* s = reinterpret_cast<Short*>(self);
  if (count != 2) return PyErr_SetString(PyExc_TypeError, "packed takes a tensor and the order of its halves"), nullptr;
  const long order = PyLong_AsLong(args[1]);
  if (order == -1 && PyErr_Occurred()) return nullptr;
  Unpacked found;
  if (!torch.bound || watched() || !found.find(s, args[0], order)) Py_RETURN_NONE;
  if (!torch.requires_grad.is(args[0], Py_True) || says(torch.recording, Py_False)) return found.value();
  PyObject* all[4] = {nullptr, self, args[1], args[0]};
  return PyObject_Vectorcall(s->record, all + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
}

// saved_packed(ctx, short, order, x): the value of a tensor that a call has accepted; it is saved for backward.
static PyObject* saved_packed(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Unpacked found;
  if (count != 4 || Py_TYPE(args[1]) != &short_type ||
      !found.find(reinterpret_cast<Short*>(args[1]), args[3], PyLong_AsLong(args[2])))
    return PyErr_SetString(PyExc_TypeError, "saved_packed takes a context and what a call has accepted"), nullptr;
  Ref tensors(PyTuple_Pack(1, args[3]));
  if (!tensors || PyObject_SetAttr(args[0], torch.to_save, tensors.at) || PyObject_SetAttr(args[0], torch.short_, args[1]) ||
      PyObject_SetAttr(args[0], torch.order, args[2]))
    return nullptr;
  return found.value();
}

// short.packed_gradients(gradient, order, x): (None, None, the gradient by x); or None for what needs the general way.
static PyObject* packed_gradients(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 3 || !says(torch.recording, Py_False) || watched()) Py_RETURN_NONE;
  Plain gradient;
  Unpacked found;
  Halves into;
  Ref batched(PyObject_CallOneArg(torch.batched, args[0]));
  const long order = PyLong_AsLong(args[1]);
  if (batched.at != Py_False || !found.find(reinterpret_cast<Short*>(self), args[2], order) ||
      !gradient.find_strided(args[0]) || !gradient.like(found.halves.part[0]))
    return PyErr_Clear(), Py_NewRef(Py_None);
  int64_t steps[DIMENSIONS];
  const Plain& x = found.whole;
  for (int64_t d = x.dim - 1, step = 1; d >= 0; step *= x.sizes[d--]) steps[d] = step;
  Plain place = x;
  place.strides = steps;
  Ref out(x.empty(&place.data, steps));
  if (!out || !into.split(place, order, bytes_of(*found.kernel))) return nullptr;
  auto operands = found.operands(nullptr, &gradient);
  for (int k = 0; k < 2; k++) operands.at[3 + k] = {into.part[k].data, into.strides};
  Planned call(found.halves.part[0], operands.at, nullptr, nullptr);
  if (!call.fits) Py_RETURN_NONE;
  if (x.n && !call.run(*found.kernel, true)) return nullptr;
  return PyTuple_Pack(3, Py_None, Py_None, out.at);
}

}  // namespace
