"""The whole model in pure torch: presets at full size, shared passes, two image sizes."""

from typing import Any

import pytest
import torch
from _factory import SLIM_LOGICAL
from torch import nn

from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.config import ModelConfig, resolve
from anomalib_npgmf.torch_model import NpgmfModel

TINY = {"backbone": "test_resnet", "logical_image_size": 128}


def make(overrides: dict[str, Any] | None = None, **logical: Any) -> NpgmfModel:
    torch.manual_seed(0)
    return NpgmfModel(resolve("small", TINY | (overrides or {}), SLIM_LOGICAL | logical, {"coreset_ratio": 0.5}))


def ready(model: NpgmfModel) -> NpgmfModel:
    """Bank collected and calibrated, on noise."""
    model.eval()
    size = model.config.image_size
    if model.structural is not None:
        model.structural.collect(model.features(torch.randn(2, 3, *size)).structural, keys=["a", "b"])
        model.structural.finish()
    model.merger.calibrate({"logical": (1.0, 0.5), "structural": (4.0, 2.0)})
    return model


@pytest.mark.parametrize(
    ("preset", "size", "smallest", "largest"),
    [("paper", 256, 300e6, 500e6), ("paper", 512, 300e6, 500e6), ("literal", 256, 300e6, 600e6)],
)
def test_presets_at_full_size(
    monkeypatch: pytest.MonkeyPatch, preset: str, size: int, smallest: float, largest: float
) -> None:
    """Shapes and number of trained parameters, on the meta device, which computes nothing."""
    monkeypatch.setattr(Backbone, "rectified", lambda self: (True,) * len(self.levels))
    with torch.device("meta"):
        model = NpgmfModel(resolve(preset, {"branches": "logical", "logical_image_size": size})).eval()
        assert model.encoder is not None
        assert model.logical is not None
        features = model.encoder(torch.empty(1, 3, size, size))
        assert [f.shape[1] for f in features] == [64, 256, 512, 1024, 2048]
        out = model.logical(features)
        embedding = model.logical.embedding(features[-1])
    assert [f.shape for f in out.decoded] == [f.shape for f in features]
    assert out.reconstruction.shape == (1, 3, size, size)
    assert embedding.shape[-2:] == (size // 128, size // 128)
    assert smallest < sum(p.numel() for p in model.parameters() if p.requires_grad) < largest


def test_one_pass_serves_both_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ready(make())
    assert model.structural_encoder is None
    assert model.encoder is not None
    passes: list[torch.Size] = []
    model.encoder.register_forward_pre_hook(lambda module, args: passes.append(args[0].shape))
    with torch.no_grad():
        out = model(torch.randn(3, 3, 128, 128))
    assert passes == [(3, 3, 128, 128)]
    assert out.pred_score.shape == (3,)
    assert out.anomaly_map.shape == (3, 1, 128, 128)


def test_shared_features_are_the_structural_levels() -> None:
    model = make()
    features = model.features(torch.randn(1, 3, 128, 128))
    assert [f.shape[-1] for f in features.logical] == [64, 32, 16, 8, 4]
    assert [f.shape[-1] for f in features.structural] == [16, 8]


def test_encoder_computes_only_levels_that_a_part_reads() -> None:
    """One pass for all, each part with its own levels."""
    logical = SLIM_LOGICAL | {"levels": (2, 4), "vq_levels": (4,), "loss_levels": None}
    model = NpgmfModel(resolve("small", TINY, logical, {"coreset_ratio": 0.5}, {"levels": (3,)})).eval()
    assert model.encoder is not None
    assert model.encoder.levels == (2, 3, 4)
    image = torch.randn(1, 3, 128, 128)
    features = model.features(image)
    assert [f.shape[-1] for f in features.logical] == [32, 8]
    assert [f.shape[-1] for f in features.structural] == [16, 8]
    assert [f.shape[-1] for f in features.composition] == [16]
    every = make()
    assert every.encoder is not None
    every.encoder.load_state_dict(model.encoder.state_dict(), strict=False)
    for own, same in zip(features.structural, every.features(image).structural, strict=True):
        torch.testing.assert_close(own, same)


@pytest.mark.parametrize(
    ("logical", "structural"), [((128, 128), (256, 256)), ((256, 256), (128, 128)), ((128, 256), (64, 128))]
)
def test_each_branch_sees_its_size(logical: tuple[int, int], structural: tuple[int, int]) -> None:
    model = ready(make({"logical_image_size": logical, "structural_image_size": structural}))
    seen: dict[str, torch.Size] = {}
    for name in ("encoder", "structural_encoder"):
        network = getattr(model, name)
        network.register_forward_pre_hook(lambda module, args, name=name: seen.update({name: args[0].shape[-2:]}))
    size = model.config.image_size
    with torch.no_grad():
        out = model(torch.randn(1, 3, *size))
        maps = model.branch_maps(torch.randn(1, 3, *size)).maps
    assert seen == {"encoder": logical, "structural_encoder": structural}
    assert maps["logical"].shape[-2:] == logical
    assert maps["structural"].shape[-2:] == (structural[0] // 8, structural[1] // 8)
    assert out.anomaly_map.shape[-2:] == size, "maps come at the size of the images"


def test_score_is_the_maximum_of_the_merged_map() -> None:
    model = ready(make())
    image = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        out, maps = model(image), model.branch_maps(image).maps
        torch.testing.assert_close(out.pred_score, model.merger(maps).maps.amax(dim=(1, 2, 3)))
    torch.testing.assert_close(out.pred_score, out.anomaly_map.amax(dim=(1, 2, 3)))


@pytest.mark.parametrize("merging", ["sum", "maximum"])
@pytest.mark.parametrize("branches", ["both", "structural"])
def test_score_of_two_sizes_is_the_maximum_of_the_map_that_is_returned(branches: str, merging: str) -> None:
    """Enlarging a map lowers its peaks: an image above the threshold would have an empty mask."""
    model = ready(make({"structural_image_size": 256, "branches": branches, "merging": merging}))
    with torch.no_grad():
        out = model(torch.randn(4, 3, 256, 256))
    assert out.anomaly_map.shape == (4, 1, 256, 256)
    assert torch.equal(out.pred_score, out.anomaly_map.amax(dim=(1, 2, 3)))


def test_known_structural_map_saves_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ready(make())
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        first = model.branch_maps(image)
        assert model.structural is not None
        monkeypatch.setattr(model.structural.bank, "search", lambda queries: pytest.fail("searched"))
        again = model.branch_maps(image, {"structural": first.maps["structural"]})
    assert torch.equal(first.maps["structural"], again.maps["structural"])
    assert torch.equal(first.maps["logical"], again.maps["logical"])


@pytest.mark.parametrize("size", [128, 256], ids=["one network", "two networks"])
def test_known_maps_of_any_part_are_taken_as_they_are(size: int) -> None:
    """The parts and networks that only these maps need are not run."""
    model = ready(make({"structural_image_size": size}))
    image = torch.randn(1, 3, *model.config.image_size)
    passes: list[nn.Module] = []
    for network in (model.encoder, model.structural_encoder, model.logical, model.structural):
        if network is not None:
            network.register_forward_hook(lambda module, args, output: passes.append(module))
    with torch.no_grad():
        maps = model.branch_maps(image).maps
        passes.clear()
        found = model.branch_maps(image, {"logical": maps["logical"]}, details=True)
        assert passes == [model.structural_encoder or model.encoder, model.structural]
        assert found.maps["logical"] is maps["logical"]
        torch.testing.assert_close(found.maps["structural"], maps["structural"])
        assert found.reconstruction is None
        passes.clear()
        assert model.branch_maps(image, maps).maps == maps
        assert passes == []


@pytest.mark.parametrize("branches", ["logical", "structural"])
def test_a_branch_alone_builds_nothing_of_the_other(branches: str) -> None:
    model = ready(make({"branches": branches}))
    assert (model.logical is None) is (branches == "structural")
    assert (model.structural is None) is (branches == "logical")
    with torch.no_grad():
        output = model.branch_maps(torch.randn(1, 3, 128, 128), details=True)
    assert list(output.maps) == [branches]
    assert (output.reconstruction is None) is (branches == "structural")


def test_training_gives_losses_and_touches_no_backbone() -> None:
    model = make().train()
    losses = model(torch.randn(2, 3, 128, 128))
    losses["loss"].backward()
    assert model.encoder is not None
    assert not any(module.training for module in model.encoder._features.modules())
    assert all(p.grad is None for p in model.encoder.parameters())
    assert model.logical is not None
    assert any(p.grad is not None for p in model.logical.parameters())


def test_state_dict_holds_everything() -> None:
    """A fresh model with other random weights, and no bank, gives the same maps."""
    model = ready(make())
    torch.manual_seed(99)
    other = NpgmfModel(model.config)
    other.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(other.eval()(image).anomaly_map, model(image).anomaly_map)


def test_batches_do_not_mix() -> None:
    model = ready(make())
    images = torch.randn(3, 3, 128, 128)
    with torch.no_grad():
        together = model(images).anomaly_map
        alone = torch.cat([model(image[None]).anomaly_map for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


def test_weights_go_to_their_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[nn.Module, str | None]] = []
    config = ModelConfig(
        **TINY | {"logical_image_size": (128, 128), "text_prior": "none"},
        backbone_weights="a.pth",
        structural_backbone=None,
        logical=resolve("small", {}, SLIM_LOGICAL).logical,
    )
    model = NpgmfModel(config)
    monkeypatch.setattr(type(model.encoder), "load_weights", lambda self, weights: loaded.append((self, weights)))
    model.load_weights()
    assert loaded == [(model.encoder, "a.pth"), (model.structural_encoder, "a.pth")]


def test_each_network_sees_images_normalised_as_it_was_trained() -> None:
    """ImageNet's statistics for the logical branch's network, 0.5 for the other."""
    settings = {"backbone": "resnet18", "structural_backbone": "tf_efficientnet_lite0", "logical_image_size": 128}
    model = NpgmfModel(resolve("small", settings | {"structural_image_size": 128}, SLIM_LOGICAL)).eval()
    assert model.encoder is not None
    assert model.structural_encoder is not None
    assert (model.mean, model.std) == (model.encoder.mean, model.encoder.std)
    assert model.structural_encoder.mean == (0.5, 0.5, 0.5) != model.mean
    image = torch.rand(2, 3, 128, 128)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (model.mean, model.std))
    found = model.features((image - mean) / std).structural
    expected = model.structural_encoder((image - 0.5) / 0.5)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
