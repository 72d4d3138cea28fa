"""Whitening: distances are Mahalanobis distances, level by level, and travel with the bank."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import Tensor

from anomalib_npgmf.structural import MemoryBank
from anomalib_npgmf.structural.config import StructuralConfig
from anomalib_npgmf.structural.model import StructuralBranch
from anomalib_npgmf.structural.whitening import RIDGE, whitening

CHANNELS = (3, 2)


def patches(images: int = 4, seed: int = 0) -> Tensor:
    """Correlated patches of two levels, of very different scales and far from the origin, [images, 50, 5]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(5, 5, generator=torch.Generator().manual_seed(99)) * torch.tensor([1.0, 1.0, 1.0, 30.0, 30.0])
    return torch.randn(images, 50, 5, generator=generator) @ mixing + 20


def by_hand(points: Tensor) -> np.ndarray:
    """The matrix from numpy: the inverse square root of each level's regularised covariance, scaled."""
    values = points.double().numpy()
    result, start = np.zeros((5, 5)), 0
    for channels in CHANNELS:
        own = slice(start, start + channels)
        covariance = np.cov(values[:, own].T)
        regularised = covariance + RIDGE * np.trace(covariance) / channels * np.eye(channels)
        variances, directions = np.linalg.eigh(regularised)
        root = directions @ np.diag(variances**-0.5) @ directions.T
        result[own, own] = root / np.sqrt(np.trace(root @ covariance @ root))
        start += channels
    return result


@pytest.mark.parametrize("blocks", [1, 4])
def test_matrix_equals_numpy(blocks: int) -> None:
    points = patches().flatten(0, 1)
    mean, matrix = whitening(list(points.chunk(blocks)), CHANNELS)
    torch.testing.assert_close(mean.double(), points.double().mean(dim=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(matrix.numpy(), by_hand(points), rtol=1e-3, atol=1e-6)
    spread = ((points - mean) @ matrix).var(dim=0)
    assert spread[:3].sum().item() == pytest.approx(1.0, rel=1e-4)
    assert spread[3:].sum().item() == pytest.approx(1.0, rel=1e-4)


def test_distances_equal_brute_force_in_whitened_space() -> None:
    bank = MemoryBank(1.0, whiten=CHANNELS)
    bank.append(patches())
    bank.finish()
    queries = patches(1, seed=5)[0]
    matrix = torch.from_numpy(by_hand(patches().flatten(0, 1)))
    expected = torch.cdist(queries.double() @ matrix, patches().flatten(0, 1).double() @ matrix).amin(dim=1)
    torch.testing.assert_close(bank.search(queries).double(), expected, rtol=2e-3, atol=1e-4)
    assert bank.search(patches().flatten(0, 1)).max() < 1e-4


def test_scale_of_a_level_does_not_matter() -> None:
    """Multiplying the features of a level changes nothing; without whitening it would."""
    scale = torch.tensor([1.0, 1.0, 1.0, 100.0, 100.0])
    for whiten, same in ((CHANNELS, True), (None, False)):
        plain, scaled = MemoryBank(0.2, whiten=whiten), MemoryBank(0.2, whiten=whiten)
        plain.append(patches())
        scaled.append(patches() * scale)
        for bank in (plain, scaled):
            bank.finish()
        queries = patches(1, seed=5)[0]
        found = torch.allclose(plain.search(queries), scaled.search(queries * scale), rtol=1e-2)
        assert found == same


@pytest.mark.parametrize("options", [{}, {"dtype": torch.float16}, {"reduce_to": 3}])
def test_state_restores_the_metric(options: dict[str, object]) -> None:
    bank = MemoryBank(0.2, whiten=CHANNELS, **options)  # type: ignore[arg-type]
    bank.append(patches())
    bank.finish()
    stored = io.BytesIO()
    torch.save(bank.state_dict(), stored)
    stored.seek(0)
    fresh = MemoryBank(0.2, whiten=CHANNELS, **options)  # type: ignore[arg-type]
    fresh.load_state_dict(torch.load(stored, weights_only=True))
    queries = patches(1, seed=5)[0]
    assert torch.equal(fresh.search(queries), bank.search(queries))
    assert torch.equal(copy.deepcopy(bank).search(queries), bank.search(queries))


def test_files_without_a_metric_still_load() -> None:
    bank = MemoryBank(0.2)
    bank.append(patches())
    bank.finish()
    state = {name: value for name, value in bank.state_dict().items() if name != "metric"}
    fresh = MemoryBank(0.2)
    fresh.load_state_dict(state)
    assert torch.equal(fresh.search(patches()[0]), bank.search(patches()[0]))


def test_the_branch_whitens_its_levels() -> None:
    branch = StructuralBranch([3, 2], StructuralConfig(levels=(3, 4), whiten=True))
    assert branch.bank.whiten == (3, 2)
    assert StructuralBranch([3, 2]).bank.whiten is None


def test_constant_features_stay_finite() -> None:
    bank = MemoryBank(0.5, whiten=CHANNELS)
    bank.append(torch.ones(2, 10, 5))
    bank.finish()
    assert bank.search(torch.ones(3, 5)).tolist() == [0.0, 0.0, 0.0]
