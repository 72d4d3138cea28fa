"""Backbones: levels read from the network, frozen, weights from local files."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.backbone.weights import read_state_dict

NAME = "mobilenetv2_100"


@pytest.fixture(scope="module")
def whole() -> torch.nn.Module:
    torch.manual_seed(7)
    return timm.create_model(NAME, pretrained=False).eval()


@pytest.mark.parametrize(
    ("name", "levels", "channels", "rectified"),
    [
        ("resnet18", (1, 2, 3, 4, 5), (64, 64, 128, 256, 512), (True,) * 5),
        ("mobilenetv2_100", (1, 2, 3, 4, 5), (16, 24, 32, 96, 320), (False,) * 5),
        ("convnext_atto", (2, 3, 4, 5), (40, 80, 160, 320), (False,) * 4),
    ],
)
def test_levels_are_read_from_the_network(
    name: str, levels: tuple[int, ...], channels: tuple[int, ...], rectified: tuple[bool, ...]
) -> None:
    backbone = Backbone(name)
    assert backbone.levels == levels
    assert backbone.channels == channels
    assert backbone.strides == tuple(2**k for k in levels)
    shapes = [tuple(f.shape) for f in backbone(torch.zeros(2, 3, 64, 96))]
    assert shapes == [(2, c, 64 >> k, 96 >> k) for k, c in zip(levels, channels, strict=True)]
    assert backbone.rectified() == rectified


def test_levels_are_resnets_convolution_groups() -> None:
    """E^1 ends before the max-pool, E^k is group k (section III-A)."""
    backbone = Backbone("resnet18")
    net = backbone._features
    image = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        x = net.act1(net.bn1(net.conv1(image)))
        expected = [x]
        x = net.maxpool(x)
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            expected.append(x)
    for actual, reference in zip(backbone(image), expected, strict=True):
        assert torch.equal(actual, reference)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_layout_changes_no_value(name: str) -> None:
    """On a CPU the network gets its images channels-last, which is quicker, and gives the same maps."""
    torch.manual_seed(0)
    backbone = Backbone(name)
    image = torch.randn(2, 3, 64, 96)
    maps, plain = backbone(image), backbone._features(image)
    assert all(level.is_contiguous(memory_format=torch.channels_last) for level in maps)
    assert all(level.is_contiguous() for level in plain)
    torch.testing.assert_close(maps, plain, rtol=1e-4, atol=1e-5)


def test_chosen_levels_are_a_part_of_all() -> None:
    every, some = Backbone("resnet18"), Backbone("resnet18", levels=(4, 2))
    assert some.levels == (2, 4)
    assert some.channels == (64, 256)
    some._features.load_state_dict(every._features.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 64)
    maps = every(image)
    for actual, reference in zip(some(image), (maps[1], maps[3]), strict=True):
        assert torch.equal(actual, reference)


def test_frozen_whatever_the_parent_does() -> None:
    parent = torch.nn.ModuleDict({"backbone": Backbone("resnet18")}).train()
    image = torch.randn(4, 3, 64, 64)
    before = {n: v.clone() for n, v in parent.state_dict().items()}
    outputs = parent["backbone"](image)
    assert not any(m.training for m in parent["backbone"]._features.modules())
    assert not any(p.requires_grad for p in parent.parameters())
    assert not any(o.requires_grad for o in outputs)
    assert all(torch.equal(v, before[n]) for n, v in parent.state_dict().items()), "running statistics stay"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_local_weights(whole: torch.nn.Module, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(whole.state_dict(), path)
    else:
        torch.save({"state_dict": {f"module.{n}": v for n, v in whole.state_dict().items()}}, path)
    backbone = Backbone(NAME, levels=(5,))
    image = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    untrained = backbone(image)[0]
    backbone.load_weights(str(path))
    with torch.no_grad():
        expected = whole.blocks(whole.bn1(whole.conv_stem(image)))
    torch.testing.assert_close(backbone(image)[0], expected)
    assert not torch.allclose(untrained, expected)
    assert not any(p.requires_grad for p in backbone.parameters())


def test_classifier_is_not_needed(whole: torch.nn.Module, tmp_path: Path) -> None:
    state = {n: v for n, v in whole.state_dict().items() if not n.startswith("classifier.")}
    torch.save({n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}, tmp_path / "w.pth")
    Backbone(NAME).load_weights(str(tmp_path / "w.pth"))


def test_file_that_does_not_fit_names_the_first_keys(whole: torch.nn.Module, tmp_path: Path) -> None:
    state = dict(whole.state_dict())
    del state["conv_stem.weight"], state["bn1.weight"]
    state["conv_head.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "w.pth")
    sentence = (
        r"w.pth does not fit mobilenetv2_100: 2 missing, first conv_stem.weight, bn1.weight; 1 of another shape, "
        r"first conv_head.weight \(2, 2\) instead of \(1280, 320, 1, 1\)"
    )
    with pytest.raises(ValueError, match=sentence):
        Backbone(NAME).load_weights(str(tmp_path / "w.pth"))


def test_random_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Backbone("resnet18")
    before = {n: v.clone() for n, v in backbone.state_dict().items()}
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("nothing to load"))
    backbone.load_weights("random")
    assert all(torch.equal(v, before[n]) for n, v in backbone.state_dict().items())


def test_without_a_hub_the_error_names_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Backbone("resnet18")

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(RuntimeError, match=r"resnet18.*ConnectionError.*backbone_weights.*'random'"):
        backbone.load_weights(None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"not a weights file", "cannot be read as a file of weights"), (None, "There is no weights file at")],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        read_state_dict(path)


def test_file_of_something_else(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds no mapping of parameter names"):
        read_state_dict(tmp_path / "w.pth")


def test_truncated_safetensors(whole: torch.nn.Module, tmp_path: Path) -> None:
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cannot be read as a file of weights"):
        read_state_dict(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["resnet1", "vgg", ""])
def test_unknown_network(name: str) -> None:
    with pytest.raises(ValueError, match=rf"no network '{name}' with feature levels.*timm.list_models"):
        Backbone(name)


def test_level_that_the_network_lacks() -> None:
    with pytest.raises(ValueError, match=r"convnext_atto has the feature levels \(2, 3, 4, 5\), not \[1\]"):
        Backbone("convnext_atto", levels=(1, 2))
