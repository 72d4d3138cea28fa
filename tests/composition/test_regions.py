"""The memory bank of regions: distances, held-out images, what it finds that counting cannot, and its explanation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomalib_npgmf.composition import CompositionBranch, CompositionConfig, Explanation, RegionExplanation
from anomalib_npgmf.composition.histogram import CodeHistograms
from anomalib_npgmf.composition.regions import RegionBank, explain_region
from anomalib_npgmf.config import resolve
from anomalib_npgmf.host.moved import former_choices, former_composition
from anomalib_npgmf.structural.whitening import whitening

CONFIG = CompositionConfig(
    levels=(3,), codebook_sizes=(3,), codebooks=1, grids=(2,), grid_codebook_sizes=(3,), region_levels=(4, 5)
)
CHANNELS = [3, 4, 2]


def features(images: int, seed: int) -> list[Tensor]:
    """Of levels 3, 4 and 5."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(images, count, 32 >> n, 32 >> n, generator=generator) for n, count in enumerate(CHANNELS, start=1)
    ]


def fitted(images: int = 12, config: CompositionConfig = CONFIG) -> CompositionBranch:
    branch = CompositionBranch(config.read_levels, CHANNELS, config)
    levels = features(images, 0)
    branch.collect(levels, [f"{i:02d}.png" for i in range(images)], torch.rand(images, 3, 64, 64))
    branch.finish()
    return branch


def patches(levels: list[Tensor]) -> Tensor:
    """[B, h w, d] of the region levels, by hand."""
    coarse = F.interpolate(levels[2], levels[1].shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([levels[1], coarse], dim=1).flatten(2).transpose(1, 2)


def exact(points: Tensor, others: Tensor) -> Tensor:
    return torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist")


def test_distances_equal_brute_force() -> None:
    branch = fitted()
    assert branch.regions is not None
    train = patches(features(12, 0))
    mean, matrix = whitening([train.flatten(0, 1)], [4, 2])
    bank = branch.regions.bank.embeddings
    assert len(bank) == int(0.1 * train.shape[0] * train.shape[1])
    unseen = features(3, 7)
    expected = torch.cdist((patches(unseen) - mean) @ matrix, bank).amin(dim=-1)
    found = branch.regions(unseen[1:])
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-4, atol=1e-5)
    assert found.shape == (3, 1, 8, 8)


def test_a_training_image_is_judged_by_others() -> None:
    """A fifth at a time is left out of whitening and bank; with itself among them its distances would be too small."""
    regions = RegionBank(CHANNELS[1:])
    keys = [f"{i:02d}.png" for i in (3, 0, 5, 1, 4, 2, 6)]
    levels = features(7, 0)[1:]
    regions.collect(levels, keys)
    held_out = regions.finish()
    assert held_out.shape == (7,)
    blocks = patches([levels[0], *levels])[torch.tensor([1, 3, 5, 0, 4, 2, 6])]  # in the order of the keys
    for fold in range(5):
        inside = [i for i in range(7) if i % 5 == fold]
        other = RegionBank(CHANNELS[1:])
        other.bank.append(torch.stack([blocks[i] for i in range(7) if i not in inside]))
        other.bank.coreset_ratio = 0.1
        other.bank.finish()
        for i in inside:
            expected = exact((blocks[i] - other.bank.center) @ other.bank.metric, other.bank.embeddings)
            assert held_out[i].item() == pytest.approx(expected.amin(dim=1).max().item(), rel=1e-4)


def test_held_out_distances_are_those_of_unseen_images() -> None:
    """Of many channels and few images, where whitening fits closely to the images that it has seen."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(64, 64, generator=generator)
    images = torch.einsum("cd,ndhw->nchw", mixing, torch.randn(40, 64, 4, 4, generator=generator))
    regions = RegionBank([64])
    regions.collect([images[:20]], [f"{i:02d}" for i in range(20)])
    held_out = regions.finish()
    unseen = regions([images[20:]]).amax((1, 2, 3))
    seen = regions([images[:20]]).amax((1, 2, 3))
    assert held_out.mean().item() == pytest.approx(unseen.mean().item(), rel=0.1)
    assert seen.mean() < 0.97 * held_out.mean()


def test_score_is_standardised() -> None:
    """By mean and deviation of the held-out distances; only grids have a margin."""
    branch = fitted()
    assert branch.mean.shape == (3,)
    assert branch.margin.tolist() == [0.0, 1.0, 0.0]
    with torch.no_grad():
        branch.mean[:2] = 1e9  # only the regions are left
    unseen = features(4, 9)
    assert branch.regions is not None
    expected = (branch.regions(unseen[1:]).amax((1, 2, 3)) - branch.mean[2]) / branch.std[2]
    torch.testing.assert_close(branch(unseen, (16, 16)).score, expected)


def test_a_new_region_is_found_and_explained() -> None:
    branch = fitted()
    levels = features(2, 5)
    levels[1][1, :, 6:, :2] += 8.0
    output = branch(levels, (32, 32), (64, 64))
    assert output.score[1] > output.score[0] + 5
    usual, found = output.explanations
    assert isinstance(found, RegionExplanation)
    assert found.place == "lower left"
    assert found.distance > 2 * found.normal_distance
    assert found.mask.shape == (64, 64)
    rows, columns = found.mask.nonzero().T
    assert rows.min() >= 40
    assert columns.max() < 24
    assert found.text == f"composition: {found.reason}"
    # regions do not mark anything in the map: it stays what is too many
    without = fitted(config=CompositionConfig(**{**CONFIG.__dict__, "region_levels": ()}))
    torch.testing.assert_close(output.anomaly_map, without(levels[:1], (32, 32)).anomaly_map)
    assert isinstance(without(levels[:1], (32, 32), (64, 64)).explanations[0], Explanation)
    assert usual is not None


def test_mask_of_an_image_below_the_normal_level_is_empty() -> None:
    assert not explain_region(torch.full((1, 4, 4), 0.5), 1.0, (8, 8)).mask.any()


@pytest.mark.parametrize("images", [2, 3])
def test_with_few_images_regions_do_not_count(images: int) -> None:
    branch = fitted(images)
    levels = features(1, 5)
    levels[1][:] += 50.0
    output = branch(levels, (16, 16), (16, 16))
    assert isinstance(output.explanations[0], Explanation)


def test_a_handful_of_regions_is_kept_whole() -> None:
    bank = RegionBank([2])
    bank.collect([torch.rand(4, 2, 1, 2)], list("abcd"))
    assert bank.finish().isfinite().all()
    assert len(bank.bank) == 8


def test_state_dict_restores_the_bank() -> None:
    branch = fitted()
    fresh = CompositionBranch(CONFIG.read_levels, CHANNELS, CONFIG)
    fresh.load_state_dict(branch.state_dict())
    levels = features(2, 3)
    for one, other in zip(branch(levels, (16, 16))[:2], fresh(levels, (16, 16))[:2], strict=True):
        assert torch.equal(one, other)


def test_levels_are_read_by_whom_they_belong_to() -> None:
    """Histograms see level 3 alone, regions levels 4 and 5."""
    branch = fitted()
    levels = features(2, 3)
    before = branch(levels, (16, 16))
    other = [levels[0], *features(2, 4)[1:]]
    assert torch.equal(before.anomaly_map, branch(other, (16, 16)).anomaly_map)
    assert CONFIG.read_levels == (3, 4, 5)


@pytest.mark.parametrize("count", [2, 3])
def test_the_map_shows_the_two_finest_levels(count: int) -> None:
    """A coarser level takes part in the distance, but its surplus would blur the map."""
    whole = CodeHistograms([3, 4, 5][-count:], CHANNELS[-count:], (3,), books=1)
    whole.fit(features(12, 0)[-count:], torch.zeros(12, 3, 128, 128, dtype=torch.uint8))
    with torch.no_grad():
        before = whole(features(2, 5)[-count:], (32, 32))
        before.evidence[-1].shares[1] += 1.0  # more surplus on level 5
        assert torch.equal(whole._surplus(before.evidence, (32, 32)), before.surplus) == (count == 3)


def test_preset_small_has_regions_and_plus_has_none() -> None:
    small = resolve("small", {}, composition=True)
    assert small.composition is not None
    assert (small.composition.levels, small.composition.region_levels) == ((3, 4, 5), (4, 5))
    assert small.structural.whiten
    assert small.structural.neighbourhood == (1, 3)
    chosen = resolve("small", {}, composition={"region_levels": []}).composition
    assert chosen == CompositionConfig(levels=(3, 4, 5))
    plus = resolve("plus", {})
    assert plus.composition == CompositionConfig()
    assert not plus.structural.whiten
    assert plus.structural.neighbourhood == (3,)
    assert resolve("fast", {}, composition=True).composition == CompositionConfig()


def test_files_of_before_have_no_regions() -> None:
    """Of version 0.1, whose files name no configuration; and a module that was pickled without them."""
    former = former_composition(former_choices(resolve("small", {}, composition=True)))
    assert former.composition == CompositionConfig(grids=(2, 3), grid_codebook_sizes=(32,))
    assert (former.structural.whiten, former.structural.neighbourhood) == (False, (3,))
    assert former_composition(resolve("small", {}, composition={"levels": (4,)})).composition == CompositionConfig(
        levels=(4,), grids=(2, 3), grid_codebook_sizes=(32,)
    )
    assert former_composition(resolve("small", {})).composition is None
    branch = fitted(config=CompositionConfig(**{**CONFIG.__dict__, "region_levels": ()}))
    state = branch.__getstate__()
    for name in ("_counted", "_regions", "regions"):
        state.pop(name, None)
    restored = CompositionBranch.__new__(CompositionBranch)
    restored.__setstate__(state)
    levels = features(2, 5)[:1]
    assert torch.equal(restored(levels, (16, 16)).score, branch(levels, (16, 16)).score)
