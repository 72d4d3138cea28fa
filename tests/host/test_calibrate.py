"""``python -m anomalib_npgmf.calibrate``: the threshold of a trained checkpoint moves without training."""

from pathlib import Path

import pytest
import torch
from _factory import draw, draw_category, make_engine, make_model, mvtec

from anomalib_npgmf import Npgmf
from anomalib_npgmf.calibrate import main
from anomalib_npgmf.export import describe
from anomalib_npgmf.host.post_processor import CalibratedPostProcessor


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and the folder of its category, with good and bad images of another day."""
    root = tmp_path_factory.mktemp("calibrate")
    folder = draw_category(root / "data", train=8, validation=6)
    for i in range(5):
        draw(root / "good" / f"{i}.png", 300 + i)
        draw(root / "bad" / "blot" / f"{i}.png", 400 + i, defect=True)
    model, engine = make_model(branches="structural"), make_engine(root / "run")
    engine.fit(model, datamodule=mvtec(root / "data", val_split_mode="none"))
    engine.trainer.save_checkpoint(root / "model.ckpt")
    return root, folder


def post_of(path: Path) -> CalibratedPostProcessor:
    post = Npgmf.load_from_checkpoint(path, map_location="cpu").post_processor
    assert isinstance(post, CalibratedPostProcessor)
    return post


def test_another_rate_moves_the_threshold_only(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    root, _ = trained
    before = post_of(root / "model.ckpt")
    written = root / "model-calibrated.ckpt"
    assert main([str(root / "model.ckpt"), "--false-alarm-rate", "0.2"]) == 0
    assert "about 200 of 1,000 good parts" in " ".join(capsys.readouterr().out.split())
    after = post_of(written)
    assert after.false_alarm_rate == 0.2 == describe(written)["false_alarm_rate"]
    assert describe(written)["threshold"] == after.image_threshold.item() < before.image_threshold.item()
    assert torch.equal(after.normal_scores, before.normal_scores)
    old, new = (torch.load(root / name, weights_only=False)["state_dict"] for name in ("model.ckpt", written.name))
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved == {f"post_processor.{n}" for n in ("_image_threshold", "_pixel_threshold", "image_max", "pixel_max")}


def test_good_images_give_statistics_and_bad_ones_a_table(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = trained
    options = ["--good", str(root / "good"), "--bad", str(root / "bad"), "--output", str(root / "new.ckpt")]
    assert main([str(root / "model.ckpt"), *options]) == 0
    printed = capsys.readouterr().out
    post = post_of(root / "new.ckpt")
    assert len(post.normal_scores) == 5
    model = Npgmf.load_from_checkpoint(root / "new.ckpt", map_location="cpu").eval()
    assert "of 5 bad ones found" in printed
    assert "10 (set)" in printed
    assert not torch.equal(model.model.merger.mean, Npgmf.load_from_checkpoint(root / "model.ckpt").model.merger.mean)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{root}/absent.ckpt"], "There is no file"),
        (["{root}/model.ckpt", "--good", "{root}/absent"], "There is no folder"),
        (["{root}/model.ckpt", "--false-alarm-rate", "0.7"], "between 0 and 0.5"),
        (["{root}/data/square_plate/train/good/000.png"], "cannot be read as a checkpoint"),
    ],
)
def test_wrong_input_is_one_sentence(
    trained: tuple[Path, Path], words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(root=trained[0]) for word in words]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
