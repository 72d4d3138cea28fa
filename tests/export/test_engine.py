"""The ways that users take: anomalib's engine and its options."""

from pathlib import Path

import onnxruntime
import openvino
import pytest
import torch
from _exported import BANK_ALONE, KINDS, Exported, read
from anomalib.deploy import CompressionType, ExportType
from anomalib.engine import Engine

from anomalib_npgmf import Npgmf
from anomalib_npgmf.backbone.cache import FeatureCache
from anomalib_npgmf.export import describe

small = pytest.mark.parametrize("exported", ["small"], indirect=True)


@pytest.mark.parametrize("exported", [BANK_ALONE], indirect=True)
def test_openvino_through_the_engine(exported: Exported, tmp_path: Path) -> None:
    """From a checkpoint, with fewer patches that are calibrated anew, fixed size, in half precision."""
    engine = Engine(accelerator="cpu", devices=1, default_root_dir=tmp_path, logger=False)
    path = engine.export(
        Npgmf(**KINDS[BANK_ALONE]),
        ExportType.OPENVINO,
        ckpt_path=exported.checkpoint,
        input_size=(300, 300),
        compression_type=CompressionType.FP16,
        datamodule=exported.datamodule(),
        onnx_kwargs={"bank_size": 30},
    )
    metadata, whole = describe(path), describe(exported.checkpoint)
    assert metadata["bank_size"] == 30
    assert metadata["calibrated_for_bank"]
    assert metadata["input_size"] == [300, 300]
    assert metadata["calibration"]["structural"]["mean"] > whole["calibration"]["structural"]["mean"]
    model = openvino.Core().read_model(path)
    weights = [operation for operation in model.get_ops() if operation.get_type_name() == "Constant"]
    assert all(weight.get_element_type().to_string() != "f32" for weight in weights if weight.data.size > 1000)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert compiled.input(0).partial_shape.to_string() == "[?,3,300,300]"
    # What the file does is what the model with that bank does.
    model = Npgmf.load_from_checkpoint(exported.checkpoint).eval()
    model.model.structural.bank.shrink(30)
    model.calibrate(exported.datamodule())
    for path in sorted((exported.folder / "data").rglob("*.png"))[:4]:
        image = read(path)
        with torch.no_grad():
            expected = model(image).pred_score.item()
        assert compiled(image.numpy())["pred_score"].item() == pytest.approx(expected, abs=1e-2)  # half precision


@small
def test_shrinking_leaves_the_model_as_it_was(
    exported: Exported, loaded: Npgmf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    path = loaded.to_torch(tmp_path, bank_size=20)
    assert "calibration and threshold stay" in caplog.text
    assert describe(path)["bank_size"] == 20
    assert not describe(path)["calibrated_for_bank"]
    path = loaded.to_torch(tmp_path, bank_size=20, datamodule=exported.datamodule())
    assert describe(path)["calibrated_for_bank"]
    after = loaded.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    assert loaded.describe()["calibrated_for_bank"]


@small
def test_torch_file_holds_no_images(exported: Exported, tmp_path: Path) -> None:
    model = Npgmf.load_from_checkpoint(exported.checkpoint)
    model.calibrator.reset(exported.datamodule())
    model.cached_features = FeatureCache(tmp_path, images=1)
    stored = torch.load(model.to_torch(tmp_path), weights_only=False)["model"]
    assert stored.calibrator is None
    assert stored.cached_features is None


@small
def test_onnx_is_one_file_of_opset_18_with_free_batch_and_size(exported: Exported) -> None:
    session = onnxruntime.InferenceSession(exported.onnx)
    (entry,) = session.get_inputs()
    assert entry.name == "input"
    assert entry.shape[1] == 3
    assert all(isinstance(side, str) for side in (entry.shape[0], *entry.shape[2:]))
    assert [path.name for path in exported.onnx.parent.iterdir()] == [exported.onnx.name]
