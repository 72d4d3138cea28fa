"""Reasons that a person can check: the patches of a code show its part, and its regions are counted."""

import pickle

import pytest
import torch
from torch import Tensor

from anomalib_npgmf.composition import CompositionBranch, Explanation
from anomalib_npgmf.composition.config import CompositionConfig

SIDE = 16
PLACES = [(1, 1), (1, 7), (7, 1), (7, 7), (12, 12)]
CONFIG = CompositionConfig(levels=(3,), codebook_sizes=(3,), codebooks=1, grids=())


def _scene(parts: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features [1, 3, 16, 16] and image [1, 3, 128, 128] of that many red squares of 3 x 3 cells on grey.

    The ground is of two kinds, of which normal images have more or less, so that its codes tell little.
    """
    generator = torch.Generator().manual_seed(seed)
    shown = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    for row, column in (PLACES[i] for i in torch.randperm(len(PLACES), generator=generator)[:parts].tolist()):
        shown[row : row + 3, column : column + 3] = True
    ground = torch.arange(SIDE).expand(SIDE, SIDE) < int(torch.randint(3, 13, (), generator=generator))
    noise = torch.rand(SIDE, SIDE, generator=generator)
    features = torch.stack([shown * 8.0, (ground & ~shown) * 8.0, noise])[None]
    large = shown.repeat_interleave(8, 0).repeat_interleave(8, 1)
    red, grey = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.5, 0.5, 0.5])
    return features, torch.where(large, red.view(3, 1, 1), grey.view(3, 1, 1))[None]


@pytest.fixture(scope="module")
def branch() -> CompositionBranch:
    branch = CompositionBranch([3], [3], CONFIG)
    for seed in range(20):
        features, image = _scene(3, seed)
        branch.collect([features], [f"{seed:03d}"], image)
    branch.finish()
    return branch


def explain(branch: CompositionBranch, parts: int) -> Explanation:
    (found,) = branch([_scene(parts, 100)[0]], (SIDE, SIDE), (SIDE, SIDE)).explanations
    return found


def test_patches_show_the_part(branch: CompositionBranch) -> None:
    found = explain(branch, 5)
    assert found.patches is not None
    assert found.patches.shape == (3, 3, 32, 32)
    middle = found.patches[:, :, 12:20, 12:20].float().mean((0, 2, 3)) / 255
    torch.testing.assert_close(middle, torch.tensor([0.9, 0.1, 0.1]), atol=0.02, rtol=0)
    others = branch.histograms[0].examples[0].patches[0, [code for code in range(3) if code != found.code]]
    assert others[..., 12:20, 12:20].float().mean((1, 3, 4))[:, 0].amax() / 255 < 0.6


@pytest.mark.parametrize(("parts", "words"), [(2, "one region"), (1, "2 regions"), (4, "one region"), (5, "2 regions")])
def test_regions_are_counted(branch: CompositionBranch, parts: int, words: str) -> None:
    found = explain(branch, parts)
    assert found.regions == (parts, 3)
    verb = {2: "is missing", 1: "are missing", 4: "is too many", 5: "are too many"}[parts]
    assert f"{words} of code {found.code} {verb}, {parts} instead of 3 (level 3, 3 codes" in found.text


def test_no_count_where_normal_images_differ() -> None:
    branch = CompositionBranch([3], [3], CONFIG)
    for seed in range(20):
        features, image = _scene(1 + seed % 4, seed)
        branch.collect([features], [f"{seed:03d}"], image)
    branch.finish()
    found = explain(branch, 5)
    assert found.regions is None
    assert "than normal (" in found.text


def test_files_without_examples_load_and_explain_without(branch: CompositionBranch) -> None:
    state = {name: value for name, value in branch.state_dict().items() if ".examples." not in name}
    restored = CompositionBranch([3], [3], CONFIG)
    restored.load_state_dict(state)
    assert torch.equal(restored.mean, branch.mean)
    found = explain(restored, 2)
    assert found.patches is None
    assert found.regions is None
    pickled = pickle.loads(pickle.dumps(restored))
    del pickled.histograms[0]._modules["examples"]
    assert explain(pickled, 2).text == found.text


def test_examples_come_from_every_few_images_of_many() -> None:
    """Of more than two hundred images every second one is looked at, whatever the blocks in which they are read."""
    branch = CompositionBranch([3], [3], CONFIG)
    for number in range(202):
        features, image = _scene(3 if number % 2 == 0 else 1, number)
        branch.collect([features], [f"{number:03d}"], image)
    branch.finish()
    regions = branch.histograms[0].examples[0].regions[0]
    assert [3.0, 0.0] in regions.tolist()
