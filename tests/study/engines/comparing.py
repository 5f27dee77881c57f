"""What tests of engines share: a folder of tokens, and a study's results without what differs between machines."""

import json

from tests.study import studies


def tokens(folder):
    """A folder that looks like prepared tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.bin").write_bytes(bytes(range(256)) * 4096)
    (folder / "validation.bin").write_bytes(b"validation")
    (folder / "dataset.json").write_text(json.dumps({"sha256": "0" * 64, "train_tokens": 2**20}))
    return folder


def comparable(folder):
    """The bytes of results.json, less timings and the environment."""
    results = studies.without_timing(json.loads((folder / "results.json").read_text()))
    return json.dumps(results | {"environment": None}, sort_keys=True).encode()
