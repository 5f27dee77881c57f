"""One run: a pure function from its configuration (and the data it names) to its record."""

import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from nonlin import streams
from nonlin.data import Dataset, batch, evaluation_batches
from nonlin.errors import UserError
from nonlin.files import finite, replacing
from nonlin.kernels.transformer.engine import engine
from nonlin.model import ModelConfig, flops_per_token
from nonlin.model.language_model import LanguageModel
from nonlin.subject.watching import layer_measures as own_layer_measures
from nonlin.subject.watching import sparsity as own_sparsity
from nonlin.subject.widths import flops_per_token as own_flops
from nonlin.training import evaluation, machine, probes, recipe
from nonlin.training.checkpoint import Checkpoints, State
from nonlin.training.config import METRICS, config_hash, definition_of
from nonlin.training.devices import devices_of
from nonlin.training.graphs import StepGraph
from nonlin.training.limits import must_be_possible
from nonlin.training.optimizer import make_optimizer, scale_initial, set_rate
from nonlin.training.trunks import Trunks

Progress = Callable[[dict[str, Any]], None]
WEIGHTS = "weights.safetensors"
INITIAL_SHARE = 0.125
_DIVERGED_NATS = 3.0  # a loss that far above the first one does not come back within a study


def build_model(config: dict[str, Any]) -> Any:
    """Return the untrained model of a configuration, on its device: ours, or the user's own."""
    settings = config["machine"]
    if "own" in config["model"]:
        from nonlin.subject import build

        own = build(config, definition_of(config))
        scale_initial(own, config["training"], config["model"])
        own = own.to(settings.get("device", "cpu"))
        if settings.get("compile"):
            own.compile_steps()
        return own
    chosen = engine(settings["engine"], settings["dtype"])
    model = LanguageModel(ModelConfig(**config["model"]), definition_of(config), chosen, config["seed"],
                          config.get("streams", {}).get("feed_forward"))  # older studies name none
    scale_initial(model, config["training"], config["model"])
    return model.to(settings.get("device", "cpu"))


class Run:
    """A model in training: ``step()`` does one step and returns the values to log.

    Where the configuration's machine has several "devices", it is one of as many processes that train together.
    """

    def __init__(self, config: dict[str, Any], dataset: Dataset):
        self.config, self.dataset, self.recipe = config, dataset, config["training"]
        machine.prepare_process(config["machine"]["threads"])
        must_be_possible(config, dataset)
        self.devices = devices_of(config)
        self.trained = bool(config["model"].get("own", {}).get("checkpoint"))
        self.model = build_model(config)
        self.outside = self.model.outside() if "own" in config["model"] else None
        self.devices.wrap(self.model)
        if self.devices.rank:  # the rows of each process have dropout of their own
            torch.manual_seed(streams.torch_seed(f"dropout of process {self.devices.rank}", config["seed"]))
        captured = config["machine"].get("graphs", False) and self.devices.size == 1 and recipe.capturable(self.recipe)
        self.optimizer = make_optimizer(self.model, self.recipe, config["model"],
                                        native=config["machine"]["engine"] != "torch", captured=captured)
        self.parts = recipe.choice(self.recipe, "accumulation")
        self.device = next(self.model.parameters()).device
        self.tokens_a_step = self.recipe["batch"] * config["model"]["context"]
        self.index = 0
        self.graph = StepGraph() if captured else None

    def step(self, probe: bool = False) -> tuple[float, float, float, list[dict[str, float]] | None]:
        """Train on the next batch; return (loss in nats, learning rate, gradient norm, layer measures)."""
        inputs, targets = (
            self.devices.part(torch.from_numpy(part)).to(self.device)
            for part in batch(self.dataset, self.index, self.recipe["batch"], self.config["model"]["context"],
                              self.config["seed"]))
        rate = recipe.learning_rate(self.recipe, self.index)
        set_rate(self.optimizer, rate)
        if self.graph is None or probe:  # a probe reads numbers back
            loss, norm, layers = self._update(inputs, targets, probe)
        else:
            loss, norm, layers = self.graph(self._update, inputs, targets)
        self.index += 1
        return self.devices.mean(loss), rate, self.devices.whole_value(norm), layers

    def _update(self, inputs: Tensor, targets: Tensor, probe: bool = False
                ) -> tuple[Tensor, Tensor, list[dict[str, float]] | None]:
        """Change the weights by one batch; return its loss, the gradient's norm, and the layers' measures."""
        losses, seen = [], []
        for number, rows in enumerate(zip(inputs.chunk(self.parts), targets.chunk(self.parts), strict=True), 1):
            watched: Any = probes.Watched() if probe else None
            with self.devices.accumulating(number < self.parts):
                loss = self.devices.loss(*rows, watched)
                if watched is not None:
                    probes.gradient_outputs(watched)
                    seen.append(watched)
                (loss / self.parts if self.parts > 1 else loss).backward()
            losses.append(loss.detach())
        loss = torch.stack(losses).mean() if self.parts > 1 else losses[0]
        layers = self._layers(probes.joined(seen)) if probe else None
        norm = self.optimizer.step(self.recipe["clip"] or math.inf)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm, layers

    def _layers(self, watched: Any) -> list[dict[str, float]]:
        everywhere = self.devices.gathered(watched)
        with self.devices.whole():
            if "own" in self.config["model"]:
                return own_layer_measures(everywhere)
            return probes.layer_measures(self.model, everywhere)

    def evaluate(self, share: float = 1.0) -> float:
        """Return bits per byte on the fixed evaluation tokens, or on a fixed share of them."""
        tokens = max(1, int(share * self.recipe["evaluation_tokens"]))
        self.model.eval()  # a user's own model may have dropout
        try:
            return self._loss(self.model, tokens)
        finally:
            self.model.train()

    def _loss(self, model: Any, tokens: int) -> float:
        rows = max(1, self.recipe["batch"] // self.parts)
        batches = evaluation_batches(self.dataset, tokens, rows, self.config["model"]["context"])
        return evaluation.evaluate(model, batches, self.dataset.info["bytes_per_token_validation"])

    @functools.cached_property
    def before(self) -> float:
        """Bits per byte of the trained model before another activation was put in, on the same evaluation tokens."""
        from nonlin.subject.building import untouched

        return self._loss(untouched(self.config).to(self.device).eval(), self.recipe["evaluation_tokens"])

    def sparsity(self) -> float:
        """Return the mean over layers of :func:`probes.sparsity` on validation text."""
        tokens, _ = next(iter(evaluation_batches(self.dataset, 1, 1, self.config["model"]["context"])))
        watched: Any = probes.Watched()
        self.model.eval()
        with torch.no_grad():
            self.model(torch.from_numpy(tokens).to(self.device), watched)
        with self.devices.whole():
            if "own" in self.config["model"]:
                return own_sparsity(watched)
            shares = [probes.sparsity(hidden, block.feed_forward.down.weight)  # type: ignore[union-attr]
                      for block, (_, hidden, _) in zip(self.model.blocks, watched, strict=True)]
        return sum(shares) / len(shares)


class _Log:
    """metrics.jsonl: a new file each run, which may begin as another, or the part of one that a checkpoint knows."""

    def __init__(self, path: Path, known_bytes: int = 0, begin: str = ""):
        self.file = path.open("r+" if known_bytes else "w", buffering=1)
        self.file.write(begin)
        if known_bytes:
            self.file.truncate(known_bytes)
            self.file.seek(known_bytes)

    def write(self, **line: Any) -> None:
        self.file.write(json.dumps(finite(line), allow_nan=False) + "\n")


def run_trial(config: dict[str, Any], dataset_dir: Path, trial_dir: Path,
              progress: Progress | None = None, checkpoints: Checkpoints | None = None, trunks: Path | None = None
              ) -> dict[str, Any]:
    """Train one model and return its record; metrics go to ``trial_dir/metrics.jsonl`` as they come.

    With ``checkpoints`` the run goes on from the checkpoint that lies there, and may be asked to stop (Stopped).
    ``trunks`` is a folder in which runs of "wsd" that differ in their length share their beginning.

    A run whose loss stops being a number, or climbs 3 nats above its first, is "diverged": a result.
    Everything outside the record's "timing" is a function of ``config`` and the data alone, on one machine.
    """
    dataset = Dataset(dataset_dir)
    if dataset.info["sha256"] != config["data"]["sha256"]:
        raise UserError(f"the data in {dataset_dir} is not what the trial was planned for: its hash differs. "
                        "Start a new study in another folder.")
    if "own" not in config["model"] and dataset.info["vocabulary"] > config["model"]["vocabulary"]:
        raise UserError(f"the data in {dataset_dir} is not what the trial was planned for: it has "
                        f"{dataset.info['vocabulary']:,} tokens, and the model {config['model']['vocabulary']:,}. "
                        "Start a new study in another folder.")
    trial_dir.mkdir(parents=True, exist_ok=True)
    machine.reset_peak_memory()
    outcome, run = _run(config, dataset, trial_dir, progress or (lambda _: None), checkpoints, trunks)
    record = {
        "format": 1, "config_hash": config_hash(config), **outcome,
        "parameters": sum(p.numel() for p in run.model.parameters()), "hidden": config["model"]["hidden"],
        "weights_sha256": None, **_of_model(config, run),
    }
    record["timing"]["peak_memory_bytes"] = machine.peak_memory_bytes()
    kept = config["purpose"] == "judge" and config["training"].get("keep_weights", True)
    if kept and record["status"] == "finished":
        weights = run.devices.weights()  # of all processes, where several train together
        if run.devices.rank == 0:
            record["weights_sha256"] = _save_weights(weights, trial_dir / WEIGHTS)
    return finite(record)


def _of_model(config: dict[str, Any], run: Run) -> dict[str, Any]:
    """Return what a record says of the model alone."""
    if "own" in config["model"]:
        own = config["model"]["own"]
        return {"flops_per_token": own_flops(own, config["model"]["widths"], run.model.gated),
                "outside_sha256": run.outside}
    found: dict[str, Any] = {"flops_per_token": flops_per_token(run.model.config, run.model.definition.gated)}
    if run.model.config.norm == "layer" and config["machine"]["engine"] != "torch":
        found["served_by_torch"] = ["layer_norm"]  # the transformer kernels have none
    return found


def _run(config: dict[str, Any], dataset: Dataset, trial_dir: Path, progress: Progress,
         checkpoints: Checkpoints | None, trunks: Path | None) -> tuple[dict[str, Any], Run]:
    """Train from the start, or from where a checkpoint lies, to the end; return what came out, and the run."""
    run, metrics = Run(config, dataset), trial_dir / METRICS
    trunk = Trunks(trunks, config) if trunks and run.devices.size == 1 else None
    found = _found(checkpoints, config, run, metrics)
    begun = found or (trunk.read(run.optimizer) if trunk else None)
    if begun and not found and not ("metrics" in begun.position and begun.fits(run.devices, run.optimizer)):
        begun = None
    if run.devices.rank > 0:  # the first process alone writes
        metrics = Path(os.devnull)
    if found and run.devices.rank == 0:
        log = _Log(metrics, found.position["log_bytes"])
    else:
        log = _Log(metrics, begin=begun.position["metrics"] if begun and not found else "")
    course = _Course(**{"processor_seconds": None} | begun.position["course"], losses=begun.losses) if begun \
        else _Course()
    if begun:
        begun.put(run.devices, run.optimizer)
    run.index = course.step
    del found, begun  # its weights and moments are the run's now
    try:
        outcome = _train(run, log, progress, course, checkpoints, trunk)
    finally:
        log.file.close()
    if checkpoints and run.devices.rank == 0:
        checkpoints.remove()
    return outcome, run


def _found(checkpoints: Checkpoints | None, config: dict[str, Any], run: Run, metrics: Path) -> State | None:
    """Return the state that a run goes on from, None where it is to begin: on all devices alike."""
    if checkpoints is None:
        return None
    found = checkpoints.read(config_hash(config), run.optimizer)
    fits = (found is not None and "log_bytes" in found.position and metrics.is_file()
            and metrics.stat().st_size >= found.position["log_bytes"] and found.fits(run.devices, run.optimizer))
    return found if run.devices.unanimous(fits) else None


@dataclass
class _Course:
    """A run's progress and the measurements on the way; JSON values but for the losses."""

    step: int = 0
    initial: float | None = None
    best: float = math.inf
    final: float | None = None
    layers: list[dict[str, float]] | None = None
    seconds: float = 0.0
    training_seconds: float = 0.0
    processor_seconds: float | None = 0.0  # of the steps, by all threads; None: not known from before
    losses: list[float] = field(default_factory=list)
    evaluations: list[list[float]] = field(default_factory=list)  # [tokens, bits per byte]

    def position(self) -> dict[str, Any]:
        """Return it without the losses."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "losses"}


def _train(run: Run, log: _Log, progress: Progress, course: _Course, checkpoints: Checkpoints | None,
           trunk: Trunks | None) -> dict[str, Any]:
    recipe_, steps = run.recipe, run.recipe["steps"]
    before, start = course.seconds, time.perf_counter()
    if course.initial is None:
        # Without trained weights it only tells what an untrained model knows.
        course.initial = course.best = run.evaluate(1.0 if run.trained else INITIAL_SHARE)
        course.evaluations.append([0, course.initial])
        log.write(kind="evaluation", step=0, tokens=0, bits_per_byte=course.initial)
    evaluate_at = {round(steps * (i + 1) / recipe_["evaluations"]) for i in range(recipe_["evaluations"])} | {steps}
    status = "finished"
    for index in range(course.step, steps):
        begin, processor = time.perf_counter(), time.process_time()
        probe = (index + 1) % recipe_["probe_every"] == 0 or index + 1 == steps
        loss, rate, norm, measured = run.step(probe)
        course.training_seconds += time.perf_counter() - begin
        if course.processor_seconds is not None:
            course.processor_seconds += time.process_time() - processor
        course.losses.append(loss)
        course.step = done = index + 1
        tokens = done * run.tokens_a_step
        if index % 5 == 0 or done == steps:
            log.write(kind="train", step=done, tokens=tokens, loss_nats=loss, learning_rate=rate, gradient_norm=norm)
        if index % 20 == 0:
            progress({"step": done, "steps": steps, "loss_nats": loss if math.isfinite(loss) else None})
        if not math.isfinite(loss) or not math.isfinite(norm) or loss > course.losses[0] + _DIVERGED_NATS:
            status = "diverged"
            break
        if measured is not None:
            course.layers = measured
            log.write(kind="probe", step=done, layers=measured)
        if done in evaluate_at:
            course.final = run.evaluate()
            course.best = min(course.best, course.final)
            course.evaluations.append([tokens, course.final])
            log.write(kind="evaluation", step=done, tokens=tokens, bits_per_byte=course.final)
        if trunk and trunk.shared and done == trunk.at:
            course.seconds = before + time.perf_counter() - start
            trunk.save(run.devices, run.optimizer, {
                "metrics": Path(log.file.name).read_text(), "course": course.position()}, course.losses)
        if checkpoints and done < steps and run.devices.agreed(checkpoints.due()):
            course.seconds = before + time.perf_counter() - start
            checkpoints.save(config_hash(run.config), run.devices, run.optimizer,
                             {"log_bytes": log.file.tell(), "course": course.position()}, course.losses)
    if course.final is None or not math.isfinite(course.final):
        status = "diverged"
    return {
        "status": status, "bits_per_byte": course.final if status == "finished" else None,
        "initial_bits_per_byte": course.initial, "best_bits_per_byte": course.best,
        "spike_score": probes.spike_score(course.losses),
        "dead_share": _mean(course.layers, "dead_share"), "layers": course.layers,
        "sparsity": run.sparsity() if status == "finished" else None,
        **({"before_bits_per_byte": run.before, "evaluations": course.evaluations}
           if run.trained and run.config["purpose"] == "judge" else {}),
        "timing": {"tokens_per_second": len(course.losses) * run.tokens_a_step / max(course.training_seconds, 1e-9),
                   "tokens_per_processor_second": len(course.losses) * run.tokens_a_step / course.processor_seconds
                   if run.config["machine"].get("device", "cpu") == "cpu" and course.processor_seconds else None,
                   "seconds": before + time.perf_counter() - start},
    }


def _mean(layers: list[dict[str, float]] | None, key: str) -> float | None:
    return None if not layers else sum(layer[key] for layer in layers) / len(layers)


def _save_weights(state: dict[str, torch.Tensor], path: Path) -> str:
    with replacing(path) as temporary:
        save_file(state, temporary)
        return hashlib.sha256(temporary.read_bytes()).hexdigest()
