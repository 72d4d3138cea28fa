"""The histogram of the whole image sees amounts, points at the surplus and explains it; places do not matter to it."""

import io

import numpy as np
import pytest
import torch

from anomalib_npgmf.composition import CompositionBranch, CompositionConfig
from anomalib_npgmf.composition.variation import NormalVariation, cross_validated

SIDE = 16
COLOURS = torch.tensor([[0.0, 0.0, 0.0], [6.0, 0.0, 1.0], [0.0, 6.0, -1.0]])


def _scene(bolts: int, washers: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [1, 3, 16, 16] and labels of a floor with 2 x 2 parts that lie anywhere on a 2 x 2 grid."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(SIDE * SIDE // 4, generator=generator)[: bolts + washers]
    labels = torch.zeros(SIDE * SIDE // 4, dtype=torch.long)
    labels[places[:bolts]] = 1
    labels[places[bolts:]] = 2
    labels = labels.view(SIDE // 2, SIDE // 2).repeat_interleave(2, 0).repeat_interleave(2, 1)
    features = COLOURS[labels].permute(2, 0, 1)[None] + 0.3 * torch.randn(1, 3, SIDE, SIDE, generator=generator)
    return features, labels


@pytest.fixture(scope="module")
def branch() -> CompositionBranch:
    branch = CompositionBranch([3], [3], CompositionConfig(levels=(3,), codebook_sizes=(4,), codebooks=2, grids=()))
    for seed in range(30):
        branch.collect([_scene(4, 6, seed)[0]], [f"{seed:03d}.png"], torch.zeros(1, 3, 32, 32))
    branch.finish()
    return branch


def _distance(branch: CompositionBranch, bolts: int, washers: int) -> torch.Tensor:
    images = torch.cat([_scene(bolts, washers, 1000 + seed)[0] for seed in range(8)])
    return branch([images], (SIDE, SIDE)).score


@pytest.mark.parametrize(("bolts", "washers"), [(3, 6), (5, 6), (4, 5), (4, 7)])
def test_one_part_too_few_or_too_many(branch: CompositionBranch, bolts: int, washers: int) -> None:
    assert _distance(branch, bolts, washers).min() > 1.5 * _distance(branch, 4, 6).max()


def test_places_do_not_matter(branch: CompositionBranch) -> None:
    features, _ = _scene(4, 6, 77)
    shuffled = features.flatten(2)[..., torch.randperm(SIDE * SIDE)].view_as(features)
    first, second = (branch([f], (SIDE, SIDE)).score for f in (features, shuffled))
    assert torch.allclose(first, second, atol=1e-4)


def test_extra_parts_light_up(branch: CompositionBranch) -> None:
    features, labels = _scene(9, 6, 5)  # nine of a part where normal images have four or five
    surplus = branch([features], (SIDE, SIDE)).surplus[0, 0]
    assert 0.3 < surplus[labels == 1].mean() < 0.7
    assert surplus[labels == 1].mean() > 5 * surplus[labels != 1].mean()
    assert surplus.min() >= 0
    assert surplus.max() <= 1


def test_where_a_part_is_missing_the_background_stays_dark(branch: CompositionBranch) -> None:
    """There is a little more background than normal, and that little is what it shows."""
    features, _ = _scene(0, 6, 6)
    output = branch([features], (SIDE, SIDE))
    assert output.score[0] > 2
    assert output.surplus.max() < 0.25


def test_explanation_names_level_and_marks_the_surplus(branch: CompositionBranch) -> None:
    features, labels = _scene(12, 6, 3)
    (explanation,) = branch([features], (SIDE, SIDE), (SIDE, SIDE)).explanations
    assert explanation.level == 3
    assert f"code {explanation.code}" in explanation.text
    assert explanation.mask.shape == (SIDE, SIDE)
    assert abs(explanation.share - explanation.normal_share) > 0.02
    kind = labels[explanation.mask].mode().values
    assert ("more" if kind == 1 else "less") in explanation.text


def test_state_dict_carries_everything_and_shapes_are_fixed(branch: CompositionBranch) -> None:
    whole = branch
    branch = CompositionBranch([3], [3], CompositionConfig(levels=(3,), codebook_sizes=(4,), codebooks=2))
    for seed in range(10):
        branch.collect([_scene(4, 6, seed)[0]], [f"{seed:03d}.png"], torch.zeros(1, 3, 32, 32))
    branch.finish()
    assert len(branch.histograms) > len(whole.histograms)
    file = io.BytesIO()
    torch.save(branch.state_dict(), file)
    file.seek(0)
    fresh = CompositionBranch([3], [3], CompositionConfig(levels=(3,), codebook_sizes=(4,), codebooks=2))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    features, _ = _scene(5, 6, 1)
    for ours, theirs in zip(branch([features], (32, 32))[:2], fresh([features], (32, 32))[:2], strict=True):
        assert torch.equal(ours, theirs)


def test_image_of_equal_patches_is_surplus_as_a_whole(branch: CompositionBranch) -> None:
    output = branch([torch.zeros(1, 3, SIDE, SIDE)], (SIDE, SIDE))
    assert output.score[0] > 2
    torch.testing.assert_close(output.surplus, output.surplus.mean().expand_as(output.surplus))


def test_order_and_batches_do_not_matter() -> None:
    images = torch.cat([_scene(4, 6, seed)[0] for seed in range(8)])
    keys = [f"{i}.png" for i in range(8)]
    config = CompositionConfig(levels=(3,), codebook_sizes=(3,), codebooks=1, grid_codebook_sizes=(4,))
    one, other = CompositionBranch([3], [3], config), CompositionBranch([3], [3], config)
    small = torch.rand(8, 3, 128, 128)
    one.collect([images], keys, small)
    for index in (5, 1, 7, 0, 3, 2, 6, 4, 4):
        other.collect([images[index : index + 1]], [keys[index]], small[index : index + 1])
    one.finish()
    other.finish()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_held_out_distances_are_those_from_the_other_images(branch: CompositionBranch) -> None:
    """With the codes kept, the normal variation is fitted anew without each image; unseen images are like that."""
    (part,) = branch.histograms
    vectors = torch.cat([part.histogram(part.codes[0](_scene(4, 6, seed)[0])) for seed in range(30)]).flatten(2)
    distances = []
    for index in range(30):
        others = NormalVariation(*vectors.shape[1:])
        others.fit(torch.cat([vectors[:index], vectors[index + 1 :]]))
        deviation, gradient = others(vectors[index : index + 1])
        distances.append((deviation * gradient).sum(dim=2).mean().sqrt().item())
    assert branch.mean.item() == pytest.approx(np.mean(distances), rel=1e-4)
    assert branch.std.item() == pytest.approx(np.std(distances, ddof=1), rel=1e-3)
    number, mean, squares = branch.cv_stats.tolist()
    assert number == 30
    assert mean == pytest.approx(0, abs=1e-4)
    assert squares == pytest.approx(29, rel=1e-3)
    unseen = torch.cat([_scene(4, 6, 1000 + seed)[0] for seed in range(60)])
    seen = torch.cat([_scene(4, 6, seed)[0] for seed in range(30)])
    far, near = (branch([images], (SIDE, SIDE)).score.mean().item() for images in (unseen, seen))
    assert near < mean
    assert abs(far - mean) < 0.5


def test_of_many_images_several_are_left_out_at_a_time() -> None:
    vectors = torch.randn(150, 2, 3, generator=torch.Generator().manual_seed(0))
    squared = cross_validated(vectors)
    others = NormalVariation(2, 3)
    others.fit(vectors[torch.arange(150) % 60 != 7])  # 7, 67 and 127 are left out together
    deviation, gradient = others(vectors[[7, 67, 127]])
    assert torch.allclose(squared[[7, 67, 127]], (deviation * gradient).sum(dim=2).mean(dim=1), atol=1e-5)
    assert torch.equal(cross_validated(vectors[:2]), torch.zeros(2))
