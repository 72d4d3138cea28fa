"""A training that is killed leaves no file that looks complete and is not; the next one goes on."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _factory import draw_category, make_engine, make_model, mvtec

from anomalib_npgmf import Npgmf, disk
from anomalib_npgmf.host.calibration import Calibrator
from anomalib_npgmf.structural.greedy import LazyGreedy

# not a fork of this process: torch refuses to train in one after it has trained here
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["anomalib.engine", "anomalib.data", "anomalib_npgmf"])


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])
    die()


def in_second(action: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose first call is the original's."""
    calls: list[int] = []

    def function(*given: Any, **named: Any) -> Any:
        calls.append(1)
        return (original if len(calls) == 1 else action)(*given, **named)

    return function


# where the process dies, and whether there is a checkpoint by then
MOMENTS: dict[str, tuple[Any, str, Callable[..., Any], bool]] = {
    "coreset": (LazyGreedy, "_round", die, False),
    "first step": (Npgmf, "training_step", die, False),
    "calibration of the second epoch": (Calibrator, "run", in_second(die, Calibrator.run), True),
    "first checkpoint": (disk, "write_bytes", write_half, False),
    "second checkpoint": (disk, "write_bytes", in_second(write_half, disk.write_bytes), True),
}


def train(category: Path, root: Path, resume: Path | None = None) -> Path:
    engine = make_engine(root, max_epochs=2)
    engine.fit(make_model(visualizer=False), datamodule=mvtec(category.parent), ckpt_path=resume)
    return Path(engine.trainer.checkpoint_callback.best_model_path)


def train_and_die(category: Path, root: Path, moment: str) -> None:
    torch.set_num_threads(1)
    place, name, action, _ = MOMENTS[moment]
    setattr(place, name, action)
    train(category, root)


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_category(tmp_path_factory.mktemp("data"), train=6)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_training(category: Path, tmp_path: Path, moment: str) -> None:
    child = SERVER.Process(target=train_and_die, args=(category, tmp_path, moment))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    left = list(tmp_path.rglob("*.ckpt"))
    assert len(left) == MOMENTS[moment][3]
    for path in left:
        assert Npgmf.load_from_checkpoint(path).model.merger.calibrated
    assert Npgmf.load_from_checkpoint(train(category, tmp_path, *left)).model.merger.calibrated
    assert not [path for path in category.rglob("*") if path.name.startswith(".")]
