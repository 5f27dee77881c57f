"""A recipe from the JSON of ``transformers.TrainingArguments``: read as numbers and words, checked, nothing run.

Each field is used, or named with the reason why it is not: none is dropped in silence.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nonlin.errors import UserError
from nonlin.files import Unreadable, read_bytes, read_json

_MOST_BYTES, _MOST_FIELDS, _MOST_SHOWN = 1 << 20, 1000, 60

_ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_hf")
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "cosine_with_min_lr": "cosine", "warmup_stable_decay": "wsd",
              "constant": "wsd", "constant_with_warmup": "wsd"}

#: Fields that nonlin does not use, by the reason; a name that ends in a star stands for all that begin so.
_REASONS: dict[str, tuple[str, ...]] = {
    "would change training, and nonlin does not do it": (
        "label_smoothing_factor", "neftune_noise_alpha", "optim_args", "optim_target_modules", "group_by_length",
        "train_sampling_strategy", "auto_find_batch_size", "lr_scheduler_kwargs.*"),
    "a study has its own seeds, length, text and evaluation": (
        "seed", "data_seed", "full_determinism", "num_train_epochs", "do_*", "eval_*", "per_device_eval_batch_size",
        "prediction_loss_only", "metric_for_best_model", "greater_is_better", "load_best_model_at_end",
        "include_for_metrics", "include_inputs_for_metrics", "include_tokens_per_second",
        "include_num_input_tokens_seen", "batch_eval_metrics", "label_names", "remove_unused_columns",
        "length_column_name", "ignore_data_skip", "resume_from_checkpoint", "overwrite_output_dir",
        "restore_callback_states_from_checkpoint", "average_tokens_across_devices", "past_index", "use_cache",
        "jit_mode_eval", "bf16_full_eval", "fp16_full_eval"),
    "decides where and how fast it runs, and nonlin measures that": (
        "use_cpu", "no_cuda", "use_ipex", "use_mps_device", "tf32", "torch_compile*", "use_liger_kernel",
        "liger_kernel_config", "gradient_checkpointing*", "activation_checkpointing*", "torch_empty_cache_steps",
        "dataloader_*", "ddp_*", "fsdp*", "deepspeed", "accelerator_config", "parallelism_config", "local_rank",
        "tpu_*", "half_precision_backend", "fp16_*", "mp_parameters", "skip_memory_metrics", "split_batches",
        "ray_scope", "debug"),
    "decides what is logged, saved and sent, and a study keeps everything": (
        "output_dir", "log_*", "logging_*", "save_*", "hub_*", "push_to_hub*", "report_to", "run_name", "project",
        "trackio_*", "disable_tqdm", "enable_jit_checkpoint", "_n_gpu"),
}
_UNKNOWN = "no field that nonlin knows"


@dataclass
class _Reading:
    """The fields of a file as they are taken, and those left over."""

    fields: dict[str, Any]
    words: dict[str, Any] = field(default_factory=dict[str, Any])
    left: list[tuple[str, Any, str]] = field(default_factory=list[tuple[str, Any, str]])

    def number(self, name: str, low: float = -math.inf, high: float = math.inf, whole: bool = False) -> Any:
        """Take a number; None where the file does not say one. UserError for another value."""
        value = self.fields.pop(name, None)
        if value is None:
            return None
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or not low <= value <= high or (whole and value != int(value)):
            raise _wrong(name, f"be a {'whole ' if whole else ''}number" + _within(low, high), value)
        return int(value) if whole else value

    def yes(self, name: str) -> bool:
        """Take a truth value, by default no."""
        value = self.fields.pop(name, False)
        if value not in (True, False, None) or isinstance(value, float):
            raise _wrong(name, "be true or false", value)
        return bool(value)

    def text(self, name: str, default: str) -> str:
        """Take a text."""
        value = self.fields.pop(name, default)
        if not isinstance(value, str):
            raise _wrong(name, "be a text", value)
        return value

    def leave(self, name: str, value: Any, reason: str) -> None:
        """Name a field that is not used."""
        self.left.append((name, value, reason))


def read_training_arguments(path: Path, given: Collection[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """Return (words, lines): what a file of TrainingArguments asks for, and lines that name each field not used.

    The words are those of ``nonlin compare``: "learning_rate", "batch" (sequences per step), "accumulation", "steps",
    "optimizer", "schedule", "warmup", "decay", "final_fraction", "weight_decay", "clip", "precision", "beta1", "beta2",
    "epsilon". A word in ``given`` is decided elsewhere, and its field is named as not used. Raises UserError for a file
    that is no such JSON and for a value of a wrong kind. An optimizer, a schedule or a precision that nonlin does not
    have raises it too, unless it is given.
    """
    reading = _Reading(_fields(path))
    for word, fields, take in _WORDS:
        present = {name: reading.fields[name] for name in fields if name in reading.fields}
        if word in given:
            for name, value in present.items():
                del reading.fields[name]
                reading.leave(name, value, "the call says it")
        else:
            take(reading)
    for name, value in reading.fields.items():
        reading.leave(name, value, _reason(name))
    return reading.words, _lines(reading.left)


def _fields(path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            raise Unreadable("it names a field twice")
        return made

    try:
        if len(data := read_bytes(path)) > _MOST_BYTES:
            raise Unreadable(f"it is larger than {_MOST_BYTES:,} bytes")
        read_json(path)  # refuses what is nested too deeply
        found = json.loads(data, object_pairs_hook=unique)
        if not isinstance(found, dict) or len(found) > _MOST_FIELDS:
            raise Unreadable(f"it is no object of at most {_MOST_FIELDS} fields")
    except Unreadable as error:
        raise UserError(f"recipe: {path} must be the JSON of transformers.TrainingArguments; {error}. Write it with "
                        "training_arguments.to_json_string().") from None
    return found


def _optimizer(reading: _Reading) -> None:
    if "optim" not in reading.fields:
        return
    name = reading.text("optim", "")
    if name in _ADAMW or name == "muon":
        reading.words["optimizer"] = "muon" if name == "muon" else "adamw"
    else:
        raise _wrong("optim", f"be one of {', '.join(_ADAMW)}, muon", name, "Choose --optimizer adamw or muon.")


def _schedule(reading: _Reading) -> None:
    options = reading.fields.pop("lr_scheduler_kwargs", None) or {}
    if not isinstance(options, Mapping):
        raise _wrong("lr_scheduler_kwargs", "be an object", options)
    options = _Reading(dict(options))
    name = reading.text("lr_scheduler_type", "linear")
    if name not in _SCHEDULES:
        raise _wrong("lr_scheduler_type", f"be one of {', '.join(_SCHEDULES)}", name,
                     "Choose --schedule linear, cosine or wsd.")
    reading.words["schedule"] = _SCHEDULES[name]
    if name.startswith("constant"):
        reading.words["decay"] = 0.0
        if name == "constant":  # without a warm-up, whatever warmup_steps says
            for one in ("warmup_steps", "warmup_ratio"):
                if reading.fields.get(one):
                    reading.leave(one, reading.fields.pop(one), "a constant rate has no warm-up")
            reading.words["warmup"] = 0.0
    elif name == "warmup_stable_decay":
        if (decay := options.number("num_decay_steps", 0, whole=True)) is not None:
            reading.words["decay"] = decay
        reading.words["final_fraction"] = options.number("min_lr_ratio", 0, 1) or 0.0
        if options.fields.get("decay_type") == "linear":
            del options.fields["decay_type"]
        else:  # the default of transformers is a cosine
            options.fields.setdefault("decay_type", "cosine")
    elif name == "cosine_with_min_lr":
        reading.words["final_fraction"] = _least(reading, options)
    if options.fields.get("num_cycles") == 0.5:
        del options.fields["num_cycles"]  # half a cosine, as here
    for key, value in options.fields.items():
        reading.leave(f"lr_scheduler_kwargs.{key}", value, _reason("lr_scheduler_kwargs.*"))


def _least(reading: _Reading, options: _Reading) -> float:
    share, rate = options.number("min_lr_rate", 0, 1), options.number("min_lr", 0)
    peak = reading.fields.get("learning_rate")
    if share is None and rate is not None:
        if isinstance(peak, int | float) and peak > 0:
            share = rate / peak
        elif rate:
            reading.leave("lr_scheduler_kwargs.min_lr", rate, "it is a rate, and the file says no learning_rate")
    return min(share or 0.0, 1.0)


def _warmup(reading: _Reading) -> None:
    ratio, steps = reading.number("warmup_ratio", 0, 0.999), reading.number("warmup_steps", 0)
    if "warmup" in reading.words:
        return
    # As transformers reads them: steps below one are a share; the ratio counts only without them.
    found = steps if steps else ratio
    if found is not None or steps is not None:
        reading.words["warmup"] = found or 0.0


def _batch(reading: _Reading) -> None:
    rows = reading.number("per_device_train_batch_size", 1, whole=True)
    parts = reading.number("gradient_accumulation_steps", 1, whole=True)
    if rows is not None:
        reading.words["batch"] = rows * (parts or 1)
    if parts is not None and parts > 1:
        reading.words["accumulation"] = parts


def _precision(reading: _Reading) -> None:
    if not {"bf16", "fp16"} & set(reading.fields):
        return
    if reading.yes("fp16"):
        raise _wrong("fp16", "be false: float16 needs a scaled loss, which nonlin does not do", True,
                     "Choose --precision bfloat16 or float32.")
    reading.words["precision"] = "bfloat16" if reading.yes("bf16") else "float32"


def _steps(reading: _Reading) -> None:
    steps = reading.number("max_steps", whole=True)
    if steps is not None and steps > 0:
        reading.words["steps"] = steps


def _plain(word: str, name: str, low: float, high: float = math.inf) -> tuple[str, tuple[str, ...], Any]:
    def take(reading: _Reading) -> None:
        if (value := reading.number(name, low, high)) is not None:
            reading.words[word] = value

    return word, (name,), take


#: A word, the fields that say it, and how they are taken. Whoever comes first sees all fields.
_WORDS: tuple[tuple[str, tuple[str, ...], Callable[[_Reading], None]], ...] = (
    ("optimizer", ("optim",), _optimizer),
    ("schedule", ("lr_scheduler_type", "lr_scheduler_kwargs"), _schedule),
    ("warmup", ("warmup_steps", "warmup_ratio"), _warmup),
    ("batch", ("per_device_train_batch_size", "gradient_accumulation_steps"), _batch),
    ("precision", ("bf16", "fp16"), _precision),
    ("steps", ("max_steps",), _steps),
    _plain("learning_rate", "learning_rate", 0), _plain("weight_decay", "weight_decay", 0),
    _plain("clip", "max_grad_norm", 0), _plain("beta1", "adam_beta1", 0, 1), _plain("beta2", "adam_beta2", 0, 1),
    _plain("epsilon", "adam_epsilon", 0),
)


def _reason(name: str) -> str:
    for reason, names in _REASONS.items():
        if any(name.startswith(one[:-1]) if one.endswith("*") else name == one for one in names):
            return reason
    return _UNKNOWN


def _lines(left: list[tuple[str, Any, str]]) -> list[str]:
    """Return a line a reason; the reasons that people should know of come first."""
    groups: dict[str, list[str]] = {}
    for name, value, reason in left:
        if reason == next(iter(_REASONS)) and not value:
            reason = "says nothing"
        groups.setdefault(reason, []).append(f"{_shown(name)} = {_shown(json.dumps(value))}")
    order = ["the call says it", *list(_REASONS)[:1], _UNKNOWN]
    ordered = sorted(groups, key=lambda reason: order.index(reason) if reason in order else len(order))
    return [f"{reason}: {', '.join(groups[reason])}" for reason in ordered]


def _shown(text: str) -> str:
    """Return a text of a file as a terminal may show it."""
    plain = "".join(c if c.isprintable() else "�" for c in text)
    return plain if len(plain) <= _MOST_SHOWN else plain[:_MOST_SHOWN - 1] + "…"


def _within(low: float, high: float) -> str:
    if high < math.inf:
        return f" from {low:g} to {high:g}"
    return f" from {low:g} on" if low > -math.inf else ""


def _wrong(name: str, must: str, value: Any, fix: str = "Correct the file.") -> UserError:
    return UserError(f"recipe: {name} must {must}; got {_shown(json.dumps(value))}. {fix}")
