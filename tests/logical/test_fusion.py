"""Fusion: the sum of projections against the explicit concatenation."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anomalib_npgmf.logical.fusion import Fusion


def make_fusion(mode: str, *, channels: int = 12, prior: int = 5, codes: int = 7, **changes: Any) -> Fusion:
    options: dict[str, Any] = {"depth": 1, "window": 4, "head_dim": 4, "modulator": True} | changes
    return Fusion(channels, prior, codes, (8, 4), mode=mode, **options).eval()


def inputs(*, grid: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 12, 8, 4), torch.randn(1, 5, grid, grid), torch.randn(2, 7, 8, 4)


@pytest.mark.parametrize("grid", [1, 2])
def test_projection_equals_that_of_the_concatenation(grid: int) -> None:
    """[h ; g ; z_q] with g upsampled first, then one 1x1 convolution."""
    fusion = make_fusion("proj")
    fusion.blocks = nn.Sequential()
    x, prior, codes = inputs(grid=grid)
    upsampled = F.interpolate(prior, size=(8, 4), mode="bilinear", align_corners=False).expand(2, -1, -1, -1)
    assert fusion.project_prior is not None
    assert fusion.project_codes is not None
    weight = torch.cat([fusion.project.weight, fusion.project_prior.weight, fusion.project_codes.weight], dim=1)
    expected = F.conv2d(torch.cat([x, upsampled, codes], dim=1), weight, fusion.project.bias)
    torch.testing.assert_close(fusion(x, prior, codes), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [1, 2])
def test_concatenation_keeps_its_width(grid: int) -> None:
    fusion = make_fusion("concat")
    fusion.blocks = nn.Sequential()
    x, prior, codes = inputs(grid=grid)
    out = fusion(x, prior, codes)
    assert fusion.out_channels == 24
    torch.testing.assert_close(out[:, :12], x)
    torch.testing.assert_close(out[:, 17:], codes)
    assert torch.equal(out[0, 12:17], out[1, 12:17]), "one context serves all images"
    if grid == 1:
        assert torch.equal(out[:, 12:17], prior.expand(2, -1, 8, 4))
    else:
        # half-pixel centres: the corners of the map keep the corners of the grid
        torch.testing.assert_close(out[0, 12:17, 0, 0], prior[0, :, 0, 0])
        torch.testing.assert_close(out[0, 12:17, -1, -1], prior[0, :, -1, -1])


@pytest.mark.parametrize("mode", ["proj", "concat"])
def test_every_input_matters_for_every_pixel(mode: str) -> None:
    fusion = make_fusion(mode)
    x, prior, codes = inputs()
    base = fusion(x, prior, codes)
    for changed in (fusion(x + 1, prior, codes), fusion(x, prior + 1, codes), fusion(x, prior, codes + 1)):
        assert (changed != base).any(dim=1).all()


@pytest.mark.parametrize("mode", ["proj", "concat"])
@pytest.mark.parametrize(("prior", "codes"), [(0, 0), (5, 0), (0, 7)])
def test_absent_inputs(mode: str, prior: int, codes: int) -> None:
    fusion = make_fusion(mode, prior=prior, codes=codes)
    x, context, quantised = inputs()
    out = fusion(x, context if prior else None, quantised if codes else None)
    assert out.shape == (2, fusion.out_channels, 8, 4)
    assert fusion.out_channels == 12 + (prior + codes if mode == "concat" else 0)


def test_odd_blocks_are_shifted() -> None:
    fusion = Fusion(4, 0, 0, (8, 8), mode="proj", depth=3, window=4, head_dim=4, modulator=False)
    assert [block.attention.shifts for block in fusion.blocks] == [(0, 0), (2, 2), (0, 0)]


def test_size_that_windows_cannot_tile() -> None:
    with pytest.raises(ValueError, match="cannot tile"):
        Fusion(4, 0, 0, (12, 8), mode="proj", depth=1, window=8, head_dim=4, modulator=False)
