"""Bad input gets a sentence that says what to do, and nothing is lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from _factory import SLIM_LOGICAL, draw_category, folder_of, make_engine, make_model, mvtec
from anomalib.deploy import ExportType
from torch import Tensor

from anomalib_npgmf import Npgmf
from anomalib_npgmf.logical.loss import LogicalLoss


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_category(tmp_path_factory.mktemp("bad"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"preset": "tiny"}, "no preset 'tiny'; choose one of .*'small'"),
        ({"text_prior": "poem"}, "text_prior must be 'clip' or .*not 'poem'"),
        ({"backbone": "resnet1"}, "no network 'resnet1' with feature levels"),
        (
            {"backbone": "convmixer_768_32"},
            "only 1 distinct feature level|no network 'convmixer_768_32' with feature levels",
        ),
        ({"coreset_ratio": 0.0}, "coreset_ratio must be a number above 0 to 1, not 0.0"),
        ({"coreset_ratio": 1.5}, "coreset_ratio must be a number above 0 to 1, not 1.5"),
        ({"logical_image_size": 224}, "multiples of 128 .*not 224 x 224"),
        ({"logical_image_size": 384}, "cannot tile; choose a logical image size"),
        ({"logical_image_size": 16}, "logical_image_size must be a whole number from 32 to .*, not 16"),
        ({"branches": "all"}, "branches must be 'both' or 'logical' or 'structural', not 'all'"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0 on, not 0.0"),
        ({"structural_weight": -1.0}, "structural_weight must be a number from 0 on, not -1.0"),
        ({"merging": "mean"}, "merging must be 'sum' or 'maximum'"),
        ({"structural": {"levels": (3, 6)}}, r"has the feature levels \(1, 2, 3, 4, 5\), not \[6\]"),
        ({"logical": {"vq_levels": (7,)}}, r"vq_levels \[7\] are not among the encoder's levels"),
        ({"logical": {"depth": 3}}, r"logical has no field \['depth'\]; its fields are"),
    ],
)
def test_constructor(arguments: dict[str, Any], sentence: str) -> None:
    options: dict[str, Any] = {"preset": "small", "backbone": "test_resnet", "logical": SLIM_LOGICAL} | arguments
    with pytest.raises(ValueError, match=sentence):
        Npgmf(**options)


@pytest.mark.parametrize("action", ["test", "predict"])
def test_untrained_model_does_not_predict(category: Path, tmp_path: Path, action: str) -> None:
    with pytest.raises(RuntimeError, match="has not been trained: fit it or load a checkpoint"):
        getattr(make_engine(tmp_path), action)(make_model(visualizer=False), datamodule=mvtec(category.parent))


@pytest.mark.parametrize("kind", [ExportType.TORCH, ExportType.ONNX, ExportType.OPENVINO])
@pytest.mark.parametrize("branches", ["both", "logical"])
def test_untrained_model_is_not_exported(tmp_path: Path, branches: str, kind: ExportType) -> None:
    model = make_model(visualizer=False, branches=branches)
    with pytest.raises(RuntimeError, match="has not been trained"):
        make_engine(tmp_path).export(model, export_type=kind, export_root=tmp_path)
    assert not list(tmp_path.rglob("*.pt"))
    assert not list(tmp_path.rglob("*.onnx"))


def test_untrained_model_does_not_run_directly() -> None:
    with pytest.raises(RuntimeError, match="has not been trained"):
        make_model(visualizer=False).eval()(torch.rand(1, 3, 128, 128))


def test_clip_without_category_or_prompt(category: Path, tmp_path: Path) -> None:
    datamodule = folder_of(category)
    datamodule._name = ""
    with pytest.raises(ValueError, match="needs the category's name, which the data module does not give; set prompt"):
        make_engine(tmp_path).fit(make_model(visualizer=False, text_prior="clip"), datamodule=datamodule)


def test_no_normal_image_to_calibrate_on(tmp_path: Path) -> None:
    folder = draw_category(tmp_path / "data", train=1)
    with pytest.raises(ValueError, match=r"no normal validation images and only 1 training image\(s\).*add normal"):
        make_engine(tmp_path).fit(make_model(visualizer=False), datamodule=mvtec(folder.parent))


def test_loaders_without_validation_images(category: Path, tmp_path: Path) -> None:
    datamodule = mvtec(category.parent)
    datamodule.prepare_data()
    datamodule.setup()
    with pytest.raises(ValueError, match="no normal validation images to calibrate on; pass a data module or"):
        make_engine(tmp_path).fit(make_model(visualizer=False), train_dataloaders=datamodule.train_dataloader())


def test_bank_that_would_be_empty(tmp_path: Path) -> None:
    folder = draw_category(tmp_path / "data", train=3)
    model = make_model(visualizer=False, branches="structural", coreset_ratio=1e-4)
    with pytest.raises(ValueError, match="leaves an empty memory bank; raise the ratio"):
        make_engine(tmp_path).fit(model, datamodule=mvtec(folder.parent))


@pytest.mark.parametrize(("name", "value"), [("feature", float("nan")), ("image", float("inf"))])
def test_broken_loss_stops_and_keeps_the_last_checkpoint(
    category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    calls = 0
    original = LogicalLoss.forward

    def breaking(self: LogicalLoss, *args: Any) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        losses = original(self, *args)
        if calls > 3:  # nine images in batches of four: the second epoch
            losses[name] = losses[name] * value
        return losses

    monkeypatch.setattr(LogicalLoss, "forward", breaking)
    engine = make_engine(tmp_path, max_epochs=3)
    model = make_model(visualizer=False)
    datamodule = mvtec(category.parent)
    with pytest.raises(RuntimeError, match=rf"The {name} loss became {value} in epoch 1; .*smaller learning rate"):
        engine.fit(model, datamodule=datamodule)
    assert len(datamodule.train_data) == 10, "the images set aside are given back"
    checkpoint = next(tmp_path.rglob("model.ckpt"))
    restored = Npgmf.load_from_checkpoint(checkpoint)
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 0
    assert restored.model.merger.calibrated
    assert all(torch.isfinite(v).all() for v in restored.state_dict().values() if v.is_floating_point())


def test_images_of_another_size() -> None:
    with pytest.raises(ValueError, match="takes images of 128 x 128, not 96 x 64; resize them first"):
        make_model(visualizer=False).model.train()(torch.rand(1, 3, 96, 64))
