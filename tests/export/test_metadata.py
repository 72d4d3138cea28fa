"""The files say what they are."""

import json
import shutil
from datetime import datetime, timezone
from pathlib import Path

import onnx
import pytest
import torch
from _exported import KINDS, Exported
from _factory import make_model

import anomalib_npgmf
from anomalib_npgmf.export import describe
from anomalib_npgmf.export.__main__ import main
from anomalib_npgmf.export.description import describe_model

FILES = ("onnx", "openvino", "torch", "checkpoint")


@pytest.mark.parametrize("exported", ["small", "fast"], indirect=True)
@pytest.mark.parametrize("file", FILES)
def test_every_file_describes_itself(exported: Exported, file: str) -> None:
    metadata = describe(getattr(exported, file))
    state = torch.load(exported.checkpoint, weights_only=True)["state_dict"]
    size = 256 if exported.kind == "small" else 128
    assert metadata["version"] == anomalib_npgmf.__version__
    assert metadata["preset"] == KINDS[exported.kind]["preset"]
    assert metadata["category"] == "sorting_tray"
    assert metadata["prompt"] is None  # no text prior that embeds one
    assert metadata["image_size"] == [size, size]
    assert metadata["bank_size"] == len(state["model.structural.bank.embeddings"])
    assert metadata["threshold"] == state["post_processor._image_threshold"].item()
    for index, branch in enumerate(("logical", "structural")):
        assert metadata["calibration"][branch]["mean"] == state["model.merger.mean"][index].item()
        assert metadata["calibration"][branch]["std"] == state["model.merger.std"][index].item()
    assert metadata["merging"] == "sum"
    assert metadata["weights"] == {"logical": 1.0, "structural": 3.0}
    age = datetime.now(timezone.utc) - datetime.fromisoformat(metadata["date"])
    assert 0 <= age.total_seconds() + 1 < 24 * 3600


def test_each_histogram_of_the_composition_names_its_weight_in_the_map() -> None:
    model = make_model(composition={"codebook_sizes": (3,), "codebooks": 1, "grid_codebook_sizes": (4,)})
    described = describe_model(model)["calibration"]["composition"]
    assert described["weight"] == [45.0, 45.0, 240.0, 240.0]
    assert described["largest_lead"] == [2.0, 2.0, 1.0, 1.0]
    assert described["further_lead"] == [0.0, 0.0, 3.0, 3.0]
    assert described["map_rule"]["lead_level"] == 0.5
    assert (described["logical_map_weight"], described["logical_map_limit"]) == (2.0, 3.0)


@pytest.mark.parametrize("exported", ["small"], indirect=True)
def test_reloaded_model_keeps_its_category(exported: Exported) -> None:
    model = anomalib_npgmf.Npgmf.load_from_checkpoint(exported.checkpoint)
    assert model.category == "sorting_tray"


@pytest.mark.parametrize("exported", ["small"], indirect=True)
def test_command(exported: Exported, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["describe", str(exported.onnx)]) == 0
    assert json.loads(capsys.readouterr().out) == describe(exported.onnx)
    assert main(["describe", str(tmp_path / "none.onnx")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("exported", ["small"], indirect=True)
@pytest.mark.parametrize("file", FILES)
def test_truncated_files(exported: Exported, file: str, tmp_path: Path) -> None:
    path = getattr(exported, file)
    content = path.read_bytes()
    copy = tmp_path / path.name
    copy.write_bytes(content[: len(content) // 2])
    if file == "openvino":
        shutil.copy(path.with_suffix(".bin"), tmp_path)
    with pytest.raises(ValueError, match="truncated or foreign"):
        describe(copy)


@pytest.mark.parametrize("exported", ["small"], indirect=True)
def test_truncated_openvino_weights(exported: Exported, tmp_path: Path) -> None:
    shutil.copy(exported.openvino, tmp_path)
    weights = exported.openvino.with_suffix(".bin").read_bytes()
    (tmp_path / exported.openvino.with_suffix(".bin").name).write_bytes(weights[:-100])
    with pytest.raises(ValueError, match="truncated or foreign"):
        describe(tmp_path / exported.openvino.name)


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt", ".ckpt"])
def test_files_that_are_no_models(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"notes{suffix}"
    path.write_text("Buy milk.")
    with pytest.raises(ValueError, match="truncated or foreign"):
        describe(path)


def test_models_of_other_programs(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", [value], [other])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "relu.onnx")
    torch.save({"model": torch.nn.Linear(1, 1).state_dict()}, tmp_path / "linear.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    (tmp_path / "other.xml").write_text("<net><layers/></net>")
    for name in ("relu.onnx", "linear.pt", "other.ckpt", "other.xml"):
        with pytest.raises(ValueError, match="says nothing about Npgmf"):
            describe(tmp_path / name)


def test_unknown_kind_of_file() -> None:
    with pytest.raises(ValueError, match=r"\.onnx, \.xml, \.pt, \.ckpt"):
        describe("model.tflite")
