"""Calls on plain tensors of any strides, and on gate and up in one tensor, run in C and give the operation's bits."""

import statistics
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlin import functional
from nonlin.functions import get
from nonlin.functions.registry import serialize
from nonlin.kernels.activation import fast_path, ops
from nonlin.kernels.cpu import backend as cpu_backend
from tests.kernels.activation.references import must_be_given_back

catalog = fast_path._catalog()
pytestmark = pytest.mark.skipif(catalog is None, reason="the compiled module has no calls for this torch")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def _lies(x):
    """Return the strides that say where a number lies."""
    return [step for size, step in zip(x.shape, x.stride(), strict=True) if size > 1] if x.numel() else []


@st.composite
def views(draw):
    """Return a function that makes such a view of new numbers each time, in one to four dimensions."""
    sizes = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    steps = draw(st.lists(st.integers(1, 3), min_size=len(sizes), max_size=len(sizes)))
    order = draw(st.permutations(range(len(sizes))))
    wide = draw(st.sampled_from([None, *range(len(sizes))]))  # a dimension without a stride

    def make(dtype):
        whole = torch.randn([n * s for n, s in zip(sizes, steps, strict=True)]).to(dtype).permute(order)
        view = whole[tuple(slice(None, None, steps[d]) for d in order)]
        return view if wide is None else view.narrow(wide, 0, min(1, view.shape[wide])).expand(view.shape)

    return make


@settings(max_examples=300, deadline=None)
@given(views(), st.sampled_from(["gelu", "swiglu", "relu", "prelu"]), st.sampled_from(DTYPES), st.booleans(), st.data())
def test_any_strides(make, name, dtype, other, data):
    definition = get(name)
    leaves = [make(dtype) for _ in definition.variables]
    if other and len(leaves) == 2:  # gate and up need not lie alike
        leaves[1] = leaves[1].contiguous()
    leaves = [x.detach().requires_grad_() for x in leaves]
    learned = [torch.tensor([q.initial + 0.1]).to(torch.promote_types(dtype, torch.float32)).requires_grad_()
               for q in definition.parameters]
    named = {q.name: q_ for q, q_ in zip(definition.parameters, learned, strict=True)}
    out = functional.activation(name)(*leaves, **named)
    wanted = ops.activation(serialize(definition), [*leaves, *learned])
    assert torch.equal(out, wanted) and _lies(out) == _lies(wanted)
    with torch.no_grad():
        again = functional.activation(name)(*leaves, **named)
    assert torch.equal(again, wanted) and _lies(again) == _lies(wanted)
    upstream = data.draw(st.sampled_from(["contiguous", "as it lies", "one number"]))
    gradient = {"contiguous": torch.randn(out.shape).to(dtype), "as it lies": torch.randn_like(out),
                "one number": torch.ones((), dtype=dtype).expand(out.shape)}[upstream]
    got = torch.autograd.grad(out, (*leaves, *learned), gradient)
    for a, b in zip(got, torch.autograd.grad(wanted, (*leaves, *learned), gradient), strict=True):
        assert torch.equal(a, b) and a.shape == b.shape and _lies(a) == _lies(b)


@settings(max_examples=200, deadline=None)
@given(views(), st.sampled_from(["swiglu", "reglu", "geglu_tanh"]), st.sampled_from(DTYPES),
       st.sampled_from(["concatenated", "interleaved"]), st.sampled_from(["gate", "up"]), st.booleans())
def test_gate_and_up_in_one_tensor(make, name, dtype, layout, first, expanded):
    x = make(dtype)
    x = x[..., :x.shape[-1] // 2 * 2].detach().requires_grad_()
    order = layout == "interleaved", first == "up"
    out = functional.packed(name)(x, layout, first)
    wanted = ops.packed(serialize(get(name)), [x], *order)
    assert torch.equal(out, wanted) and _lies(out) == _lies(wanted)
    gradient = torch.ones((), dtype=dtype).expand(out.shape) if expanded else torch.randn(out.shape).to(dtype)
    got, = torch.autograd.grad(out, x, gradient)
    right, = torch.autograd.grad(wanted, x, gradient)
    assert torch.equal(got, right) and got.shape == x.shape and _lies(got) == _lies(right)
    gate, up = ops.halves(x.detach(), *order)
    torch.testing.assert_close(out.detach(), functional.activation(name)(gate.contiguous(), up.contiguous()))


@pytest.mark.parametrize("layout", ["concatenated", "interleaved"])
@pytest.mark.parametrize("name", ["swiglu", "gelu", "prelu"])
def test_many_numbers_of_rows_with_gaps(name, layout):
    """More than one piece: distributed over threads."""
    definition, rows = get(name), 40
    x = torch.randn(rows, 3 * cpu_backend.PIECE // rows)[:, :2 * (cpu_backend.PIECE // rows)].requires_grad_()
    learned = [torch.tensor([q.initial + 0.1], requires_grad=True) for q in definition.parameters]
    named = {q.name: q_ for q, q_ in zip(definition.parameters, learned, strict=True)}
    if len(definition.variables) == 2:
        out = functional.packed(name)(x, layout)
        wanted = ops.packed(serialize(definition), [x], layout == "interleaved", False)
        assert type(out.grad_fn).__name__ == "_ShortPackedBackward"
    else:
        out = functional.activation(name)(x, **named)
        wanted = ops.activation(serialize(definition), [x, *learned])
        assert type(out.grad_fn).__name__ == "_ShortBackward"
    assert torch.equal(out, wanted)
    upstream = torch.randn_like(out)
    got = torch.autograd.grad(out, (x, *learned), upstream)
    assert all(map(torch.equal, got, torch.autograd.grad(wanted, (x, *learned), upstream)))


def test_what_lies_without_gaps_lies_so_afterwards():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    out = functional.silu(x)
    assert type(out.grad_fn).__name__ == "_ShortBackward" and out.is_contiguous(memory_format=torch.channels_last)
    got, = torch.autograd.grad(out, x, torch.ones_like(out))
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_packed_results_are_contiguous_however_the_tensor_lies():
    x = torch.randn(8, 4).t().requires_grad_()  # its halves have no gaps
    assert functional.swiglu_packed(x).is_contiguous()
    torch.library.opcheck(torch.ops.nonlin.packed.default, (serialize(get("swiglu")), [x], False, False))
    compiled = torch.compile(lambda x: functional.swiglu_packed(x) * 2, backend="aot_eager")
    torch.testing.assert_close(compiled(x), functional.swiglu_packed(x) * 2)


@pytest.mark.parametrize("what", ["contiguous", "with gaps", "packed", "backward"])
def test_other_threads_of_python_go_on_while_many_numbers_are_computed(what):
    """Python's lock is held by no large call: another thread goes on meanwhile."""
    x = torch.randn(2**25)
    calls = {"contiguous": lambda: functional.gelu(x), "with gaps": lambda: functional.gelu(x[::2]),
             "packed": lambda: functional.swiglu_packed(x)}
    if what == "backward":
        leaf = x.clone().requires_grad_()
        out, ones = functional.gelu(leaf), torch.ones_like(x)
        calls[what] = lambda: torch.autograd.grad(out, leaf, ones, retain_graph=True)
    calls[what]()  # the first call finds the kernel
    longest, stop, shares = [0.0], threading.Event(), []

    def wait():
        last = time.perf_counter()
        while not stop.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            longest[0], last = max(longest[0], now - last), now

    threads, other = torch.get_num_threads(), threading.Thread(target=wait)
    torch.set_num_threads(1)
    other.start()
    try:
        for _ in range(9):
            begin, longest[0] = time.perf_counter(), 0.0
            calls[what]()
            shares.append(longest[0] / (time.perf_counter() - begin))
    finally:
        stop.set()
        other.join()
        torch.set_num_threads(threads)
    # The other thread's longest pause, in shares of the call: nearly the whole of it where the call holds the lock.
    assert statistics.median(shares) < 0.5


def test_the_general_way_takes_what_remains():
    thrice = torch.randn(4, 6, 8)[::2, ::2, ::2]  # three dimensions remain
    deep = torch.randn([2] * 10).transpose(0, 9)
    for x in (thrice, deep, torch.randn(3, 0, 4)[::2]):
        torch.testing.assert_close(functional.silu(x), torch.nn.functional.silu(x))
        torch.testing.assert_close(functional.bilinear_packed(x), x.chunk(2, -1)[0] * x.chunk(2, -1)[1])
    assert functional.swiglu(torch.randn(4, 1), torch.randn(1, 4)).shape == (4, 4)


def test_gradients_of_gradients_of_packed_calls():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for layout in ("concatenated", "interleaved"):
        def call(x, layout=layout):
            return functional.swiglu_packed(x, layout)

        assert type(call(x).grad_fn).__name__ == "_ShortPackedBackward"
        assert torch.autograd.gradcheck(call, x, check_batched_grad=True) and torch.autograd.gradgradcheck(call, x)


def test_a_compiler_traces_packed_calls():
    x = torch.randn(3, 8)
    compiled = torch.compile(lambda x: functional.swiglu_packed(x, first="up") * 2, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), functional.swiglu_packed(x, first="up") * 2)
    torch.testing.assert_close(torch.func.vmap(functional.swiglu_packed)(x), functional.swiglu_packed(x))


def test_references_of_strided_calls_are_given_back():
    x, upstream = torch.randn(6, 16)[:, :8].requires_grad_(), torch.ones(6, 4)
    watched = (x, upstream, torch.get_num_threads, functional.swiglu_packed)

    def run(times):
        for _ in range(times):
            functional.swiglu_packed(x).backward(upstream)
            functional.swiglu(x, x).backward(torch.ones(6, 8))
            functional.swiglu_packed(torch.randn(5, 4, 8)[::2, ::2])
            functional.silu(torch.randn(3, 2 * cpu_backend.PIECE)[:, ::2])

    must_be_given_back(watched, run, 200)


def test_packed_calls_that_do_not_fit_are_refused():
    short = fast_path._short(catalog, get("swiglu"), None)
    with pytest.raises(TypeError, match="packed takes"):
        short.packed(torch.ones(2))
    with pytest.raises(TypeError, match="saved_packed takes"):
        catalog.saved_packed(None, short, 0, torch.ones(2))
    short.serve(6, 0, cpu_backend.entry(get("swiglu"), torch.float32)[1])
    for x, order in ((torch.ones(3), 0), (torch.ones(()), 0), (torch.ones(2), 4), (torch.ones(2), -1), (None, 0),
                     (torch.ones(2).double(), 0)):
        assert short.packed(x, order) is None
