"""Codes, normal variation and collection against what defines them."""

from dataclasses import replace

import pytest
import torch
from sklearn.covariance import LedoitWolf

from anomalib_npgmf.composition import CompositionBranch
from anomalib_npgmf.composition.codes import SoftCodes, _whitening
from anomalib_npgmf.composition.collector import FeatureCollector
from anomalib_npgmf.composition.config import CompositionConfig
from anomalib_npgmf.composition.variation import NormalVariation


def _clusters(count: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, channels, generator=generator) * 5
    return centres.repeat(count // 4, 1) + 0.1 * torch.randn(count, channels, generator=generator)


def test_memberships_are_those_of_the_gaussian_mixture() -> None:
    patches = _clusters(400, 6)
    codes = SoftCodes(6, size=3, books=2)  # fewer codes than clusters: one code lies between two
    codes.fit(patches)
    found = codes(patches.T.reshape(1, 6, 20, 20))[0]
    for book in range(2):
        # |c|^2 = t * -bias and 2 c = t * weight give t
        t = 4 * -codes.bias[book] / codes.weight[book].square().sum(1)
        assert torch.allclose(t, t.mean().expand_as(t), rtol=1e-4)
        centres = codes.weight[book] * t[:, None] / 2
        expected = torch.softmax(-torch.cdist(patches, centres).square() / t.mean(), dim=1)
        assert torch.allclose(found[book].flatten(1).T, expected, atol=1e-4)
        nearest = torch.cdist(patches, centres).amin(1).square()
        assert torch.isclose(nearest.median(), t.mean(), rtol=1e-3)


def test_codes_are_deterministic_and_differ_between_books() -> None:
    patches = torch.randn(500, 5, generator=torch.Generator().manual_seed(1))
    first, second = SoftCodes(5, 4, 2), SoftCodes(5, 4, 2)
    first.fit(patches)
    second.fit(patches)
    assert torch.equal(first.weight, second.weight)
    assert not torch.allclose(first.weight[0], first.weight[1])


def test_whitened_codes_are_those_of_whitened_patches() -> None:
    """The whitening lies in the convolution: memberships are those of a mixture fitted to whitened patches."""
    generator = torch.Generator().manual_seed(3)
    patches = torch.randn(900, 4, generator=generator) * torch.tensor([5.0, 1.0, 0.2, 0.2]) + 3
    codes = SoftCodes(4, size=3, books=1, whiten=True)
    codes.fit(patches)
    mean, back = _whitening(patches)
    whitened = (patches - mean) @ back
    variances = whitened.var(dim=0)
    assert variances.max() < 1.01
    assert variances[0] > 0.9
    assert variances[2] == pytest.approx(0.04 / (0.04 + 0.2 * 26.08 / 4), rel=0.2)  # what hardly varies is damped
    plain = SoftCodes(4, size=3, books=1)
    plain.fit(whitened)
    found = codes(patches.T.reshape(1, 4, 30, 30))
    assert torch.allclose(found, plain(whitened.T.reshape(1, 4, 30, 30)), atol=1e-3)


def test_whitened_codes_tell_small_differences_apart() -> None:
    """Two kinds of part that differ in a weak feature, beside a strong one that varies in every part."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(800) % 2
    patches = torch.cat([1.5 * torch.randn(800, 1, generator=generator), 1.4 * kind[:, None].float()], dim=1)
    for whiten in (False, True):
        codes = SoftCodes(2, size=2, books=1, whiten=whiten)
        codes.fit(patches)
        found = codes(patches.T.reshape(1, 2, 20, 40))[0, 0].argmax(0).flatten()
        agreement = max(float((found == k).float().mean()) for k in (kind, 1 - kind))
        assert (agreement > 0.95) == whiten


def test_codes_need_patches() -> None:
    with pytest.raises(ValueError, match="lower codebook_sizes"):
        SoftCodes(2, 8, 1).fit(torch.zeros(7, 2))


def test_projected_features_get_the_same_memberships() -> None:
    features = _clusters(64, 200).T.reshape(1, 200, 8, 8)
    collector = FeatureCollector([200])
    collector.append([features], ["a"], torch.zeros(1, 3, 4, 4))
    (kept,), _ = collector.assemble()
    projection = collector.projections[0]
    assert projection is not None
    assert kept.shape == (1, 128, 8, 8)
    codes = SoftCodes(200, 4, 1)
    codes.fit(kept.permute(0, 2, 3, 1).flatten(0, 2), projection)
    back = torch.einsum("cd,bdhw->bchw", projection, kept.float())
    assert torch.allclose(codes(features), codes(back), atol=0.02)  # kept in half precision
    assert codes(features).amax(2).min() > 0.99  # four clusters are found as four codes
    assert len(codes(features).argmax(2).unique()) == 4


def test_collector_ignores_order_and_repetitions() -> None:
    images = torch.randn(5, 3, 4, 4)
    keys = [f"{i}.png" for i in range(5)]
    forward, backward = FeatureCollector([3]), FeatureCollector([3])
    forward.append([images], keys, images)
    backward.append([images.flip(0)], keys[::-1], images.flip(0))
    backward.append([torch.zeros(2, 3, 4, 4)], keys[:2], torch.zeros(2, 3, 4, 4))
    (first,), thumbnails = forward.assemble()
    (second,), others = backward.assemble()
    assert torch.equal(first, second)
    assert torch.equal(thumbnails, images)
    assert torch.equal(others, images)


def test_collector_refuses_what_is_not_finite_and_nothing() -> None:
    collector = FeatureCollector([1])
    with pytest.raises(ValueError, match=r"'b.png'"):
        collector.append([torch.tensor([1.0, 1e9]).view(2, 1, 1, 1)], ["a.png", "b.png"], torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="no images"):
        FeatureCollector([1]).assemble()


def test_distance_is_that_of_scikit_learn_up_to_scale() -> None:
    vectors = torch.randn(40, 2, 6, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.1, 1, 6)
    variation = NormalVariation(2, 6)
    variation.fit(vectors)
    probe = torch.randn(7, 2, 6)
    deviation, gradient = variation(probe)
    for book in range(2):
        model = LedoitWolf().fit(vectors[:, book].numpy())
        scale = model.mahalanobis(vectors[:, book].numpy()).mean()
        expected = torch.from_numpy(model.mahalanobis(probe[:, book].numpy()) / scale).float()
        assert torch.allclose((deviation * gradient).sum(2)[:, book], expected, rtol=1e-3)


def test_variation_needs_two_images() -> None:
    with pytest.raises(ValueError, match="at least two"):
        NormalVariation(1, 2).fit(torch.ones(1, 1, 2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": ()},
        {"levels": (3, 3)},
        {"levels": (0,)},
        {"codebooks": 0},
        {"codebook_sizes": ()},
        {"grids": (0,)},
        {"grids": 2},
        {"grids": None},
        {"grids": (2.0,)},
        {"grids": (2, 2)},
        {"grid_codebook_sizes": (1,)},
    ],
)
def test_config_refuses(wrong: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^composition\.{next(iter(wrong))} must be"):
        CompositionConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("grids", "sizes", "expected"),
    [
        ((1, 2, 4), (), (64, 64, 8)),
        ((2, 3, 16), (), (64, 19, 2)),
        ((4, 2), (16,), (16, 16)),
        ((4, 2), (16, 32), (16, 32)),
        ((), (), ()),
        ((), (4,), ()),
    ],
)
def test_codes_of_grids(grids: tuple[int, ...], sizes: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """One number for each grid, one for all, or 512 / n^3 up to 64."""
    config = CompositionConfig(grids=grids, grid_codebook_sizes=sizes)
    assert config.codes_of_grids == expected
    branch = CompositionBranch([3], [2], replace(config, levels=(3,)))
    assert [part.codes[0].weight.shape[1] for part in branch.histograms][1:] == list(expected)  # type: ignore[index]


def test_config_refuses_sizes_that_fit_no_grid() -> None:
    with pytest.raises(ValueError, match=r"for each of the grids \(2, 3, 4\), or one for all, not \(8, 16\)"):
        CompositionConfig(grids=(2, 3, 4), grid_codebook_sizes=(8, 16))


def test_config_from_yaml() -> None:
    assert CompositionConfig(grids=[3, 2], levels=[4, 3]) == CompositionConfig(grids=(3, 2), levels=(3, 4))  # type: ignore[arg-type]
    assert CompositionConfig(grids=[]).grids == ()  # type: ignore[arg-type]
