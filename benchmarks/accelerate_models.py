"""How much faster, and with how much less memory, models run after ``nonlin.accelerate``; on the CPU.

Before and after share their weights and alternate in rounds, in one process. Ratios are before / after, medians of
each round's (above 1 is faster). Memory is what a forward pass keeps for backward beside the weights (bytes of
distinct storages).

* ``smollm2``: prefill of 128 tokens, decoding 8 tokens after 32, a training step (forward and backward) on 128.
* ``minilm``: embedding 8 texts of 128 tokens, and a training step on them.
* ``families``: one feed-forward block of every family, width 512, 512 tokens: forward, forward and backward.

    python -m benchmarks.accelerate_models [smollm2] [minilm] [families] [--only llama,bert] [--rounds 7]
                                           [--dtype float32] [--json FILE]

A part, or a few families, can be measured at a time: what FILE holds of the same dtype and machine is kept.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path

import torch

import nonlin
from nonlin.patching.finding import find_blocks
from nonlin.training.machine import describe


def twins(model, memory="lean"):
    """The model and an accelerated one with the same weights."""
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    nonlin.accelerate(twin, memory=memory)
    return model, twin


def compare(pair, work, rounds):
    """Median seconds of work(model) for each of the pair, alternating."""
    times = ([], [])
    for model in pair:
        work(model)
    for i in range(rounds):
        for arm in ((0, 1) if i % 2 == 0 else (1, 0)):
            start = time.perf_counter()
            work(pair[arm])
            times[arm].append(time.perf_counter() - start)
    before, after = map(statistics.median, times)
    lower, middle, upper = statistics.quantiles([b / a for b, a in zip(*times, strict=True)], n=4)  # of each round
    return {"before_ms": 1e3 * before, "after_ms": 1e3 * after, "ratio": middle, "ratio_quartiles": [lower, upper]}


def kept_bytes(model, forward):
    """Bytes that a forward pass keeps for backward, the model's own storages left out."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    sizes, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = forward(model)
    del out
    return sum(sizes.values())


def _step(forward):
    def step(model):
        model.zero_grad(set_to_none=True)
        forward(model).float().square().mean().backward()

    return step


def _no_grad(forward):
    def run(model):
        with torch.no_grad():
            forward(model)

    return run


def _memory(pair, forward):
    before, after = (kept_bytes(model, forward) for model in pair)
    return {"before_bytes": before, "after_bytes": after, "ratio": before / after}


def smollm2(dtype, rounds):
    """Prefill, decode and a training step of SmolLM2-135M."""
    from tests.patching import real

    loaded = nonlin.patching.load(real.smollm2(), dtype=dtype)
    pair = twins(loaded.model)
    ids = torch.randint(100, 40000, (1, 128), generator=torch.Generator().manual_seed(0))

    def decode(model):
        with torch.no_grad():
            out = model(ids[:, :32], use_cache=True)
            for _ in range(8):
                out = model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)

    def forward(model):
        return model(ids, use_cache=False).logits

    return {"prefill 128": compare(pair, _no_grad(forward), rounds), "decode 8": compare(pair, decode, rounds),
            "training step 128": compare(pair, _step(forward), max(2, rounds - 2)),
            "saved for backward": _memory(pair, forward)}


def minilm(dtype, rounds):
    """Embedding and a training step of MiniLM-L6."""
    from tests.patching import real

    pair = twins(nonlin.patching.load(real.minilm(), dtype=dtype).model)
    ids = torch.randint(1000, 20000, (8, 128), generator=torch.Generator().manual_seed(0))

    def forward(model):
        return model(ids).last_hidden_state

    return {"embed 8 x 128": compare(pair, _no_grad(forward), rounds),
            "training step 8 x 128": compare(pair, _step(forward), rounds),
            "saved for backward": _memory(pair, forward)}


def families(dtype, rounds, only=()):
    """One block of every family, or of those that are named."""
    from tests.patching.accelerated import awake
    from tests.patching.families import FAMILIES

    x = torch.randn(1, 512, 512, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = {}
    for name, family in FAMILIES.items():
        if name == "opt" or (only and name not in only):  # OPT's block stands in its layer: nothing is replaced
            continue
        model = awake(family.build(**_sizes(family))).to(dtype)
        pair = twins(model)
        path = find_blocks(model)[0].name
        path = path.removesuffix(".experts")
        blocks = [m.get_submodule(path) for m in pair]

        def forward(block):
            out = block.feed_forward_chunk(x) if hasattr(block, "feed_forward_chunk") else block(x)
            return out[0] if isinstance(out, tuple) else out

        found[name] = {"activation": family.activation, "layout": family.layout,
                       "forward": compare(blocks, _no_grad(forward), rounds),
                       "forward and backward": compare(blocks, _step(forward), rounds),
                       "saved for backward": _memory(blocks, forward)}
        print(f"  {name}", file=sys.stderr, flush=True)
    return found


def _sizes(family):
    """The family's settings at width 512, hidden width 2048 (gated: 1344), one layer."""
    gated = nonlin.get(family.activation).gated
    wide = 1344 if gated else 2048
    table = {"hidden_size": 512, "n_embd": 512, "d_model": 512, "intermediate_size": wide, "n_inner": wide,
             "d_ff": wide, "ffn_dim": wide, "moe_intermediate_size": wide, "num_hidden_layers": 1, "n_layer": 1,
             "num_layers": 1, "head_dim": 256, "d_kv": 256}
    sizes = {key: value for key, value in table.items() if key in family.settings}
    return sizes | ({"layer_types": ["full_attention"]} if "layer_types" in family.settings else {})


def table(name, results):
    """The results as lines of a Markdown table."""
    lines = [f"| {name} | before | after | before / after |", "| --- | --- | --- | --- |"]
    flat = results if name != "families" else {
        f"{family}, {what}": row for family, rows in results.items() for what, row in rows.items()
        if isinstance(row, dict)}
    for what, row in flat.items():
        if "before_bytes" in row:
            lines.append(f"| {what} | {row['before_bytes'] / 1e6:.1f} MB | {row['after_bytes'] / 1e6:.1f} MB "
                         f"| {row['ratio']:.2f} |")
        else:
            low, high = row["ratio_quartiles"]
            lines.append(f"| {what} | {row['before_ms']:.1f} ms | {row['after_ms']:.1f} ms "
                         f"| {row['ratio']:.2f} ({low:.2f}–{high:.2f}) |")
    return "\n".join(lines)


def _times(row):
    return f"{row['ratio']:.2f}× ({row['ratio_quartiles'][0]:.2f}–{row['ratio_quartiles'][1]:.2f})"


def _kept(row):
    return f"{row['before_bytes'] / 1e6:.1f} / {row['after_bytes'] / 1e6:.1f} MB"


def document(record, name):
    """The table of docs/accelerate.md that a record backs: "families", or a real model's."""
    rows = record["results"][name]
    if name != "families":
        return "\n".join(f"| {what} | {row['before_ms']:.0f} ms | {row['after_ms']:.0f} ms | {_times(row)} |"
                         if "before_ms" in row else
                         f"| {what} | {row['before_bytes'] / 1e6:.1f} MB | {row['after_bytes'] / 1e6:.1f} MB "
                         f"| {row['ratio']:.2f}× |" for what, row in rows.items())
    return "\n".join(f"| {family} | {row['activation']} | {row['layout']} | {_times(row['forward'])} "
                     f"| {_times(row['forward and backward'])} | {_kept(row['saved for backward'])} |"
                     for family, row in rows.items())


def kept(path, new):
    """What the file at ``path`` holds already, where it is of the same dtype and machine; else nothing."""
    if path is None or not path.exists():
        return {}
    old = json.loads(path.read_text())
    return old["results"] if all(old[key] == new[key] for key in ("dtype", "machine")) else {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["smollm2", "minilm", "families"])
    parser.add_argument("--only", default="", help="families, by name, with commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    done = {"command": f"python -m benchmarks.accelerate_models --rounds {options.rounds} --dtype {options.dtype}",
            "dtype": options.dtype, "machine": describe() | {"threads": torch.get_num_threads()}}
    done["results"] = kept(options.json, done)
    only = tuple(filter(None, options.only.split(",")))
    for name in options.what:
        if name == "families":
            results = families(getattr(torch, options.dtype), options.rounds, only)
            done["results"].setdefault(name, {}).update(results)
        else:
            results = {"smollm2": smollm2, "minilm": minilm}[name](getattr(torch, options.dtype), options.rounds)
            done["results"][name] = results
        print(table(name, results), flush=True)
        if options.json:  # after each part: an interrupted run keeps what it measured
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(done, indent=1) + "\n")


if __name__ == "__main__":
    main()
