"""Where a trained model can go: Hugging Face, and llama.cpp.

llama.cpp takes the activation from the architecture, never from a checkpoint's ``hidden_act``. A file of an
architecture is computed with that architecture's function whatever it was trained with. Read in its sources
(github.com/ggml-org/llama.cpp, src/llama-graph.h and src/models/, commit 0086c246 and others), November 2026.
"""

from dataclasses import dataclass
from typing import Any

from nonlin.functions import Definition

SOURCE = "github.com/ggml-org/llama.cpp, src/llama-graph.h at 0086c246, src/models/"


@dataclass(frozen=True)
class _Has:
    architectures: str
    exports: bool = False
    note: str = ""


_LLAMA_CPP = {
    "swiglu": _Has("Qwen3 and most others", exports=True),
    "geglu_tanh": _Has("Gemma 3"),
    "geglu": _Has("Gemma 3", note="computed by the tanh form"),
    "gelu_tanh": _Has("GPT-2"),
    "gelu": _Has("GPT-2", note="computed by the tanh form"),
    "relu_squared": _Has("Arcee, Nemotron-H"),
    "relu": _Has("T5"),
    "reglu": _Has("SmallThinker, in its experts"),
    "xielu": _Has("Apertus"),
    "swiglu_oai": _Has("gpt-oss, in its experts"),
}


def llama_cpp(definition: Definition) -> dict[str, Any]:
    """Return {"exports", "architectures", "text"}: whether the model that nonlin saves runs there, and what has it.

    >>> from nonlin.functions import get
    >>> llama_cpp(get("swiglu"))["exports"], llama_cpp(get("relu_squared"))["text"]
    (True, 'no: the operation is there (Arcee, Nemotron-H), the model that nonlin saves is not one of these')
    """
    found = _LLAMA_CPP.get(definition.name)
    if found is None:
        return {"exports": False, "architectures": None, "text": "no: none of its architectures computes it"}
    note = f", {found.note}" if found.note else ""
    text = "yes, as Qwen3, with a tokenizer that its converter knows" if found.exports else (
        f"no: the operation is there ({found.architectures}{note}), the model that nonlin saves is not one of these")
    return {"exports": found.exports, "architectures": found.architectures, "text": text}


def huggingface(definition: Definition) -> dict[str, Any]:
    """Return {"exports", "hidden_act", "architecture", "text"} of the model that nonlin saves."""
    from nonlin.model.act2fn_names import hidden_act

    act = hidden_act(definition)
    architecture = "Qwen3" if definition.gated else "Apertus"
    text = f"yes, {architecture} with {act}" if act else "no: ACT2FN has no such activation, or it learns a parameter"
    return {"exports": act is not None, "hidden_act": act, "architecture": architecture if act else None, "text": text}
