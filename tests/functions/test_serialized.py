"""Texts of definitions, which exported programs and pickles bring: read back, or one error and nothing else."""

import contextlib
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlin.errors import UserError
from nonlin.functions import Definition, Parameter, define, get
from nonlin.functions.grammar import parse
from nonlin.functions.registry import deserialize, gated_by, serialize

NO_TEXTS = [
    None, 3, b"gelu", ["gelu"], "", "=", "=x", "a=", "a[=x", "a[]=x", "a[,]=x", "a[b:1,]=b*x", "a[b]=b*x", "a[b:]=b*x",
    "a[b:x]=b*x", "a[b:nan]=b*x", "a[b:-inf]=b*x", "a[b:1e999]=b*x", "a[b:1e308]=b*x", "a[b:-3.5e38]=b*x",
    "a[b:1,b:2]=b*x", "a[x:1]=x", "a[gate:1]=gate*up",
    "a[sigmoid:1]=sigmoid(x)", "a[pi:3]=pi*x", "a[b:1:2]=b*x", "a[b:1]]=b*x", "a[[b:1]]=b*x", "a[b:[1]]=b*x",
    "a[b:\u0663]=b*x", "a[b:1_0]=b*x", "a[b:0x1]=b*x", "a[b:1j]=b*x", "a[b:True]=b*x", "a[b:None]=b*x", "a[:1]=x",
    "a[__class__:1]=x", "a[b.c:1]=x", "a[c:1]=b*x", "a[b:1]=b", "a[b:1]=b*x=3", "a=b=x", "a\n=x", "a\x00=x",
    "\u00e9=x", "leaky_relu(((=x", "leaky_relu(slope=1=x", "a" * 5000 + "=x", "a=" + "x" * 5000,
    "a[b:" + "1" * 5000 + "]=b*x", "a[" + ",".join(f"q{i}:1" for i in range(300)) + "]=x", "a=__import__('os')",
    "leaky_relu(slope=[1])", "leaky_relu(slope={})", "a[b:1]=b*x*0e999999999", "a[b:1]=" + "b*" * 200 + "x"]


@pytest.mark.parametrize("text", NO_TEXTS, ids=range(len(NO_TEXTS)))
def test_a_malformed_text_is_one_error(text):
    with pytest.raises(UserError) as found:
        deserialize(text)
    assert str(found.value).isprintable() and len(str(found.value)) < 1000


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.one_of(st.text(max_size=40), st.text(alphabet="ab[]:,=()x*0159.e-+_ \n\u0663", max_size=40).map("a".__add__)))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(UserError):
        assert isinstance(deserialize(text), Definition)


def test_what_is_serialized_is_found_again(monkeypatch):
    learned = Definition("own", "pointwise", parse("steep*x*sigmoid(bend*x)", ("steep", "bend")),
                         parameters=(Parameter("steep", 1e-7), Parameter("bend", -12345678.9)))
    for made in (learned, define("tiny_own", "x*1e-60"), gated_by(get("xielu")), get("leaky_relu", slope=0.25),
                 gated_by(get("leaky_relu", slope=0.25)), define("spread_out", "-(x + 1)*(x - 1)/3")):
        text = serialize(made)
        monkeypatch.setattr("nonlin.functions.registry._SERIALIZED", {})
        found = deserialize(text)
        assert (found.name, found.kind, found.key) == (made.name, made.kind, made.key)
        assert pickle.loads(pickle.dumps(found)) is found


@pytest.mark.parametrize("formula", ["x*1e60", "x*1e-60", "-(x + 1)*(x - 1)", "x" + "/3" * 100, "(0.3*x - 1)**6"])
def test_a_formula_as_it_is_written_defines_the_same_again(formula):
    made = define("written_again", formula)
    try:
        assert define("written_again", made.formula) is made
    finally:
        from nonlin.functions import registry

        registry._USER.pop("written_again")
