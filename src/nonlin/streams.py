"""Random streams by purpose: each is a counter-based generator whose key names the purpose and the seed.

Two streams of different purposes, seeds or names share nothing, whatever integers their seeds are. No torch.
"""

import hashlib

import numpy as np


def generator(purpose: str, seed: int, *names: str, counter: int = 0) -> np.random.Generator:
    """Return the Philox generator of a purpose, a seed and further names.

    The 128-bit key is the start of the SHA-256 of all of them. ``counter`` moves to a block of its own of the same
    stream, such as a training step. Block n is found without drawing the blocks before it.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    >>> a, b = generator("data order", 1), generator("initialization", 1)
    >>> bool(a.integers(10**9) == b.integers(10**9))
    False
    >>> bool(generator("x", 1, counter=5).integers(10**9) == generator("x", 1, counter=5).integers(10**9))
    True
    """
    return np.random.Generator(np.random.Philox(key=_key(purpose, seed, names), counter=[0, 0, 0, counter]))


def torch_seed(purpose: str, seed: int) -> int:
    """Return a seed for a generator of torch, which takes one number of 63 bits.

    >>> 0 <= torch_seed("sampling", 0) < 2**63
    True
    """
    return _key(purpose, seed, ()) >> 65


def _key(purpose: str, seed: int, names: tuple[str, ...]) -> int:
    text = "\0".join(["nonlin", purpose, str(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
