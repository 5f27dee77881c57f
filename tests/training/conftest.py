"""A small text on disk, and configurations of tiny runs on it."""

import copy

import pytest

from nonlin.data import Corpus, Dataset, prepare

TEXT = "".join(f"{i}: the quick brown fox jumps over {i * i % 89} lazy dogs\n" for i in range(1800)).encode()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    prepare(Corpus((("a.txt", TEXT),), "test text", "user"), folder)
    return Dataset(folder)


@pytest.fixture
def config(dataset):
    """Return the configuration of a run: ``config(activation="gelu", seed=1, **training)``."""

    def make(activation="gelu", formula=None, purpose="judge", seed=1, engine="torch", **training):
        recipe = {"steps": 40, "batch": 4, "learning_rate": 0.01, "weight_decay": 0.1, "warmup_fraction": 0.1,
                  "clip": 1.0, "evaluation_tokens": 1000, "evaluations": 2, "probe_every": 10}
        return copy.deepcopy({
            "format": 1, "purpose": purpose, "activation": {"name": activation, "formula": formula},
            "model": {"layers": 2, "dim": 16, "heads": 2, "kv_heads": 1, "context": 16, "vocabulary": 256,
                      "hidden": 24},
            "data": {"sha256": dataset.info["sha256"], "tokenizer": "bytes"}, "training": recipe | training,
            "seed": seed, "machine": {"engine": engine, "dtype": "float32", "threads": 1}})

    return make
