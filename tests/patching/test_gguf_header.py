"""A GGUF file whose header says what no file of its size can hold: one error, before memory is taken for it."""

import random
import struct

import pytest

from nonlin.errors import UserError
from nonlin.model.folder import Unfit
from nonlin.model.gguf_header import gguf_sizes
from nonlin.patching import load
from nonlin.patching import loading as loading_module
from tests.patching import real

pytest.importorskip("gguf", reason="gguf is not installed")

WIDTH, HIDDEN, VOCABULARY = 32, 64, 48
U32, F32, TEXT, LIST = 4, 6, 8, 9


def text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


def key(name, kind, value):
    """A key with its value, which is packed already where it is bytes."""
    if kind == TEXT and not isinstance(value, bytes):
        value = text(value)
    elif not isinstance(value, bytes):
        value = struct.pack({U32: "<I", F32: "<f"}[kind], value)
    return text(name) + struct.pack("<I", kind) + value


def listed(kind, entries, length=None):
    """A list's value; its length is what it says."""
    return struct.pack("<IQ", kind, len(entries) if length is None else length) + b"".join(entries)


def keys(**changes):
    """The keys of a tiny Llama; ``changes`` by the last part of their names, None to leave one out."""
    tokens = [text(f"t{i}") for i in range(VOCABULARY)]
    found = {"general.architecture": (TEXT, "llama"), "llama.block_count": (U32, 1), "llama.context_length": (U32, 64),
             "llama.embedding_length": (U32, WIDTH), "llama.feed_forward_length": (U32, HIDDEN),
             "llama.attention.head_count": (U32, 2), "llama.attention.head_count_kv": (U32, 2),
             "llama.attention.layer_norm_rms_epsilon": (F32, 1e-6), "llama.rope.dimension_count": (U32, 16),
             "llama.vocab_size": (U32, VOCABULARY), "tokenizer.ggml.model": (TEXT, "llama"),
             "tokenizer.ggml.tokens": (LIST, listed(TEXT, tokens)),
             "tokenizer.ggml.scores": (LIST, listed(F32, [struct.pack("<f", 0.0)] * VOCABULARY)),
             "tokenizer.ggml.token_type": (LIST, listed(5, [struct.pack("<i", 1)] * VOCABULARY))}
    for name in list(found):
        last = name.rpartition(".")[2]
        if last in changes:
            found[name] = changes.pop(last)
    return [key(name, *value) for name, value in (found | changes).items() if value is not None]


TENSORS = [("token_embd.weight", [WIDTH, VOCABULARY]), ("output_norm.weight", [WIDTH]),
           ("output.weight", [WIDTH, VOCABULARY]), ("blk.0.attn_norm.weight", [WIDTH]),
           *((f"blk.0.attn_{n}.weight", [WIDTH, WIDTH]) for n in ("q", "k", "v", "output")),
           ("blk.0.ffn_norm.weight", [WIDTH]), ("blk.0.ffn_gate.weight", [WIDTH, HIDDEN]),
           ("blk.0.ffn_up.weight", [WIDTH, HIDDEN]), ("blk.0.ffn_down.weight", [HIDDEN, WIDTH])]


def infos(tensors=TENSORS, kind=0, offsets=None):
    """The entries of tensors, one behind the other unless ``offsets`` say otherwise."""
    made, at = [], 0
    for name, shape in tensors:
        offset = at if offsets is None else offsets
        made.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset))
        at += 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
    return made, at


def gguf(path, made_keys=None, made_infos=None, counts=None, version=3):
    made_keys = keys() if made_keys is None else made_keys
    made_infos, data = infos() if made_infos is None else made_infos
    tensors, number = counts or (len(made_infos), len(made_keys))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, number) + b"".join(made_keys) + b"".join(made_infos)
    head += bytes(-len(head) % 32)
    path.write_bytes(head + bytes(data))
    return path


def test_a_whole_file_is_read(tmp_path):
    path = gguf(tmp_path / "a.gguf")
    numbers = 2 * WIDTH * VOCABULARY + 3 * WIDTH + 4 * WIDTH * WIDTH + 3 * WIDTH * HIDDEN
    assert gguf_sizes(path) == (len(TENSORS), numbers)
    assert type(load(path).model).__name__ == "LlamaForCausalLM"


def test_a_real_file_is_read():
    tensors, numbers = gguf_sizes(real.smollm2())
    assert tensors > 200 and numbers > 130_000_000


BIG = 1 << 60
CASES = {
    "tensors": {"counts": (BIG, 14)}, "keys": {"counts": (12, BIG)}, "no keys": {"counts": (12, 0)},
    "version": {"version": 77},
    "a key's name": {"made_keys": [struct.pack("<Q", BIG) + b"x"]},
    "a text": {"made_keys": keys(architecture=(TEXT, struct.pack("<Q", BIG)))},
    "a list of texts": {"made_keys": keys(tokens=(LIST, listed(TEXT, [], BIG)))},
    "a list of bytes": {"made_keys": keys(scores=(LIST, listed(0, [], BIG)))},
    "a list of lists": {"made_keys": keys(scores=(LIST, listed(LIST, [listed(LIST, [])])))},
    "a list of nothing": {"made_keys": keys(scores=(LIST, listed(77, [], BIG)))},
    "many entries": {"made_keys": keys(scores=(LIST, listed(0, [bytes(5_000_000)], 5_000_000)))},
    "a text in a list": {"made_keys": keys(tokens=(LIST, listed(TEXT, [struct.pack("<Q", BIG)])))},
    "an unknown kind": {"made_keys": keys(block_count=(99, b""))},
    "a key twice": {"made_keys": [*keys(), *keys()]},
    "alignment": {"made_keys": keys(**{"general.alignment": (U32, 3)})},
    "no alignment": {"made_keys": keys(**{"general.alignment": (U32, 0)})},
    "alignment as a text": {"made_keys": keys(**{"general.alignment": (TEXT, "32")})},
    "layers": {"made_keys": keys(block_count=(U32, 10**9))},
    "width": {"made_keys": keys(embedding_length=(U32, 10**9))},
    "hidden": {"made_keys": keys(feed_forward_length=(U32, 2**31))},
    "heads": {"made_keys": keys(head_count=(U32, 10**9))},
    "vocabulary": {"made_keys": keys(vocab_size=(U32, 10**9))},
    "less than nothing": {"made_keys": keys(block_count=(5, struct.pack("<i", -1)))},
    "shape": {"made_infos": (infos([("token_embd.weight", [BIG, BIG])])[0], 1000)},
    "shape of the file's size": {"made_infos": (infos([("token_embd.weight", [10**6, 10**4])])[0], 1000)},
    "dimensions": {"made_infos": ([text("x") + struct.pack("<I", 2**31)], 0)},
    "dimensions of one": {"made_infos": infos([("token_embd.weight", [1, 1, 1, 1, 1])])},
    "a kind of numbers": {"made_infos": infos(kind=77)},
    "a tensor twice": {"made_infos": infos([("x", [32]), ("x", [32])])},
    "place": {"made_infos": (infos(offsets=BIG)[0], 1000)},
    "all in one place": {"made_infos": (infos([(f"x{i}", [32, 1000]) for i in range(50)], offsets=0)[0], 128_000)},
}


@pytest.mark.parametrize("case", CASES)
def test_a_header_that_cannot_be_is_one_error_before_it_is_believed(tmp_path, case, monkeypatch):
    def reached(*_):
        raise AssertionError("the file was given to a reader that believes it")

    monkeypatch.setattr(loading_module, "_from_pretrained", reached)
    path = gguf(tmp_path / "a.gguf", **CASES[case])
    with pytest.raises(UserError) as caught:
        load(path)
    assert "must" in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("seed", range(120))
def test_any_bytes_of_a_header_are_sizes_or_one_reason(tmp_path, seed):
    chance, whole = random.Random(seed), gguf(tmp_path / "a.gguf").read_bytes()
    changed = bytearray(whole)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(2500)
        changed[at:at + 8] = chance.choice((chance.randbytes(8), b"\xff" * 8, bytes(8), struct.pack("<Q", 1 << 40)))
    if chance.random() < 0.3:
        del changed[chance.randrange(len(changed)):]
    (tmp_path / "a.gguf").write_bytes(changed)
    try:
        tensors, numbers = gguf_sizes(tmp_path / "a.gguf")
        assert tensors <= len(whole) and numbers <= 8 * len(whole)
    except Unfit as reason:
        assert "\n" not in str(reason)
