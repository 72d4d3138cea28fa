"""Merging: streaming statistics, eq. 11 and smoothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from anomalib_npgmf.distributed import gather_list
from anomalib_npgmf.merging.rule import MapMerger
from anomalib_npgmf.merging.statistics import MapStatistics
from anomalib_npgmf.torch_model import gaussian_blur


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    offset=st.floats(-1e3, 1e3),
    scale=st.floats(1e-2, 1e2),
    seed=st.integers(0, 2**16),
)
def test_statistics_equal_numpy_on_any_split(sizes: list[int], offset: float, scale: float, seed: int) -> None:
    values = np.random.default_rng(seed).normal(offset, scale, sum(sizes)).astype(np.float32)
    statistics = MapStatistics()
    for block in np.split(values, np.cumsum(sizes)[:-1]):
        statistics.update(torch.from_numpy(block).view(1, 1, -1, 1))
    assert statistics.count == len(values)
    assert statistics.mean == pytest.approx(values.astype(np.float64).mean(), rel=1e-9, abs=1e-9)
    assert statistics.std == pytest.approx(values.astype(np.float64).std(), rel=1e-9, abs=1e-9)


def test_large_mean_does_not_cancel_the_variance() -> None:
    statistics = MapStatistics()
    for value in (1e8, 1e8 + 8, 1e8 + 16):
        statistics.update(torch.full((1, 1, 2, 2), value, dtype=torch.float64))
    assert statistics.std == pytest.approx(np.std([0, 8, 16]))


def test_statistics_of_nothing() -> None:
    statistics = MapStatistics()
    statistics.combine(0, 5.0, 5.0)
    statistics.synchronise()
    assert (statistics.count, statistics.mean, statistics.std) == (0, 0.0, 0.0)


def test_synchronising_a_single_process_changes_nothing() -> None:
    statistics = MapStatistics()
    statistics.update(torch.tensor([1.0, 5.0]))
    statistics.synchronise()
    assert (statistics.count, statistics.mean, statistics.std) == (2, 3.0, 2.0)
    assert gather_list(["a"]) == ["a"]


def make_merger(size: tuple[int, int] = (32, 32), weights: tuple[float, float] = (1.0, 3.0)) -> MapMerger:
    merger = MapMerger(size, *weights, blur=gaussian_blur(size))
    merger.calibrate({"logical": (2.0, 0.5), "structural": (10.0, 4.0)})
    return merger


def test_equation_11_by_hand() -> None:
    merger = make_merger()
    merger.blur = torch.nn.Identity()
    logical, structural = torch.rand(2, 1, 32, 32) * 3, torch.rand(2, 1, 32, 32) * 20
    expected = (logical - 2) / 0.5 + 3 * (structural - 10) / 4
    torch.testing.assert_close(merger({"logical": logical, "structural": structural}).maps, expected)


@pytest.mark.parametrize(("branch", "mean", "std"), [("logical", 2.0, 0.5), ("structural", 10.0, 4.0)])
def test_a_single_branch_counts_with_weight_one(branch: str, mean: float, std: float) -> None:
    merger = make_merger(weights=(5.0, 7.0))
    merger.blur = torch.nn.Identity()
    raw = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(merger({branch: raw}).maps, (raw - mean) / std)


def test_summands_are_smoothed_and_add_up() -> None:
    merger = make_merger()
    maps = {"logical": torch.rand(1, 1, 32, 32), "structural": torch.rand(1, 1, 8, 8)}
    summands = merger.smoothed(maps)
    torch.testing.assert_close(summands["logical"], merger.blur((maps["logical"] - 2.0) / 0.5))
    torch.testing.assert_close(merger(maps).maps, sum(summands.values()), rtol=1e-5, atol=1e-5)
    alone = {"structural": maps["structural"]}
    torch.testing.assert_close(merger.smoothed(alone)["structural"], merger(alone).maps)


def test_maximum_of_calibrated_maps_by_hand() -> None:
    """Weights have no part in it, nor has the order of smoothing and comparing: the smoothed maps are compared."""
    merger = MapMerger((32, 32), 5.0, 7.0, maximum=True, blur=gaussian_blur((32, 32)))
    merger.calibrate({"logical": (2.0, 0.5), "structural": (10.0, 4.0)})
    logical, structural = torch.rand(2, 1, 32, 32) * 3, torch.rand(2, 1, 32, 32) * 20
    expected = torch.maximum(merger.blur((logical - 2) / 0.5), merger.blur((structural - 10) / 4))
    torch.testing.assert_close(merger({"logical": logical, "structural": structural}).maps, expected)
    torch.testing.assert_close(merger({"logical": logical}).maps, merger.blur((logical - 2) / 0.5))


@pytest.mark.parametrize("maximum", [False, True])
def test_smoothed_terms_combine_to_the_merged_map_of_the_branches(maximum: bool) -> None:
    """Smoothing is linear, and so is enlarging: the pictures need neither a second time."""
    merger = MapMerger((32, 32), output_size=(64, 64), maximum=maximum, blur=gaussian_blur((32, 32)))
    merger.calibrate({"logical": (2.0, 0.5), "structural": (10.0, 4.0)})
    maps = {"logical": torch.rand(2, 1, 32, 32) * 3, "structural": torch.rand(2, 1, 8, 8) * 20}
    for names in (["logical", "structural"], ["structural"]):
        given = {name: maps[name] for name in names}
        torch.testing.assert_close(merger.combined(merger.smoothed(given)), merger.merge_branches(given))
    assert merger.combined({}) is None


def test_nothing_to_merge() -> None:
    with pytest.raises(ValueError, match="nothing to merge among"):
        make_merger()({})


def test_maps_meet_at_one_size() -> None:
    merger = make_merger(size=(32, 16))
    coarse = torch.arange(8.0).view(1, 1, 4, 2)
    torch.testing.assert_close(
        merger.resize(coarse), torch.nn.functional.interpolate(coarse, size=(32, 16), mode="bilinear")
    )
    assert merger({"logical": torch.rand(1, 1, 32, 16), "structural": coarse}).maps.shape == (1, 1, 32, 16)


def test_blur_is_a_gaussian_of_four_pixels_at_256() -> None:
    merger = make_merger(size=(256, 256))
    image = torch.zeros(1, 1, 256, 256)
    image[..., 100:130, 90:140] = torch.rand(30, 50)
    expected = gaussian_filter(image[0, 0].double().numpy(), sigma=4.0, mode="mirror", truncate=4.0)
    np.testing.assert_allclose(merger.blur(image)[0, 0].numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("size", [(64, 64), (128, 96)])
def test_blur_keeps_constants_up_to_the_edge(size: tuple[int, int]) -> None:
    merger = make_merger(size=size)
    torch.testing.assert_close(merger.blur(torch.full((1, 1, *size), 3.0)), torch.full((1, 1, *size), 3.0))


def test_blur_scales_with_the_map() -> None:
    def spread(side: int) -> float:
        spot = torch.zeros(1, 1, side, side)
        spot[..., side // 2, side // 2] = 1.0
        line = make_merger(size=(side, side)).blur(spot).sum(dim=(0, 1, 2))
        position = torch.arange(side) - side // 2
        return ((line * position**2).sum() / line.sum()).sqrt().item()

    assert spread(256) == pytest.approx(4.0, rel=0.05)
    assert spread(512) == pytest.approx(2 * spread(256), rel=0.05)


def test_calibration_is_stored() -> None:
    restored = MapMerger((32, 32), 1.0, 3.0, blur=gaussian_blur((32, 32)))
    assert not restored.calibrated
    restored.load_state_dict(make_merger().state_dict())
    assert restored.calibrated
    maps = {"logical": torch.rand(1, 1, 32, 32), "structural": torch.rand(1, 1, 8, 8)}
    assert torch.equal(restored(maps).maps, make_merger()(maps).maps)


@pytest.mark.parametrize("std", [0.0, float("nan")])
def test_constant_or_broken_maps_are_refused(std: float) -> None:
    with pytest.raises(ValueError, match="structural map has a standard deviation of"):
        MapMerger((32, 32), 1.0, 3.0, blur=gaussian_blur((32, 32))).calibrate({"structural": (1.0, std)})


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ((-1.0, 1.0), "logical_weight must not be negative, but is -1.0"),
        ((1.0, float("nan")), "structural_weight must not be negative, but is nan"),
        ((0.0, 0.0), "must not both be zero"),
    ],
)
def test_bad_weights(weights: tuple[float, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MapMerger((32, 32), *weights, blur=gaussian_blur((32, 32)))
