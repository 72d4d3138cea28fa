"""What the composition adds to the merged map and score of the branches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalib_npgmf.merging import calibrate
from anomalib_npgmf.merging.rule import MapMerger
from anomalib_npgmf.torch_model import gaussian_blur


def composed(level: float = 0.0) -> MapMerger:
    merger = MapMerger((32, 32), 1.0, 3.0, composition=True, blur=torch.nn.Identity())
    assert merger.composition is not None
    merger.composition.calibrate(
        torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0]), normal_level=2.0 + level
    )
    merger.calibrate({"logical": (0.0, 1.0)})
    return merger


def distances(values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a composition without regions."""
    return {"composition_score": values, "histogram_score": values}


def test_the_larger_score_counts() -> None:
    """Both in standard deviations above the mean normal score, that of the branches minus 0.5."""
    maps = {"logical": torch.full((1, 1, 32, 32), 4.0), "composition": torch.zeros(1, 1, 32, 32)}  # two deviations
    for distance, expected in ((25.0, 1.5), (37.0, 1.7), (60.0, 4.0)):
        merged = composed()(maps | distances(torch.tensor([distance])))
        assert merged.scores.item() == pytest.approx(expected)
        torch.testing.assert_close(merged.maps, torch.full((1, 1, 32, 32), 2.0))  # without surplus it adds nothing


def test_a_region_raises_the_score_and_leaves_the_map() -> None:
    """How strongly surplus is marked depends on the histograms alone."""
    maps = {"logical": torch.zeros(1, 1, 32, 32), "composition": torch.ones(1, 1, 32, 32)}
    merger, counted = composed(), torch.tensor([40.0])
    without = merger(maps | distances(counted))
    merged = merger(maps | {"composition_score": torch.tensor([80.0]), "histogram_score": counted})
    assert merged.scores.item() == pytest.approx(6.0)
    assert without.scores.item() == pytest.approx(2.0)
    assert torch.equal(merged.maps, without.maps)
    assert torch.equal(
        merger.calibrated_maps(maps | {"composition_score": torch.tensor([80.0]), "histogram_score": counted})[
            "composition"
        ],
        merger.calibrated_maps(maps | distances(counted))["composition"],
    )


@settings(max_examples=50, deadline=None)
@given(distance=st.floats(0, 1e4), level=st.floats(-3, 3), seed=st.integers(0, 99))
def test_the_composition_never_hides_what_a_branch_marks(distance: float, level: float, seed: int) -> None:
    maps = {
        "logical": torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) * 3,
        "composition": torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(seed + 1)),
    }
    merger = composed(level)
    branches = merger({"logical": maps["logical"]}).maps - 2.0  # in deviations of one, above a mean of two
    merged = merger(maps | distances(torch.tensor([distance]))).maps
    assert (merged >= branches - 1e-5).all()
    lead = (distance - 20) / 10 - max(branches.max().item() - 0.5, 0.0)
    shown = 45 * min(max(lead, 0.0), 3.0) * maps["composition"]  # however large the distance
    torch.testing.assert_close(merged, torch.maximum(branches, branches.clamp(max=level) + shown), rtol=1e-4, atol=1e-3)


def test_the_level_that_most_normal_pixels_stay_below() -> None:
    """Maps that are constant in blocks, so that the quantile of a sample of the pixels is nearly that of all."""
    merger = MapMerger((64, 64), composition=True, blur=torch.nn.Identity())
    assert merger.composition is not None
    generator = torch.Generator().manual_seed(0)
    planes = torch.rand(6, 1, 16, 16, generator=generator).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    values = torch.rand(6, generator=generator)
    parts = [
        {"structural": planes[i : i + 2], "composition": torch.zeros(2, 1, 64, 64)} | distances(values[i : i + 2])
        for i in (0, 2, 4)
    ]
    calibrate(merger, parts)
    branches = merger.composition.of_branches(merger({"structural": planes}).maps)
    assert merger.composition.normal_level.item() == pytest.approx(np.quantile(branches.numpy(), 0.95), abs=0.02)
    merged = merger({"structural": planes, "composition": torch.zeros_like(planes)} | distances(values))
    peaks = branches.amax((1, 2, 3))
    assert peaks.mean().item() == pytest.approx(0, abs=1e-5)
    assert (merged.scores >= peaks - 0.5 - 1e-5).all()


@pytest.mark.parametrize("composition", [False, True])
def test_scores_and_thresholds_are_those_of_the_map_that_is_returned(composition: bool) -> None:
    """Merged at 32 pixels, returned at 64: what is calibrated on, scored, marked and drawn has the same peaks."""
    merger = MapMerger(
        (32, 32), output_size=(64, 64), blur=gaussian_blur((32, 32)), maximum=True, composition=composition
    )
    generator = torch.Generator().manual_seed(0)
    maps = {name: torch.rand(5, 1, 32, 32, generator=generator) for name in ("logical", "structural", "composition")}
    maps |= distances(torch.rand(5, generator=generator))
    calibrate(merger, [maps])
    branches = merger.merge_branches(maps)
    assert branches is not None
    assert branches.shape == (5, 1, 64, 64)
    peaks = branches.amax(dim=(1, 2, 3))
    merged = merger(maps)
    assert merged.maps.shape == (5, 1, 64, 64)
    assert {part.shape for part in merger.calibrated_maps(maps).values()} == {(5, 1, 64, 64)}
    if merger.composition is None:
        assert torch.equal(merged.scores, peaks)
        assert torch.equal(merged.maps, branches)
    else:
        assert merger.composition.mean[0].item() == pytest.approx(peaks.mean().item(), rel=1e-5)
        expected = torch.maximum(
            merger.composition.of_peaks(peaks), merger.composition.of_composition(maps["composition_score"])
        )
        assert torch.equal(merged.scores, expected)
