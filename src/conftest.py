"""Which modules' examples cannot run here: those of a compiler or an engine that is not installed."""

import importlib.util

_NEEDS = {"triton": ["nonlin/kernels/triton/*"], "ray": ["nonlin/study/engines/ray*"],
          **{name: [f"nonlin/tracking/to_{name}.py"] for name in ("wandb", "mlflow", "tensorboard", "trackio")}}
_MISSING = [name for name in _NEEDS if importlib.util.find_spec(name) is None]

collect_ignore_glob = [pattern for name in _MISSING for pattern in _NEEDS[name]]


def pytest_report_header():
    return [f"examples not run, since {name} is not installed: {', '.join(_NEEDS[name])}" for name in _MISSING]
