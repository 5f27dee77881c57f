"""How fast a study trains a user's own model, beside the user's own Trainer loop on the same model: one process each.

    python -m benchmarks.own_model_speed [--steps 30] [--rounds 5] [--record FILE]

Both train Qwen3 at nonlin's small size with its own activation, in float32 on one thread, by AdamW, on the same
batches. The loops take turns, in rounds; the ratio is of the medians of their tokens per second.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import nonlin
from nonlin.data import Corpus, Dataset
from nonlin.data.preparing import prepare
from nonlin.subject import describe
from nonlin.training.trial import Run

SIZES = {"layers": 2, "dim": 96, "heads": 3, "kv_heads": 3, "context": 64, "vocabulary": 256}
BATCH = 8
TRAINING = {"weight_decay": 0.1, "warmup_fraction": 0.2, "clip": 1.0, "evaluation_tokens": 64, "evaluations": 1,
            "probe_every": 1 << 30, "batch": BATCH, "learning_rate": 1e-3}


def study_run(folder: Path, steps: int) -> Run:
    """Return a study's run of Qwen3 with its own activation."""
    found = describe({"wanted": {"name": "qwen3", "sizes": SIZES}, "vocabulary": 256, "context": SIZES["context"],
                      "rows": BATCH, "match": "params", "seed": 1, "arms": [{"name": "swiglu"}]})
    dataset = Dataset(folder)
    return Run({"format": 2, "purpose": "judge", "activation": {"name": "swiglu", "formula": None}, "seed": 1,
                "model": {"context": SIZES["context"], "own": found["own"], "widths": found["arms"][0]["widths"],
                          "hidden": found["arms"][0]["widths"][0]},
                "data": {"sha256": dataset.info["sha256"]}, "training": TRAINING | {"steps": steps},
                "machine": {"engine": "torch", "dtype": "float32", "threads": 1, "device": "cpu"}}, dataset)


def trainer_seconds(run: Run, steps: int) -> float:
    """Return the seconds that the Trainer's loop takes for as many steps on the same family's model."""
    from transformers import Trainer, TrainingArguments

    from nonlin.data import batch
    from nonlin.subject.building import family_model

    rows = [batch(run.dataset, index, BATCH, SIZES["context"], 1) for index in range(steps)]
    examples = [{"input_ids": torch.from_numpy(part[0][i]), "labels": torch.from_numpy(part[0][i])}
                for part in rows for i in range(BATCH)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=1e-3, weight_decay=0.1,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
            dataloader_pin_memory=False)
        trainer = Trainer(model=family_model(run.config["model"]["own"], 1).train(), args=arguments,
                          train_dataset=examples)  # type: ignore[arg-type]
        begin = time.perf_counter()
        trainer.train()
        return time.perf_counter() - begin


def study_seconds(run: Run, steps: int) -> float:
    """Return the seconds that a study's loop takes for so many steps."""
    begin = time.perf_counter()
    for _ in range(steps):
        run.step()
    return time.perf_counter() - begin


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    text = "".join(f"{i}: the quick brown fox jumps over {i * i % 89} lazy dogs\n" for i in range(3000)).encode()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Corpus([("text", text)], "a text of counted lines"), Path(folder), "bytes")
        run = study_run(Path(folder), (given.rounds + 1) * given.steps)
        found: dict[str, list[float]] = {"study": [], "trainer": []}
        study_seconds(run, 3)
        trainer_seconds(run, 3)
        for _ in range(given.rounds):
            for name, measure in (("study", study_seconds), ("trainer", trainer_seconds)):
                found[name].append(given.steps * BATCH * SIZES["context"] / measure(run, given.steps))
    medians = {name: statistics.median(values) for name, values in found.items()}
    record: dict[str, Any] = {"nonlin": nonlin.__version__, "torch": torch.__version__, "steps": given.steps,
                              "tokens_per_second": found, "medians": medians,
                              "ratio": medians["study"] / medians["trainer"]}
    print(f"a study's loop {medians['study']:,.0f} tokens per second, the Trainer's {medians['trainer']:,.0f}: "
          f"{record['ratio']:.2f} times")
    if given.record:
        given.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
