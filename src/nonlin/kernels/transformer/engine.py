"""Choose which implementation of the small language model's operations computes."""

import torch

from nonlin.errors import UserError
from nonlin.kernels.transformer.bf16 import Bf16Engine
from nonlin.kernels.transformer.float32 import NativeEngine
from nonlin.kernels.transformer.torch_engine import TorchEngine


def engine(name: str, dtype: str = "float32") -> TorchEngine:
    """Return the engine of that name, with that dtype of matrix products.

    "torch": all by torch; "native": all by our C++; "mixed": by our C++ all but the products, which torch computes.

    >>> engine("torch").name
    'torch'
    """
    if name == "torch":
        return TorchEngine(getattr(torch, dtype))
    if name == "mixed" or (name == "native" and dtype == "float32"):
        return NativeEngine(getattr(torch, dtype))
    if name == "native":
        return Bf16Engine()
    raise UserError(f"engine must be 'torch', 'native' or 'mixed'; got {name!r}. Choose one of them.")
