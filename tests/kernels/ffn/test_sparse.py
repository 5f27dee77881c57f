"""Sparse products beside float64's: every dtype, share of zeros, layout and instruction set; what they leave unread."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlin.functions import define, get
from nonlin.kernels.cpu import build
from nonlin.kernels.ffn import composed, fast_path, sparse
from nonlin.kernels.ffn.layout import Form, Tensors

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXACT = ("relu", "relu_squared", "reglu", "drelu", "relu_squared_glu", "fatrelu")
# The output's relative error (norms). 16-bit: inputs are exact, sums are float32's, the output is rounded once.
BOUND = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def block(name, dtype, tokens=1, dim=48, hidden=96, outputs=40, bias=True, zeros=None, seed=0, layout="separate"):
    """Tensors whose share of zero units is about ``zeros`` (by the gate's or the only bias), and their form."""
    generator = torch.Generator().manual_seed(seed)
    definition = get(name)

    def drawn(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    packed = 2 if definition.gated and layout != "separate" else 1
    weights = [drawn(hidden, dim, scale=dim**-0.5) if definition.gated and packed == 1 else None,
               drawn(packed * hidden, dim, scale=dim**-0.5), drawn(outputs, hidden, scale=hidden**-0.5)]
    biases = [drawn(w.shape[0]) if bias and w is not None else None for w in weights]
    if zeros is not None:
        shift = torch.where(torch.rand(hidden, generator=generator) < zeros, -30.0, 30.0).to(dtype)
        biases[0 if definition.gated else 1] = shift
    return (Tensors(drawn(tokens, dim), *weights, *biases),
            Form(definition, layout if definition.gated else "plain", False))


def exact(tensors, form):
    """The block in float64, of the same numbers."""
    return composed.forward(Tensors(*(None if t is None else t.double() for t in tensors)), form, "nothing")[0]


def error(out, truth):
    return float((out.double() - truth).norm() / truth.norm().clamp(min=1e-30))


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_values_are_float64s_rounded_once(name, dtype, zeros):
    for tokens in (1, 2, 3, 5, 8):
        tensors, form = block(name, dtype, tokens, zeros=zeros)
        units = sparse.Units()
        out, truth = units(tensors, form), exact(tensors, form)
        assert out.dtype == dtype and out.shape == truth.shape
        assert error(out, truth) <= BOUND[dtype], (tokens, error(out, truth))
        if name != "drelu":  # whose zeros depend on up too
            gate = tensors.gate_bias if form.definition.gated else tensors.up_bias
            assert units.skipped == pytest.approx(float((gate < 0).double().mean()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_is_closer_to_float64_than_the_dense_path(dtype):
    tensors, form = block("relu_squared", dtype, 3, dim=256, hidden=512)
    truth = exact(tensors, form)
    assert error(sparse.Units()(tensors, form), truth) <= error(fast_path.value(tensors, form), truth)


@pytest.mark.parametrize("layout", ["concatenated", "interleaved"])
def test_packed_weights_are_read_as_they_lie(layout):
    tensors, form = block("reglu", torch.bfloat16, 2, layout=layout)
    assert sparse.refusal(tensors, form) is None
    assert error(sparse.Units()(tensors, form), exact(tensors, form)) <= BOUND[torch.bfloat16]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_shape_and_strides(data):
    name = data.draw(st.sampled_from([*EXACT, "hardswish", "geglu"]))
    dtype, tokens = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(1, 8))
    sizes = [data.draw(st.integers(1, 150)) for _ in range(3)]
    tensors, form = block(name, dtype, tokens, *sizes, bias=data.draw(st.booleans()), seed=data.draw(st.integers(0, 9)))
    if data.draw(st.booleans()):  # every tensor a part of a larger one, its rows apart
        tensors = Tensors(*(None if t is None else _apart(t) for t in tensors))
    if data.draw(st.booleans()):  # as Conv1D stores it: by units already
        tensors = tensors._replace(down=tensors.down.t().contiguous().t())
    if data.draw(st.booleans()):
        tensors = tensors._replace(x=tensors.x.t().contiguous().t())
    assert error(sparse.Units()(tensors, form), exact(tensors, form)) <= BOUND[dtype]


def _apart(t):
    whole = torch.full((*t.shape[:-1], t.shape[-1] + 3), 7.0, dtype=t.dtype)
    whole[..., 1:-2] = t
    return whole[..., 1:-2]


def test_a_token_does_not_depend_on_its_company_beyond_rounding():
    tensors, form = block("reglu", torch.float32, 8, zeros=0.9)
    whole = sparse.Units()(tensors, form)
    for n in range(8):
        alone = sparse.Units()(tensors._replace(x=tensors.x[n:n + 1]), form)
        torch.testing.assert_close(whole[n:n + 1], alone, rtol=1e-5, atol=1e-6)


def test_bits_do_not_depend_on_the_number_of_threads():
    tensors, form = block("relu_squared_glu", torch.bfloat16, 3, 300, 700, 1100)
    before, outs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outs.append(sparse.Units()(tensors, form))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


# The planted fault of skipping: weights that must not be read hold nan, which would reach every output.
def test_weights_of_zero_units_are_not_read():
    for name in ("reglu", "relu_squared"):
        tensors, form = block(name, torch.float32, 2, zeros=0.5)
        truth = exact(tensors, form)
        zero = (tensors.gate_bias if form.definition.gated else tensors.up_bias) < 0
        tensors.down[:, zero] = float("nan")
        if form.definition.gated:
            tensors.up[zero] = float("nan")
        assert error(sparse.Units()(tensors, form), truth) <= BOUND[torch.float32]
        tensors.down[:, ~zero] = float("nan")
        assert sparse.Units()(tensors, form).isnan().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinite_inputs_are_left_to_the_dense_path(dtype, bad):
    tensors, form = block("reglu", dtype, 2)
    tensors.x[1, -1] = bad
    assert sparse.Units()(tensors, form) is None


def test_a_nan_on_the_way_reaches_the_output():
    tensors, form = block("relu", torch.float32, 1)
    tensors.up_bias[3] = float("nan")
    assert sparse.Units()(tensors, form).isnan().all()


@pytest.mark.parametrize("write", [
    lambda t: t.mul_(2), lambda t: t.data.mul_(2), lambda t: t.data.copy_(t.data.flip(0))], ids=["mul", "data", "flip"])
def test_a_changed_weight_is_never_computed_with_its_old_copy(write):
    for down in (torch.nn.Parameter, lambda t: t):
        tensors, form = block("relu", torch.bfloat16, 1)
        tensors = tensors._replace(down=down(tensors.down))
        units = sparse.Units()
        with torch.no_grad():
            units(tensors, form)
            write(tensors.down)
            assert error(units(tensors, form), exact(tensors, form)) <= BOUND[torch.bfloat16]


def test_a_weight_made_in_inference_mode_serves():
    with torch.inference_mode():
        tensors, form = block("relu", torch.bfloat16, 1)
        units = sparse.Units()
        units(tensors, form)
        tensors.down.mul_(2)
        assert error(units(tensors, form), exact(tensors, form)) <= BOUND[torch.bfloat16]


def test_what_is_not_few_plain_tokens_takes_the_dense_path():
    tensors, form = block("relu", torch.float32, 9)
    units = sparse.Units()
    assert units(tensors, form) is None
    few = tensors._replace(x=tensors.x[:3])
    assert units(few, form) is not None
    assert sparse.Units(tokens=2)(few, form) is None
    assert units(few._replace(x=few.x[:0]), form) is None
    assert units(few._replace(x=few.x.double()), form) is None
    assert units(few._replace(down=torch.nn.Parameter(few.down)), form) is None  # a gradient is recorded
    with torch.no_grad():
        assert units(few._replace(down=torch.nn.Parameter(few.down)), form) is not None
    with torch.autocast("cpu"):
        assert units(few, form) is None
    assert torch.vmap(lambda x: torch.tensor(units(few._replace(x=x), form) is None))(few.x[:, None]).all()


def test_copies_and_pickles_leave_the_copied_weights_behind():
    tensors, form = block("relu", torch.float32, 1)
    units = sparse.Units(0.25, 4)
    units(tensors, form)
    assert units.copied_bytes == tensors.down.nbytes
    for twin in (copy.deepcopy(units), pickle.loads(pickle.dumps(units))):
        assert twin == units and twin.copied_bytes == 0
    by_units = tensors._replace(down=tensors.down.t().contiguous().t())
    units(by_units, form)
    assert units.copied_bytes == 0


def test_refusals_give_the_reason(monkeypatch):
    tensors, form = block("relu", torch.float32, 1)
    assert sparse.refusal(tensors, form) is None
    assert "float64" in sparse.refusal(Tensors(*(None if t is None else t.double() for t in tensors)), form)
    assert "apart" in sparse.refusal(tensors._replace(up=tensors.up.t().contiguous().t()), form)
    assert "meta" in sparse.refusal(Tensors(*(None if t is None else t.to("meta") for t in tensors)), form)
    sparse.library.cache_clear()
    try:
        monkeypatch.setattr(build, "compiler", lambda: None)
        assert "no C++ compiler" in sparse.refusal(tensors, form)
        assert sparse.Units()(tensors, form) is None
    finally:
        monkeypatch.undo()
        sparse.library.cache_clear()


def test_a_users_own_formula_is_chosen_by_what_it_computes():
    assert sparse.choice_of(define("shifted_relu_glu", "max(gate - 1, 0)*up")).exact
    assert sparse.choice_of(define("up_relu_glu", "gate*max(up, 0)")) == sparse.Choice(None, True)
    assert not sparse.choice_of(define("soft_glu", "sigmoid(gate)*up*tanh(up)")).exact
    tensors, form = block("up_relu_glu", torch.float32, 4)
    units = sparse.Units()
    assert error(units(tensors, form), exact(tensors, form)) <= BOUND[torch.float32]
    tensors, form = block("shifted_relu_glu", torch.float32, 1, hidden=400)
    assert error(units(tensors, form), exact(tensors, form)) <= BOUND[torch.float32]
    assert units.skipped > 0.5


def test_units_below_a_threshold_are_left_out_and_no_others():
    tensors, form = block("swiglu", torch.float32, 1)
    gate = torch.nn.functional.silu(torch.nn.functional.linear(tensors.x, tensors.gate, tensors.gate_bias))
    up = torch.nn.functional.linear(tensors.x, tensors.up, tensors.up_bias)
    expected = torch.nn.functional.linear((gate * up).where(gate.abs() > 0.2, 0.0), tensors.down, tensors.down_bias)
    units = sparse.Units(0.2)
    torch.testing.assert_close(units(tensors, form), expected, rtol=1e-5, atol=1e-5)
    assert units.skipped == pytest.approx(float((gate.abs() <= 0.2).double().mean()))


_AGREE = """
import torch
from nonlin.kernels.ffn import sparse
from tests.kernels.ffn.test_sparse import BOUND, DTYPES, block, error, exact
for dtype in DTYPES:
    for tokens in (1, 4, 8):
        for name in ("reglu", "relu_squared"):
            tensors, form = block(name, dtype, tokens, 150, 200, 530)
            assert error(sparse.Units()(tensors, form), exact(tensors, form)) <= BOUND[dtype], (dtype, tokens, name)
print("agree")
"""


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_instruction_set_gives_the_values(isa):
    if isa != "portable" and isa not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has it not")
    done = subprocess.run([sys.executable, "-c", _AGREE], env=os.environ | {"NONLIN_ISA": isa}, text=True,
                          capture_output=True)
    assert done.stdout.strip() == "agree", done.stderr
