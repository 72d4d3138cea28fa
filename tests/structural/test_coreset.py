import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import seed_everything
from sklearn.random_projection import johnson_lindenstrauss_min_dim
from torch import Tensor

from anomalib_npgmf.structural import covering_radius, greedy, select_coreset
from anomalib_npgmf.structural.coreset import draw_projection


def smooth_patches(images: int, dim: int, seed: int = 0) -> Tensor:
    """Post-ReLU patches of smooth random feature maps, 16 x 16 per image."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(images, dim, 4, 4, generator=generator)
    maps = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear", align_corners=True).relu()
    return maps.permute(0, 2, 3, 1).reshape(-1, dim)


def literal_greedy(points: Tensor, size: int, start: int) -> list[int]:
    """Gonzalez' algorithm step by step, every distance from the difference in float64."""
    points = points.double()
    selected = [start]
    distance = (points - points[start]).norm(dim=1)
    while len(selected) < size:
        distance[selected] = -1
        selected.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[selected[-1]]).norm(dim=1))
    return selected


@pytest.mark.parametrize("seed", [0, 1])
def test_exact_equals_anomalib(seed: int) -> None:
    from anomalib.models.components import KCenterGreedy

    patches = smooth_patches(8, 384)
    seed_everything(seed)
    theirs = KCenterGreedy(patches, 0.1).select_coreset_idxs()
    assert select_coreset(patches, len(theirs), method="exact", seed=seed).tolist() == theirs


@pytest.mark.parametrize("pool", [2, 16, 512])
def test_exact_equals_literal_greedy_for_any_pool(pool: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "_POOL", pool)
    patches = smooth_patches(6, 24)
    matrix, start = draw_projection(*patches.shape, seed=3)
    assert matrix is None
    assert select_coreset(patches, 400, method="exact", seed=3).tolist() == literal_greedy(patches, 400, start)


def test_fast_covers_as_well_as_exact() -> None:
    patches = smooth_patches(12, 384)
    radius = {m: covering_radius(patches, select_coreset(patches, 150, method=m)) for m in ("fast", "exact")}
    assert radius["fast"] <= 1.005 * radius["exact"]


def test_coreset_covers_better_than_a_random_choice() -> None:
    patches = smooth_patches(12, 8)
    random = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:150]
    assert covering_radius(patches, select_coreset(patches, 150)) < 0.8 * covering_radius(patches, random)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_covers_nearly_as_well(dtype: torch.dtype) -> None:
    patches = smooth_patches(6, 384)
    full = covering_radius(patches, select_coreset(patches, 80))
    assert covering_radius(patches, select_coreset(patches.to(dtype), 80)) <= 1.05 * full


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.data())
def test_indices_are_distinct_even_among_duplicates(values: list[int], data: st.DataObject) -> None:
    points = torch.tensor(values, dtype=torch.float32)[:, None]
    size = data.draw(st.integers(1, len(values)))
    selected = select_coreset(points, size, method=data.draw(st.sampled_from(["fast", "exact"])))
    assert len(selected.unique()) == size
    if size >= len(set(values)):
        assert covering_radius(points, selected) == 0.0


def test_duplicates_beyond_one_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "_POOL", 4)
    points = torch.zeros(50, 3)
    points[7] = 1.0
    selected = select_coreset(points, 50)
    assert sorted(selected.tolist()) == list(range(50))
    assert 7 in selected[:2]


def test_leading_part_is_the_smaller_coreset() -> None:
    patches = smooth_patches(4, 64)
    assert torch.equal(select_coreset(patches, 200)[:50], select_coreset(patches, 50))


def test_covering_radius_equals_brute_force() -> None:
    patches = smooth_patches(2, 32) + 100.0
    index = torch.arange(0, 512, 37)
    expected = torch.cdist(patches.double(), patches[index].double()).amin(1).max()
    assert covering_radius(patches, index) == pytest.approx(float(expected), rel=1e-5)


def test_projection_keeps_distances_and_random_states() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    matrix, _ = draw_projection(3000, 1024, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert matrix is not None
    assert matrix.shape == (johnson_lindenstrauss_min_dim(3000, eps=0.9), 1024)
    points = torch.randn(200, 1024)
    ratio = torch.pdist(points @ matrix.T) / torch.pdist(points)
    assert ratio.mean() == pytest.approx(1.0, abs=0.05)
    assert ratio.std() < 0.1


def test_projection_changes_with_seed() -> None:
    first, _ = draw_projection(3000, 1024, seed=0)
    second, _ = draw_projection(3000, 1024, seed=1)
    assert first is not None
    assert second is not None
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [0, 5])
def test_size_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match="between 1 and the 4 embeddings"):
        select_coreset(torch.rand(4, 2), size)


def test_not_a_matrix() -> None:
    with pytest.raises(ValueError, match="matrix"):
        select_coreset(torch.rand(4, 2, 2), 1)


def test_not_finite() -> None:
    with pytest.raises(ValueError, match="NaN or Inf"):
        select_coreset(torch.tensor([[0.0], [float("nan")]]), 1)
