"""Local weights: by reference in a plan, and for models that only know timm's published ones."""

from pathlib import Path

import pytest
import timm
import torch
from anomalib.models import Padim

from anomalib_npgmf.backbone.packaged import packaged_weights
from anomalib_npgmf.benchmark.cell import build_model
from anomalib_npgmf.benchmark.weights import insert_files, parse_weights, references, served_by_timm

NAME = "mobilenetv3_small_050"


def test_references() -> None:
    arguments = {"backbone_weights": "weights:a", "logical": {"weights": "weights:b"}, "preset": "small", "size": 3}
    assert references(arguments) == {"a", "b"}
    assert insert_files(arguments, {"a": Path("a.pth"), "b": Path("b.pth")}) == {
        "backbone_weights": "a.pth",
        "logical": {"weights": "b.pth"},
        "preset": "small",
        "size": 3,
    }
    with pytest.raises(ValueError, match="add --weights b=PATH"):
        insert_files(arguments, {"a": Path("a.pth")})


def test_options(tmp_path: Path) -> None:
    file = tmp_path / "a=b.pth"
    file.touch()
    assert parse_weights([f"net={file}"]) == {"net": file}
    with pytest.raises(FileNotFoundError, match="There is no weights file"):
        parse_weights([f"net={tmp_path / 'none.pth'}"])


@pytest.mark.parametrize("name", [NAME, f"{NAME}.lamb_in1k"])
@pytest.mark.parametrize("features_only", [False, True])
def test_served_by_timm(tmp_path: Path, name: str, features_only: bool) -> None:
    torch.manual_seed(0)
    published = timm.create_model(NAME)
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    original = timm.create_model
    with served_by_timm({NAME: tmp_path / "weights.pth"}) as served:
        untrained = timm.create_model(name, pretrained=False)
        assert served == set()
        model = timm.create_model(name, pretrained=True, features_only=features_only)
        assert served == {NAME}
    assert timm.create_model is original
    key = "conv_stem.weight"
    assert torch.equal(model.state_dict()[key], published.state_dict()[key])
    assert not torch.equal(untrained.state_dict()[key], published.state_dict()[key])


def test_a_baseline_normalises_as_its_network_was_trained() -> None:
    with served_by_timm({}):
        model = build_model(Padim, {"backbone": "tf_efficientnet_lite0", "layers": ["blocks.1"], "n_features": 10})
    white = model.pre_processor.transform(torch.ones(1, 3, 300, 300))
    torch.testing.assert_close(white, torch.ones(1, 3, 256, 256))  # (1 - 0.5) / 0.5


def test_packaged_weights_serve_models_that_ask_timm() -> None:
    with served_by_timm({}) as served:
        network = timm.create_model("tf_efficientnet_lite0", pretrained=True)
    assert served == {"tf_efficientnet_lite0"}
    expected = packaged_weights("tf_efficientnet_lite0")
    assert expected is not None
    torch.testing.assert_close(network.state_dict()["conv_stem.weight"], expected["conv_stem.weight"])
