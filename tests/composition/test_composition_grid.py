"""The histograms of the cells of a grid see what lies in the wrong place, or goes with the wrong part."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from anomalib_npgmf.composition import CompositionBranch, CompositionConfig
from anomalib_npgmf.composition.histogram import CodeHistograms, cell_means, surplus_of
from anomalib_npgmf.composition.model import GRID_MARGIN

SIDE = 8
CONFIG = CompositionConfig(levels=(3,), codebook_sizes=(3,), codebooks=1, grids=(2,), grid_codebook_sizes=(3,))


def _pair(left: int, right: int, seed: int) -> torch.Tensor:
    """Features [1, 3, 8, 8] with one part of a kind in each half, anywhere in it."""
    generator = torch.Generator().manual_seed(seed)
    features = 0.1 * torch.randn(1, 3, SIDE, SIDE, generator=generator)
    for half, kind in enumerate((left, right)):
        row = int(torch.randint(SIDE, (1,), generator=generator))
        column = int(torch.randint(SIDE // 2, (1,), generator=generator)) + half * SIDE // 2
        features[0, kind, row, column] += 5
    return features


@pytest.fixture(scope="module")
def branch() -> CompositionBranch:
    """Kind 1 goes with kind 1, kind 2 with kind 2: each is as normal as the other, on either side."""
    branch = CompositionBranch([3], [3], CONFIG)
    for seed in range(60):
        kind = 1 + seed % 2
        branch.collect([_pair(kind, kind, seed)], [f"{seed:03d}.png"], torch.zeros(1, 3, 32, 32))
    branch.finish()
    return branch


def test_wrong_partner_is_seen_by_the_grid_alone(branch: CompositionBranch) -> None:
    normal = torch.cat([_pair(k, k, 500 + seed) for seed in range(10) for k in (1, 2)])
    mixed = torch.cat([_pair(*kinds, 900 + seed) for seed in range(10) for kinds in ((1, 2), (2, 1))])
    whole, cells = ([part([images], (SIDE, SIDE))[0] for images in (normal, mixed)] for part in branch.histograms)
    assert cells[1].min() > cells[0].max()
    assert whole[1].mean() < whole[0].mean()  # half of each lies between the two normal cases
    distances = [branch([images], (SIDE, SIDE)).score for images in (normal, mixed)]
    assert distances[1].min() > distances[0].max()


def test_score_is_the_larger_of_two_histograms_in_their_own_units(branch: CompositionBranch) -> None:
    images = torch.cat([_pair(1, 1, 600), _pair(1, 2, 601), torch.zeros(1, 3, SIDE, SIDE)])
    output = branch([images], (SIDE, SIDE))
    squared = torch.stack([part([images], (SIDE, SIDE))[0] for part in branch.histograms])
    unit = (squared.sqrt() - branch.mean[:, None]) / branch.std[:, None]
    expected = torch.maximum(unit[0], unit[1] - GRID_MARGIN)
    assert torch.allclose(output.score, expected, atol=1e-4)
    whole, cells = (part([images], (SIDE, SIDE)).surplus for part in branch.histograms)
    assert torch.equal(output.surplus, torch.cat([torch.maximum(whole, cells), cells], dim=1))


def test_map_and_explanation_point_into_the_right_cell() -> None:
    branch = CompositionBranch([3], [3], CONFIG)
    for seed in range(40):
        branch.collect([_pair(1, 2, seed)], [f"{seed:03d}.png"], torch.zeros(1, 3, 32, 32))
    branch.finish()
    swapped = torch.cat([_pair(2, 1, 700 + seed) for seed in range(5)])
    surplus = branch([swapped], (SIDE, SIDE)).surplus[:, 0]
    for image, explanation in zip(range(5), branch([swapped], (SIDE, SIDE), (SIDE, SIDE)).explanations, strict=True):
        row, column = divmod(int(surplus[image].argmax()), SIDE)
        assert swapped[image, 1:, row, column].max() > 4  # the map peaks on a part
        assert explanation.place.endswith("quarter")
        assert explanation.place in explanation.text
        half = SIDE // 2
        quarters = {
            f"{name} quarter": explanation.mask[rows, columns]
            for name, rows, columns in (
                ("upper left", slice(half), slice(half)),
                ("upper right", slice(half), slice(half, None)),
                ("lower left", slice(half, None), slice(half)),
                ("lower right", slice(half, None), slice(half, None)),
            )
        }
        assert [name for name, mask in quarters.items() if mask.any()] == [explanation.place]


def test_map_is_the_surplus_of_each_patch_by_hand() -> None:
    """Weighted by what its code contributes to the distance, relative to the largest contribution."""
    part = CodeHistograms([3], [3], (3,), books=2, grid=2, whiten=True)
    part.fit([torch.cat([_pair(1, 2, seed) for seed in range(30)])], torch.zeros(30, 3, 128, 128, dtype=torch.uint8))
    features, half = _pair(2, 2, 800), SIDE // 2
    memberships = part.codes[0](features)[0]
    variation = part.variations[0]
    normal = variation.mean.view(2, 3, 2, 2).square() - 1e-4
    vector = part.histogram(memberships[None])[0].flatten(1) - variation.mean
    contributions = (vector * torch.einsum("rij,rj->ri", variation.precision, vector)).view(2, 3, 2, 2).clamp_min(0)
    expected = torch.zeros(SIDE, SIDE)
    for row in range(SIDE):
        for column in range(SIDE):
            y, x = row // half, column // half
            cell = memberships[:, :, y * half : (y + 1) * half, x * half : (x + 1) * half].mean((-2, -1))
            surplus = ((cell - normal[:, :, y, x].clamp_min(0)) / cell).nan_to_num(0).clamp(0, 1)
            surplus = surplus * contributions[:, :, y, x] / contributions.max()
            expected[row, column] = (memberships[:, :, row, column] * surplus).sum(1).mean()
    assert expected.max() > 0.3
    torch.testing.assert_close(part([features], (SIDE, SIDE)).surplus[0, 0], expected, rtol=1e-3, atol=1e-3)


def test_map_enlarges_each_level_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the mean over the pairs of level and codebook size, of the two finest of three levels."""
    part = CodeHistograms([3, 4, 5], [3, 3, 3], (2, 3, 4), books=2, grid=2)
    finest = torch.cat([_pair(1, 2, seed) for seed in range(40)])
    levels = [finest, F.avg_pool2d(finest, 2), F.avg_pool2d(finest, 4)]
    part.fit(levels, torch.zeros(40, 3, 128, 128, dtype=torch.uint8))
    probe = _pair(2, 2, 800)
    enlarge, sides = F.interpolate, []

    def counted(patches: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        sides.append(patches.shape[-1])
        return enlarge(patches, **kwargs)

    monkeypatch.setattr(F, "interpolate", counted)
    output = part([probe, F.avg_pool2d(probe, 2), F.avg_pool2d(probe, 4)], (32, 32))
    assert sides == [SIDE, SIDE // 2]
    assert part.inputs == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    largest = max(float(found.contributions.max()) for found in output.evidence)
    surplus = [surplus_of(found, found.contributions.clamp_min(0) / largest) for found in output.evidence[:6]]
    expected = torch.stack([enlarge(patches, size=(32, 32), mode="bilinear") for patches in surplus]).mean(dim=0)
    assert expected.max() > 0.05
    torch.testing.assert_close(output.surplus, expected)


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_cells_are_the_means_of_equal_parts(grid: int) -> None:
    values = torch.rand(2, 3, SIDE, SIDE)
    rows = cell_means(SIDE, grid, values)
    assert torch.allclose(rows @ values @ rows.T, F.adaptive_avg_pool2d(values, grid), atol=1e-6)


def test_cells_share_a_patch_that_lies_across() -> None:
    rows = cell_means(5, 2, torch.zeros(1))
    assert torch.allclose(rows, torch.tensor([[0.4, 0.4, 0.2, 0, 0], [0, 0, 0.2, 0.4, 0.4]]))


@pytest.mark.parametrize("count", [2, 3, 4, 10])
def test_few_training_images(count: int) -> None:
    """Below four images the unit is unknown and grids are disabled; from four on good images do not stick out."""
    branch = CompositionBranch([3], [3], CompositionConfig(levels=(3,), codebook_sizes=(3,), grid_codebook_sizes=(3,)))
    for seed in range(count):
        branch.collect([_pair(1, 2, seed)], [f"{seed:03d}.png"], torch.zeros(1, 3, 32, 32))
    branch.finish()
    good = torch.cat([_pair(1, 2, 300 + seed) for seed in range(20)])
    output = branch([good], (SIDE, SIDE))
    assert output.surplus.isfinite().all()
    if count < 4:
        whole = branch.histograms[0]([good], (SIDE, SIDE))[0].clamp_min(0).sqrt()
        assert torch.allclose(output.score, whole)
        surplus = branch.histograms[0]([good], (SIDE, SIDE)).surplus
        assert torch.equal(
            output.surplus[:, :2], surplus.expand(-1, 2, -1, -1)
        )  # also for the other of the whole image
        assert (output.surplus[:, 2:] == 0).all()
    else:
        assert output.score.median() < 4
    if count == 10:
        swapped = torch.cat([_pair(2, 1, 400 + seed) for seed in range(20)])
        assert branch([swapped], (SIDE, SIDE)).score.median() > 2 * output.score.median()


def test_reduced_precision_around_it_changes_nothing(branch: CompositionBranch) -> None:
    images = torch.cat([_pair(1, 2, 600), _pair(2, 2, 601)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = branch([images], (SIDE, SIDE))
    for ours, theirs in zip(branch([images], (SIDE, SIDE))[:2], reduced[:2], strict=True):
        assert torch.equal(ours, theirs)
