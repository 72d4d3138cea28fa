"""Bad input gets a sentence."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from _exported import KINDS, SLIM, Exported
from _limits import no_room_beyond
from anomalib.deploy import CompressionType, ExportType
from anomalib.engine import Engine

from anomalib_npgmf import Npgmf
from anomalib_npgmf.export import formats

small = pytest.mark.parametrize("exported", ["small"], indirect=True)


def engine(folder: Path) -> Engine:
    return Engine(accelerator="cpu", devices=1, default_root_dir=folder, logger=False)


@pytest.mark.parametrize("export_type", list(ExportType))
def test_export_before_training(export_type: ExportType, tmp_path: Path) -> None:
    model = Npgmf(preset="small", logical_image_size=128, logical=SLIM)
    with pytest.raises(RuntimeError, match="has not been trained"):
        engine(tmp_path).export(model, export_type)
    assert not list(tmp_path.rglob("model.*"))


@small
@pytest.mark.parametrize(("method", "package"), [("to_onnx", "onnxscript"), ("to_openvino", "openvino")])
def test_missing_package(
    loaded: Npgmf, method: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == package else importlib.util.find_spec(name))
    with pytest.raises(ModuleNotFoundError, match=rf"{package}: pip install 'anomalib-npgmf\[openvino\]'"):
        getattr(loaded, method)(tmp_path)


@small
@pytest.mark.parametrize("size", [(0, 128), (128,), (128, 128, 3), "128", (64.5, 64)])
def test_impossible_sizes(loaded: Npgmf, size: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="input_size must be the height and width"):
        loaded.to_onnx(tmp_path, input_size=size)


def test_size_that_the_windows_do_not_tile() -> None:
    with pytest.raises(ValueError, match="224"):
        Npgmf(preset="small", logical_image_size=224)


@small
@pytest.mark.parametrize("size", [0, 10**6])
def test_impossible_banks(loaded: Npgmf, size: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can shrink to"):
        loaded.to_torch(tmp_path, bank_size=size)


def test_bank_of_a_model_without_one(tmp_path: Path) -> None:
    model = Npgmf(preset="small", logical_image_size=128, branches="logical", logical=SLIM)
    model.model.merger.calibrate({"logical": (0.0, 1.0)})
    with pytest.raises(ValueError, match="without structural branch"):
        model.to_torch(tmp_path, bank_size=10)


@small
@pytest.mark.parametrize("compression", [CompressionType.INT8_PTQ, CompressionType.INT8_ACQ])
def test_quantisation_without_images(loaded: Npgmf, compression: CompressionType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass a data module"):
        loaded.to_openvino(tmp_path, compression_type=compression)


@small
def test_checkpoint_of_another_preset(exported: Exported) -> None:
    checkpoint = torch.load(exported.checkpoint, weights_only=True)
    del checkpoint["anomalib_npgmf"]["configuration"]
    other = Npgmf(**KINDS["fast"])
    with pytest.raises(ValueError, match="preset 'small', the model of preset 'fast'"):
        other.on_load_checkpoint(checkpoint)


@small
@pytest.mark.parametrize("changes", [{"merging": "maximum"}, {"logical_weight": 2.0}])
def test_checkpoint_calibrated_for_another_merging(exported: Exported, changes: dict[str, Any]) -> None:
    checkpoint = torch.load(exported.checkpoint, weights_only=True)
    del checkpoint["anomalib_npgmf"]["configuration"]
    with pytest.raises(ValueError, match="calibrated for merging 'sum' with the weights"):
        Npgmf(**KINDS["small"] | changes).on_load_checkpoint(checkpoint)


@small
def test_checkpoint_of_another_architecture(exported: Exported) -> None:
    checkpoint = torch.load(exported.checkpoint, weights_only=True)
    del checkpoint["anomalib_npgmf"]["configuration"]
    other = Npgmf(**KINDS["small"] | {"logical": SLIM | {"code_dim": 16}})
    with pytest.raises(ValueError, match="architecture is not the model's"):
        other.on_load_checkpoint(checkpoint)


@small
def test_unreadable_checkpoints(exported: Exported, tmp_path: Path) -> None:
    content = exported.checkpoint.read_bytes()
    for name, data in (("truncated", content[: len(content) // 2]), ("foreign", b"Buy milk."), ("empty", b"")):
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(data)
        with pytest.raises(ValueError, match="truncated or foreign"):
            engine(tmp_path).export(Npgmf(**KINDS["small"]), ExportType.ONNX, ckpt_path=path)
    with pytest.raises(FileNotFoundError):
        Npgmf.load_from_checkpoint(tmp_path / "none.ckpt")


@small
def test_checkpoint_of_another_model(exported: Exported, tmp_path: Path) -> None:
    checkpoint = torch.load(exported.checkpoint, weights_only=True)
    del checkpoint["anomalib_npgmf"]
    torch.save(checkpoint, tmp_path / "patchcore.ckpt")
    with pytest.raises(ValueError, match="not written by Npgmf"):
        Npgmf.load_from_checkpoint(tmp_path / "patchcore.ckpt")


@small
def test_a_full_disk_leaves_no_half_file(loaded: Npgmf, tmp_path: Path) -> None:
    """The same holds for the other formats, which take a minute; see `tests/test_disk.py`."""
    with no_room_beyond(100_000), pytest.raises(OSError, match=r"weights/torch has no room for model .*; free space"):
        loaded.to_torch(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
