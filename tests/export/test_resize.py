"""The resize in the graph is torchvision's."""

import pytest
import torch
from _exported import SLIM
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Normalize, Resize

from anomalib_npgmf import Npgmf
from anomalib_npgmf.backbone.resize import AntialiasedResize
from anomalib_npgmf.host.compat import exportable


@pytest.mark.parametrize("source", [(1000, 700), (64, 64), (300, 50), (129, 97), (1, 1)])
@pytest.mark.parametrize("target", [(128, 96), (32, 32)])
def test_same_as_torchvision(source: tuple[int, int], target: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *source)
    expected = Resize(target, antialias=True)(image)
    torch.testing.assert_close(AntialiasedResize(target)(image), expected, rtol=0, atol=1e-5)


def test_own_size_is_left_alone() -> None:
    image = torch.rand(1, 3, 32, 48)
    assert AntialiasedResize((32, 48))(image) is image


@pytest.mark.parametrize("interpolation", [InterpolationMode.BILINEAR, "bilinear", 2])
def test_every_way_to_ask_for_bilinear(interpolation: InterpolationMode | str | int) -> None:
    image = torch.rand(1, 3, 90, 70)
    try:
        Resize(8, interpolation=interpolation)(image)
    except ValueError:
        pytest.skip("this version of torchvision knows no names")
    transform = Compose([Resize((32, 32), interpolation=interpolation, antialias=True), CenterCrop(16)])
    torch.testing.assert_close(exportable(transform)(image), transform(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("antialias", [True, False])
def test_models_own_pre_processing(antialias: bool) -> None:
    own = Npgmf(preset="small", logical_image_size=128, logical=SLIM)
    image = torch.rand(1, 3, 300, 200)
    torch.testing.assert_close(own.pre_processor(image), own.pre_processor.transform(image), rtol=0, atol=1e-4)
    given = exportable(Compose([Resize((128, 128), antialias=antialias), Normalize([0.5] * 3, [0.5] * 3)]))
    assert isinstance(given.transforms[0], AntialiasedResize) == antialias
