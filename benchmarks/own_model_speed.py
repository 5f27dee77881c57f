"""How fast a study trains a user's own model, beside the user's own Trainer loop on the same model.

    python -m benchmarks.own_model_speed [--steps 30] [--rounds 5] [--precision bfloat16] [--record FILE]

Both train Qwen3 with its own activation on one thread, by AdamW, on batches of the same size from one text. The loops
take turns in one process, in rounds. Of each round counts the median step, from the end of one to the end of the next,
so that neither pays for its start; the ratio is of the medians of the rounds.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import nonlin
from nonlin.data import Corpus, Dataset, batch
from nonlin.data.preparing import prepare
from nonlin.subject import describe
from nonlin.subject.building import family_model
from nonlin.training.trial import Run

TRAINING = {"weight_decay": 0.1, "warmup_fraction": 0.2, "clip": 1.0, "evaluation_tokens": 64, "evaluations": 1,
            "probe_every": 1 << 30, "learning_rate": 1e-3}
_FIRST = 3  # steps of a round that do not count: a Trainer's first ones make its optimizer's state


def study_run(folder: Path, steps: int, given: Any) -> Run:
    """Return a study's run of Qwen3 with its own activation."""
    sizes = {"layers": given.layers, "dim": given.dim, "heads": given.heads, "kv_heads": given.heads,
             "context": given.context, "vocabulary": 256}
    found = describe({"wanted": {"name": "qwen3", "sizes": sizes}, "vocabulary": 256, "context": given.context,
                      "rows": given.batch, "match": "params", "seed": 1, "arms": [{"name": "swiglu"}]})
    dataset = Dataset(folder)
    return Run({"format": 2, "purpose": "judge", "activation": {"name": "swiglu", "formula": None}, "seed": 1,
                "model": {"context": given.context, "own": found["own"], "widths": found["arms"][0]["widths"],
                          "hidden": found["arms"][0]["widths"][0]},
                "data": {"sha256": dataset.info["sha256"]},
                "training": TRAINING | {"batch": given.batch, "steps": steps},
                "machine": {"engine": "torch", "dtype": given.precision, "threads": 1, "device": "cpu"}}, dataset)


def study_step(run: Run, steps: int) -> float:
    """Return the median seconds of a study's steps."""
    ends = [time.perf_counter()]
    for _ in range(steps + _FIRST):
        run.step()
        ends.append(time.perf_counter())
    return _median(ends)


def trainer_step(run: Run, steps: int) -> float:
    """Return the median seconds of the steps of a Trainer's loop on the same family's model."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    rows, context = run.recipe["batch"], run.config["model"]["context"]
    drawn = [batch(run.dataset, index, rows, context, 1)[0] for index in range(steps + _FIRST)]
    examples = [{"input_ids": torch.from_numpy(part[i]), "labels": torch.from_numpy(part[i])}
                for part in drawn for i in range(rows)]
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=rows, max_steps=steps + _FIRST, learning_rate=1e-3,
            weight_decay=0.1, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
            bf16=run.config["machine"]["dtype"] == "bfloat16", dataloader_pin_memory=False)
        trainer = Trainer(model=family_model(run.config["model"]["own"], 1).train(), args=arguments,
                          train_dataset=examples, callbacks=[Clock()])  # type: ignore[arg-type]
        trainer.train()
    return _median(ends)


def _median(ends: list[float]) -> float:
    taken = [b - a for a, b in itertools.pairwise(ends)]
    return statistics.median(taken[_FIRST - 1:])


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("steps", 30), ("rounds", 5), ("layers", 2), ("dim", 64), ("heads", 2), ("context", 64),
                        ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    text = "".join(f"{i}: the quick brown fox jumps over {i * i % 89} lazy dogs\n" for i in range(3000)).encode()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Corpus([("text", text)], "a text of counted lines"), Path(folder), "bytes")
        run = study_run(Path(folder), (given.rounds + 1) * (given.steps + _FIRST), given)
        found: dict[str, list[float]] = {"study": [], "trainer": []}
        for measure in (study_step, trainer_step):
            measure(run, 1)
        for number in range(given.rounds):
            turns = [("study", study_step), ("trainer", trainer_step)]
            for name, measure in turns if number % 2 == 0 else turns[::-1]:
                found[name].append(given.batch * given.context / measure(run, given.steps))
    medians = {name: statistics.median(values) for name, values in found.items()}
    record: dict[str, Any] = {
        "nonlin": nonlin.__version__, "torch": torch.__version__, "load": os.getloadavg()[0],
        **{name: value for name, value in vars(given).items() if name != "record"},
        "tokens_per_second": found, "medians": medians, "ratio": medians["study"] / medians["trainer"]}
    print(f"a study's loop {medians['study']:,.0f} tokens per second, the Trainer's {medians['trainer']:,.0f}: "
          f"{record['ratio']:.2f} times (load {record['load']:.1f})")
    if given.record:
        given.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
