"""How much faster this machine trains a small language model with our settings than with a plain PyTorch loop.

Both train the same model on the same batches: 4 layers, 4 heads, width 128, context 64, batch 12, SwiGLU.

* plain: float32, eager, ``scaled_dot_product_attention``, ``nn.RMSNorm``, AdamW, all threads, one process.
* processes: the same loop, one process a core, each with one thread.
* compiled: those processes with ``torch.compile``, products in bfloat16 by autocast where the processor multiplies it;
  warmed up before the clock starts.
* nonlin: what ``nonlin compare`` does: one process a core, each with one thread.

The arms alternate in rounds, each in fresh processes; medians over rounds; tokens a second of the whole machine.
Ours is worth its keep at 1.25 times the best of the others or more. Then plain and ours train the same steps on several
seeds, and the losses are compared: ``--loss-steps``.

    python benchmarks/training.py [--rounds 5] [--seconds 10] [--loss-steps 300] [--json FILE]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPE = {"layers": 4, "dim": 128, "heads": 4, "kv_heads": 4, "context": 64, "vocabulary": 256, "hidden": 344}
BATCH, RATE, STEPS = 12, 3e-3, 2000
ARMS = ("plain", "processes", "compiled", "nonlin")


def plain_model(torch):
    """The model as a reader of any tutorial writes it, its weights named like ours."""
    nn, functional = torch.nn, torch.nn.functional
    dim, heads, width = SHAPE["dim"], SHAPE["heads"], SHAPE["dim"] // SHAPE["heads"]

    def rotate(x, cos, sin):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))
            self.q_norm, self.k_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)

        def forward(self, x, cos, sin):
            b, t, _ = x.shape
            q = rotate(self.q_norm(self.q(x).view(b, t, heads, width)).transpose(1, 2), cos, sin)
            k = rotate(self.k_norm(self.k(x).view(b, t, heads, width)).transpose(1, 2), cos, sin)
            v = self.v(x).view(b, t, heads, width).transpose(1, 2)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.o(y.transpose(1, 2).reshape(b, t, dim))

    class FeedForward(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up = (nn.Linear(dim, SHAPE["hidden"], bias=False) for _ in range(2))
            self.down = nn.Linear(SHAPE["hidden"], dim, bias=False)

        def forward(self, x):
            return self.down(functional.silu(self.gate(x)) * self.up(x))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_norm, self.feed_forward_norm = (nn.RMSNorm(dim, eps=1e-6) for _ in range(2))
            self.attention, self.feed_forward = Attention(), FeedForward()

        def forward(self, x, cos, sin):
            x = x + self.attention(self.attention_norm(x), cos, sin)
            return x + self.feed_forward(self.feed_forward_norm(x))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(SHAPE["vocabulary"], dim)
            self.blocks = nn.ModuleList(Block() for _ in range(SHAPE["layers"]))
            self.norm = nn.RMSNorm(dim, eps=1e-6)
            self.head = nn.Linear(dim, SHAPE["vocabulary"], bias=False)
            angles = torch.outer(torch.arange(SHAPE["context"]).float(),
                                 1e4 ** (-torch.arange(0, width, 2).float() / width)).repeat(1, 2)
            self.register_buffer("cos", angles.cos(), persistent=False)
            self.register_buffer("sin", angles.sin(), persistent=False)

        def loss(self, tokens, targets):
            x = self.embedding(tokens)
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
            return functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())

    return Model()


class PlainRun:
    """A tutorial's training loop with our schedule, batches and initial weights."""

    def __init__(self, config, dataset, compiled=False):
        import torch

        from nonlin.training.trial import build_model

        self.torch, self.config, self.dataset, self.index = torch, config, dataset, 0
        self.model = plain_model(torch)
        torch_config = config | {"machine": {"engine": "torch", "dtype": "float32", "threads": 1}}
        self.model.load_state_dict(build_model(torch_config).state_dict())
        self.autocast = compiled and config["machine"]["dtype"] == "bfloat16"
        if compiled:
            self.model.loss = torch.compile(self.model.loss)
        groups = [{"params": [p for p in self.model.parameters() if p.ndim == n], "weight_decay": d}
                  for n, d in ((2, config["training"]["weight_decay"]), (1, 0.0))]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))

    def step(self):
        from nonlin.data import batch
        from nonlin.training.recipe import learning_rate

        train = self.config["training"]
        x, y = (self.torch.from_numpy(a) for a in batch(self.dataset, self.index, BATCH, SHAPE["context"],
                                                        self.config["seed"]))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(train, self.index)
        with self.torch.autocast("cpu", self.torch.bfloat16, enabled=self.autocast):
            loss = self.model.loss(x, y)
        self.optimizer.zero_grad()
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), train["clip"])
        self.optimizer.step()
        self.index += 1
        return float(loss.detach())


def config_for(sha256, seed, steps, machine):
    return {"format": 1, "purpose": "tune", "activation": {"name": "swiglu", "formula": None}, "model": SHAPE,
            "data": {"sha256": sha256, "tokenizer": "bytes"}, "seed": seed, "machine": machine,
            "training": {"steps": steps, "batch": BATCH, "learning_rate": RATE, "weight_decay": 0.1,
                         "warmup_fraction": 0.1, "clip": 1.0, "evaluation_tokens": 65536, "evaluations": 1,
                         "probe_every": 10**9}}


def child(arm, folder, seconds, steps, seed, machine):
    """Run one arm in this process; print {"tokens_per_second", "bits_per_byte"}."""
    from nonlin.data import Dataset, evaluation_batches
    from nonlin.training.evaluation import evaluate
    from nonlin.training.trial import Run

    dataset = Dataset(Path(folder))
    config = config_for(dataset.info["sha256"], seed, steps or STEPS, json.loads(machine))
    run = Run(config, dataset) if arm == "nonlin" else PlainRun(config, dataset, arm == "compiled")
    for _ in range(0 if steps else 5):
        run.step()
    begin = time.perf_counter()
    count = 0
    while count < steps if steps else time.perf_counter() - begin < seconds:
        run.step()
        count += 1
    rate = count * BATCH * SHAPE["context"] / (time.perf_counter() - begin)
    result = {"tokens_per_second": rate}
    if steps:
        batches = evaluation_batches(dataset, 65536, BATCH, SHAPE["context"])
        result["bits_per_byte"] = evaluate(run.model, batches, 1.0)
    print(json.dumps(result))


def launch(arm, folder, *, seconds=0.0, steps=0, seeds=(0,), machine):
    """Run an arm, one process a seed at the same time; return their answers."""
    from nonlin.study.engines.worker_process import ENVIRONMENT

    env = dict(os.environ)
    env.pop("OMP_NUM_THREADS", None)
    if arm != "plain":
        env |= ENVIRONMENT
    processes = [subprocess.Popen(
        [sys.executable, __file__, "--child", arm, str(folder), str(seconds), str(steps), str(seed),
         json.dumps(machine)], stdout=subprocess.PIPE, text=True, env=env) for seed in seeds]
    return [json.loads(p.communicate()[0].splitlines()[-1]) for p in processes]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--loss-steps", type=int, default=300)
    parser.add_argument("--loss-seeds", type=int, default=4)
    parser.add_argument("--engine", choices=("native", "mixed", "torch"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from nonlin.data import load_corpus, prepare
    from nonlin.training import machine

    chosen = machine.candidates()[0]
    chosen |= {k: v for k, v in (("engine", options.engine), ("dtype", options.dtype)) if v}
    cores = len(os.sched_getaffinity(0))
    print(f"{machine.processor()['name']}, {cores} cores; nonlin: {chosen}, {cores} processes of one thread")
    with tempfile.TemporaryDirectory() as folder:
        prepare(load_corpus(None), Path(folder), "bytes")
        rates = {arm: [] for arm in ARMS}
        for index in range(options.rounds):
            for arm in ARMS:
                seeds = (0,) if arm == "plain" else tuple(range(cores))
                answers = launch(arm, folder, seconds=options.seconds, seeds=seeds, machine=chosen)
                rates[arm].append(sum(a["tokens_per_second"] for a in answers))
            print(f"round {index + 1}: " + "  ".join(f"{arm} {rates[arm][-1]:,.0f}" for arm in ARMS) + " tokens/s",
                  flush=True)
        ratios = {arm: statistics.median(b / a for a, b in zip(rates[arm], rates["nonlin"], strict=True))
                  for arm in ARMS[:-1]}
        result = {"machine": machine.describe(), "setting": chosen, "rates": rates,
                  "ratio_median": ratios["plain"], "ratio_medians": ratios}
        print("\nmedian ratios of ours: " + ", ".join(f"{ratio:.2f} of {arm}" for arm, ratio in ratios.items()))
        if options.loss_steps:
            result["loss"] = compare_losses(folder, options, chosen)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


def compare_losses(folder, options, chosen):
    """Train both the same steps from the same weights on several seeds; print the paired difference."""
    bpb = {arm: [launch(arm, folder, steps=options.loss_steps, seeds=(seed,), machine=chosen)[0]["bits_per_byte"]
                 for seed in range(options.loss_seeds)] for arm in ("plain", "nonlin")}
    difference = np.subtract(bpb["nonlin"], bpb["plain"])
    print(f"after {options.loss_steps} steps, {options.loss_seeds} seeds, bits per byte: "
          f"plain {np.mean(bpb['plain']):.4f}, nonlin {np.mean(bpb['nonlin']):.4f}; "
          f"paired difference {difference.mean():+.5f}"
          + (f" ± {difference.std(ddof=1):.5f} (sd); sd over seeds {np.std(bpb['plain'], ddof=1):.4f}"
             if len(difference) > 1 else ""))
    return {"steps": options.loss_steps, **bpb}


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        arm, folder, seconds, steps, seed, machine_json = sys.argv[2:]
        child(arm, folder, float(seconds), int(steps), int(seed), machine_json)
    else:
        main()
