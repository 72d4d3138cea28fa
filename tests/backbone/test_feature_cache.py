"""Features kept on disk: the same training, each image encoded once, within the limit, not with augmentations."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from _factory import draw_category, make_engine, make_model, mvtec
from lightning import seed_everything
from torch import Tensor
from torchvision.transforms.v2 import RandomInvert

from anomalib_npgmf.backbone.cache import FeatureCache
from anomalib_npgmf.backbone.network import Backbone


class Encoder:
    """Two levels, the first one channels-last, and how many images it has seen."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.seen, self.dtype = 0, dtype

    def __call__(self, images: Tensor) -> list[Tensor]:
        self.seen += len(images)
        halves = images[:, :2, ::2, ::2].contiguous()
        return [images.to(self.dtype, memory_format=torch.channels_last), 3 * halves.to(self.dtype)]


def image(name: str) -> Tensor:
    return torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(ord(name)))


def fetch(cache: FeatureCache, names: str, encoder: Encoder) -> None:
    images = torch.stack([image(name) for name in names])
    found = cache.features(list(names), images, encoder)
    for ours, direct in zip(found, Encoder(encoder.dtype)(images), strict=True):
        assert ours.dtype == direct.dtype
        assert torch.equal(ours, direct)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert not found[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_image_is_encoded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    cache, encoder = FeatureCache(tmp_path / "new", images=5), Encoder(dtype)
    for names in ("ab", "bca", "edc", "abcde"):
        fetch(cache, names, encoder)
    assert encoder.seen == 5


@pytest.mark.parametrize(("images", "seen"), [(2, 2 + 2), (0, 6)])
def test_what_exceeds_the_limit_is_encoded_again(images: int, seen: int, tmp_path: Path) -> None:
    bytes_each = 4 * (3 * 16 + 2 * 4)
    cache, encoder = FeatureCache(tmp_path, images=3, limit=images * bytes_each), Encoder()
    fetch(cache, "abc", encoder)
    fetch(cache, "cba", encoder)
    assert encoder.seen == seen
    cache.close()


def test_it_says_its_size_and_leaves_nothing_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "anomalib_npgmf.backbone.cache"):
        cache = FeatureCache(tmp_path, images=3)
        fetch(cache, "abc", Encoder())
    assert "3 of 3 images" in caplog.text
    cache.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_category(tmp_path_factory.mktemp("data"), train=5)


def fit(category: Path, root: Path, patch: pytest.MonkeyPatch, **options: Any) -> tuple[dict[str, Tensor], int]:
    """State after three epochs, and how many images the encoder saw while training."""
    seen = []
    original = Backbone.forward

    def forward(self: Backbone, images: Tensor) -> list[Tensor]:
        seen.append(len(images))
        return original(self, images)

    augmentations = options.pop("train_augmentations", None)
    seed_everything(0)
    model = make_model(visualizer=False, branches="logical", **options)
    patch.setattr(Backbone, "forward", forward)
    datamodule = mvtec(category.parent, train_batch_size=2, train_augmentations=augmentations)
    make_engine(root, max_epochs=3).fit(model, datamodule=datamodule)
    patch.undo()
    return model.state_dict(), sum(seen)


def test_training_is_the_same(category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, all_passes = fit(category, tmp_path, monkeypatch)
    cached, passes = fit(category, tmp_path, monkeypatch, feature_cache=str(tmp_path / "cache"))
    assert all_passes - passes == 2 * 4, "four images train; the second and third epoch need no pass"
    for name, value in plain.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert list((tmp_path / "cache").iterdir()) == []


def test_augmentations_turn_it_off_with_a_warning(
    category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    with caplog.at_level(logging.WARNING, "anomalib_npgmf.backbone.cache"):
        fit(category, tmp_path, monkeypatch, feature_cache=str(cache), train_augmentations=RandomInvert(p=0.5))
    assert [record.message for record in caplog.records if "feature_cache" in record.message] != []
    assert not cache.exists()
