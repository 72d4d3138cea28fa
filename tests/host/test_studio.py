"""What anomalib's web application, Studio, does with a model of its list."""

from pathlib import Path

import openvino
import pytest
from _factory import SLIM_LOGICAL, draw, make_engine
from anomalib.data import Folder
from anomalib.data.utils import ValSplitMode
from anomalib.deploy import ExportType
from anomalib.metrics import AUROC, Evaluator, F1Score
from anomalib.models import get_model, list_models
from lightning.pytorch.callbacks import EarlyStopping

from anomalib_npgmf import Npgmf

# Studio gives none of these: they make the model small.
SMALL = {
    "preset": "small",
    "backbone": "test_resnet",
    "backbone_weights": "random",
    "logical_image_size": 128,
    "logical": SLIM_LOGICAL,
}


class Watched(EarlyStopping):
    """Keeps what was monitored."""

    def __init__(self) -> None:
        super().__init__(monitor="pixel_AUROC", mode="max", patience=5)  # raises where there is no such metric
        self.seen: list[float] = []

    def _evaluate_stopping_criteria(self, current: object) -> tuple[bool, str | None]:
        self.seen.append(float(current))  # type: ignore[arg-type]
        return super()._evaluate_stopping_criteria(current)  # type: ignore[arg-type,return-value]


def evaluator() -> Evaluator:
    return Evaluator(
        val_metrics=[AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False)],
        test_metrics=[
            AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
            F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
            AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
            F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
        ],
    )


def test_it_is_listed() -> None:
    assert "npgmf" in list_models(case="snake")
    assert "Npgmf" in list_models(case="pascal")


@pytest.mark.parametrize("name", ["npgmf", "Npgmf"])
def test_training_and_export(name: str, tmp_path: Path) -> None:
    for i in range(8):
        draw(tmp_path / "data" / "normal" / f"{i}.png", i)
    datamodule = Folder(
        name="5f2c-npgmf",
        normal_dir=tmp_path / "data" / "normal",
        val_split_mode=ValSplitMode.SYNTHETIC,
        train_batch_size=4,
        eval_batch_size=4,
        num_workers=0,
    )
    model = get_model(name, evaluator=evaluator(), **SMALL)
    assert isinstance(model, Npgmf)
    stopping = Watched()
    engine = make_engine(tmp_path / "model", max_epochs=2, callbacks=[stopping])
    engine.fit(model=model, datamodule=datamodule)
    assert len(stopping.seen) == 2
    assert all(0 <= value <= 1 for value in stopping.seen)
    thresholds = [getattr(callback, "normalized_pixel_threshold", None) for callback in engine.trainer.callbacks]
    assert next(value for value in thresholds if value is not None).item() == 0.5
    assert model.model.backbone == "test_resnet"
    path = engine.export(model=model, export_type=ExportType.OPENVINO, export_root=tmp_path / "model")
    assert path == tmp_path / "model" / "weights" / "openvino" / "model.xml"
    (entry,) = openvino.Core().read_model(path).inputs
    assert entry.partial_shape.to_string() == "[?,3,?,?]"
