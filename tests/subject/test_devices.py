"""A user's own model on several processes is the model on one: losses, weights, and what is measured of its blocks."""

import copy
import json
import threading

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from nonlin.subject import build
from nonlin.subject.building import definition_named
from nonlin.subject.watching import everywhere, layer_measures
from nonlin.training import Run, ranks, run_trial
from nonlin.training.probes import Watched, gradient_outputs
from tests.subject.test_recipe import config_of, dataset

__all__ = ["dataset"]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")
@pytest.mark.parametrize(("parallel", "family"), [("ddp", "qwen3_moe"), ("fsdp", "llama")])
def test_two_processes_train_what_one_does(parallel, family, dataset, tmp_path):
    config = config_of(family, dataset, steps=4, probe_every=2, accumulation=2)
    config["model"]["hidden"] = config["model"]["widths"][0]
    folder = tmp_path / "two"
    folder.mkdir()
    alone = run_trial(copy.deepcopy(config), dataset.directory, tmp_path / "one")
    config["machine"] |= {"devices": 2, "parallel": parallel}
    request = {"do": "trial", "config": config, "trial": str(folder), "dataset": str(dataset.directory)}
    record = ranks.run(request, print)
    assert record["status"] == alone["status"] == "finished"
    assert record["outside_sha256"] == alone["outside_sha256"]
    for name in ("bits_per_byte", "initial_bits_per_byte", "sparsity"):
        assert record[name] == pytest.approx(alone[name], rel=1e-4), name
    assert any(line.get("layers") for line in lines(folder))
    for ours, theirs in zip(lines(folder), lines(tmp_path / "one"), strict=True):
        for layer, other in zip(ours.get("layers", ()), theirs.get("layers", ()), strict=True):
            assert layer == pytest.approx(other, rel=1e-3, abs=1e-6)
        if ours["kind"] == "train":
            assert ours["loss_nats"] == pytest.approx(theirs["loss_nats"], rel=1e-5)
            assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)
    ours, theirs = (load_file(tmp_path / name / "weights.safetensors") for name in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert float((ours[name] - weight).norm()) <= 1e-3 * float(weight.norm()) + 1e-5, name


class _Together:
    """Threads that call ``rows`` as processes do: each gets the rows of all, in the order of their numbers."""

    def __init__(self, size):
        self.barrier, self.parts = threading.Barrier(size, timeout=60), [None] * size

    def rows(self, number):
        def call(part):
            self.parts[number] = part
            self.barrier.wait()
            assert len({part.dtype for part in self.parts}) == 1  # as gathering asks for
            whole = torch.cat(self.parts)
            self.barrier.wait()
            return whole

        return call


def seen(model, tokens):
    watched = Watched()
    loss = model.loss(tokens, tokens, watched)
    gradient_outputs(watched)
    loss.backward()
    return watched


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_what_is_measured_is_of_the_rows_of_all_processes(family, dataset):
    """One of the two reaches a block that the other never reaches, as experts that are modules may be."""
    config = config_of(family, dataset)
    model = build(config, definition_named(config))
    tokens = torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(0))
    both, parts = Run(config, dataset)._layers(seen(model, tokens)), [seen(model, tokens[i::2]) for i in range(2)]
    together, found = _Together(2), [None, None]

    def gather(number):
        found[number] = layer_measures(everywhere(parts[number], model.replaced, together.rows(number), 2))

    def gathered():
        threads = [threading.Thread(target=gather, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    for measured in gathered():
        for layer, other in zip(measured, both, strict=True):
            assert layer == pytest.approx(other, rel=1e-4)
    if family == "llama":
        last, of = parts[1].blocks.pop(), parts[1].of.pop()
        assert of is model.replaced[-1] and last is not None
        alone = layer_measures(parts[0])[-1]
        for measured in gathered():
            assert measured[-1] == pytest.approx(alone | {"gradient_rms": alone["gradient_rms"] / 2}, rel=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            parts[:] = [seen(model, tokens[i::2]) for i in range(2)]
        parts[1].blocks.pop(), parts[1].of.pop()
        assert all(measured is not None for measured in gathered())
