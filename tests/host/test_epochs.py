"""A fit ends: after the preset's number of epochs, or where the user says."""

from pathlib import Path
from typing import Any

import pytest
from _factory import draw_category, make_engine, make_model, mvtec
from lightning.pytorch import Callback, LightningModule, Trainer


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_category(tmp_path_factory.mktemp("epochs"))


class Patience(Callback):
    """Stops the training itself, and fails the test where that was too late."""

    def __init__(self, epochs: int, *, fails: bool) -> None:
        self.epochs, self.fails = epochs, fails

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.epochs:
            trainer.should_stop = True
            if self.fails:
                pytest.fail(f"still training after {self.epochs} epochs")


def fit(category: Path, results: Path, branches: str, callback: Callback, **options: Any) -> Trainer:
    """Fit to the end; ``max_epochs`` is only given to the trainer if it is among the options."""
    limits = {"max_epochs": None, "limit_train_batches": 1, "callbacks": [callback]} | options
    engine = make_engine(results, **limits)
    engine.fit(make_model(visualizer=False, branches=branches), datamodule=mvtec(category.parent))
    return engine.trainer


@pytest.mark.parametrize(
    ("branches", "options", "epochs"),
    [
        ("logical", {}, 50),
        ("logical", {"max_epochs": 3}, 3),
        ("logical", {"max_epochs": 0}, 0),
        ("logical", {"min_epochs": 52}, 52),
        ("logical", {"min_epochs": 2, "max_epochs": 3}, 3),
        ("logical", {"max_steps": 3}, 3),
        ("logical", {"max_steps": 51}, 51),
        ("logical", {"max_steps": 3, "max_epochs": 1000}, 3),
        ("logical", {"max_steps": 3, "max_epochs": -1}, 3),
        ("structural", {}, 1),
        ("structural", {"max_epochs": 3}, 3),
        ("structural", {"min_epochs": 2}, 2),
        ("structural", {"max_steps": 3}, 3),
    ],
)
def test_ends_after(branches: str, options: dict[str, Any], epochs: int, category: Path, tmp_path: Path) -> None:
    trainer = fit(category, tmp_path, branches, Patience(epochs + 1, fails=True), **options)
    assert trainer.current_epoch == epochs
    assert trainer.global_step == epochs
    assert options.get("max_epochs") in (None, -1) or trainer.max_epochs == options["max_epochs"]


def test_without_a_limit_goes_on(category: Path, tmp_path: Path) -> None:
    trainer = fit(category, tmp_path, "structural", Patience(4, fails=False), max_epochs=-1)
    assert trainer.current_epoch == 4
    assert trainer.max_epochs == -1


def test_ends_after_a_time(category: Path, tmp_path: Path) -> None:
    trainer = fit(category, tmp_path, "logical", Patience(10_000, fails=True), max_time={"seconds": 2})
    assert trainer.current_epoch > 0
    assert trainer.max_epochs == -1


def test_lightnings_own_trainer(category: Path, tmp_path: Path) -> None:
    """Without anomalib's engine, and the number is a plain one."""
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.fit(make_model(visualizer=False, branches="structural"), datamodule=mvtec(category.parent))
    assert (trainer.current_epoch, trainer.max_epochs) == (1, 1)
    assert type(trainer.max_epochs) is int
