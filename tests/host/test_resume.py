"""A training that stops and goes on gives what one gives that never stopped."""

from pathlib import Path

import pytest
import torch
from _factory import draw_category, make_engine, make_model, mvtec

from anomalib_npgmf import Npgmf
from anomalib_npgmf.logical.codebook import Codebook

LOGICAL = {"codebook_size": 64}  # more codes than the images need: some die and are renewed


def train(folder: Path, root: Path, epochs: int, resume: Path | None = None) -> tuple[Npgmf, Path]:
    """Shuffled images in batches of four; the model and its checkpoint."""
    if resume is None:
        torch.manual_seed(1)
    else:
        torch.rand(7)  # another process starts from another random state
    model = make_model(visualizer=False, logical=LOGICAL)
    engine = make_engine(root, max_epochs=epochs)
    engine.fit(model, datamodule=mvtec(folder), ckpt_path=resume)
    return model, Path(engine.trainer.checkpoint_callback.best_model_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    draw_category(folder, train=9)
    return folder


def test_a_resumed_training_is_that_which_never_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed: list[int] = []
    original = Codebook.renew

    def renew(book: Codebook, *args: object, **kwargs: object) -> int:
        renewed.append(original(book, *args, **kwargs))  # type: ignore[arg-type]
        return renewed[-1]

    monkeypatch.setattr(Codebook, "renew", renew)
    whole, _ = train(folder, tmp_path / "whole", 4)
    assert sum(renewed) > 0, "codes have been renewed"
    _, half = train(folder, tmp_path / "half", 2)
    resumed, _ = train(folder, tmp_path / "half", 4, half)
    expected, found = whole.state_dict(), resumed.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
