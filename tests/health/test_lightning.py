"""The callback in real fits of Lightning, under both of its names: what is seen, logged, warned of, and left behind."""

import csv
import importlib
import logging
import os
import subprocess
import sys
import warnings

import pytest
import torch

from nonlin import health
from nonlin.health import callbacks
from tests.health.test_watch import Model, batch, hooks

NAMES = ("lightning.pytorch", "pytorch_lightning")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


@pytest.fixture(params=NAMES)
def lightning(request, monkeypatch):
    """One of the packages, in a process that has imported no other."""
    module = pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    other = next(name for name in NAMES if name != request.param)
    monkeypatch.delitem(sys.modules, other, raising=False)
    return module


def model_with_dead_units():
    model = Model()
    with torch.no_grad():
        model.layers[1].gate.bias[:6] = -60
    return model


def module_of(lightning, model, fails_at=None):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.hooked = model, []

        def training_step(self, x, index):
            if index == fails_at:
                raise RuntimeError("out of luck")
            self.hooked.append(hooks(self.model) > 0)
            loss = self.model(x).square().mean()
            self.log("loss", loss)
            return loss

        def validation_step(self, x, index):
            assert not self.training
            self.model(x)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    return Module()


def rows(count):
    return torch.utils.data.DataLoader(batch().repeat(count, 1, 1)[:count], batch_size=1)


def fit(lightning, module, callback, tmp_path, logger=False, **options):
    settings = {"max_steps": 5, "accelerator": "cpu", "devices": 1, "default_root_dir": tmp_path, "logger": logger,
                "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False,
                "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    trainer = lightning.Trainer(**(settings | options), callbacks=[callback])
    validation = rows(2) if options.get("val_check_interval") else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*num_workers.*")
        trainer.fit(module, rows(20), validation)
    return trainer


def test_a_fit_is_watched_logged_and_warned_of(lightning, tmp_path):
    callback = health.lightning_callback(every=2, gradients=True)
    assert isinstance(callback, lightning.Callback)
    module = module_of(lightning, model_with_dead_units())
    logger = lightning.loggers.CSVLogger(tmp_path, name="run", version=0)
    with pytest.warns(UserWarning, match="step 1: model.layers.1: 6 of 24 units .* put out nothing") as warned:
        fit(lightning, module, callback, tmp_path, logger)
    assert len([w for w in warned if "put out nothing" in str(w.message)]) == 1, "a finding is warned of once"
    assert module.hooked == [True, False, True, False, True] and hooks(module) == 0
    assert callback.health.observed_step == 5
    found = callback.health.findings()
    assert [(f["measure"], f["layer"], f["units"]) for f in found if f["grade"] == "serious"] == [
        ("dead", "model.layers.1", list(range(6)))]
    with open(tmp_path / "run" / "version_0" / "metrics.csv") as file:
        logged = {int(line["step"]): line for line in csv.DictReader(file) if line["health/serious"]}
    assert sorted(logged) == [1, 3, 5]
    assert float(logged[3]["health/model.layers.1/dead_share"]) == 0.25
    assert float(logged[3]["health/model.layers.0/gradient_rms"]) > 0


def test_accumulated_gradients_and_validation_are_one_step_of_training(lightning, tmp_path):
    callback = health.lightning_callback(every=2)
    module = module_of(lightning, Model())
    fit(lightning, module, callback, tmp_path, max_steps=3, accumulate_grad_batches=2, val_check_interval=1)
    assert module.hooked == [True, True, False, False, True, True]
    assert callback.health.observed_step == 3
    assert callback.health.record()["tokens"] == 64, "two batches of 32 tokens of training, none of validation"


def test_watching_changes_no_weight(lightning, tmp_path):
    trained = []
    for callback in (lightning.Callback(), health.lightning_callback(every=2, gradients=True)):
        module = module_of(lightning, Model())
        fit(lightning, module, callback, tmp_path)
        trained.append([p.detach().clone() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


def test_a_fit_that_fails_leaves_no_hook_and_the_callback_serves_again(lightning, tmp_path):
    callback = health.lightning_callback(every=1)
    module = module_of(lightning, Model(), fails_at=1)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(lightning, module, callback, tmp_path)
    assert hooks(module) == 0 and torch._dynamo.eval_frame._stance.stance == "default"
    again = module_of(lightning, Model())
    fit(lightning, again, callback, tmp_path, max_steps=2)
    assert callback.health.observed_step == 2 and hooks(again) == 0


def test_without_lightning_the_error_says_what_to_install():
    program = ("import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
               "from nonlin import health\nhealth.lightning_callback()")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert "UserError: lightning_callback: the package 'lightning' must be installed" in done.stderr


def test_the_name_in_use_is_taken(monkeypatch):
    for name in NAMES:
        pytest.importorskip(name, reason=f"{name} is not installed")
        for other in NAMES:
            monkeypatch.delitem(sys.modules, other, raising=False)
        monkeypatch.setitem(sys.modules, name, importlib.import_module(name))
        monkeypatch.delitem(sys.modules, next(n for n in NAMES if n != name), raising=False)
        assert callbacks._lightning().__name__ == name
