"""The choice of an engine and its options; loads nothing else, since the command line's help reads it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nonlin.errors import UserError, rule, unknown_name

ENGINES = ("processes", "ray", "slurm")
PARALLEL = ("ddp", "fsdp")


@dataclass(frozen=True)
class EngineChoice:
    """The engine that runs trials; None means as many as fit. Raises UserError for values that make no engine."""

    name: str = "processes"
    workers: int | None = None
    trials_per_gpu: int | None = None
    devices_per_trial: int = 1
    parallel: str = "ddp"
    address: str = "auto"
    slurm: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.name not in ENGINES:
            raise unknown_name("engine", self.name, ENGINES)
        for option in ("workers", "trials_per_gpu", "devices_per_trial"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UserError(rule("engine", option.replace("_", "-"), "be 1 or more", value, "Choose another."))
        if self.parallel not in PARALLEL:
            raise unknown_name("way to train on several devices", self.parallel, PARALLEL)
        for option, engine, given in (("slurm", "slurm", self.slurm), ("address", "ray", self.address != "auto")):
            if given and self.name != engine:
                raise UserError(f"engine: {option} must come with --engine {engine}; got --engine {self.name}. Add it.")
        if self.parallel != PARALLEL[0] and self.devices_per_trial == 1:
            raise UserError(rule("engine", "parallel", "come with --devices-per-trial of 2 or more", self.parallel,
                                 "Add it, or leave --parallel out."))


def chosen_engine(engine: str | EngineChoice, workers: int | None = None) -> EngineChoice:
    """Return the choice that a name and a number of workers make; a choice is returned as it is."""
    return EngineChoice(engine, workers) if isinstance(engine, str) else engine
