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
    """Of histograms of the whole image and of cells."""
    merger = MapMerger((32, 32), 1.0, 3.0, composition=[1, 2], blur=torch.nn.Identity())
    assert merger.composition is not None
    merger.composition.calibrate(
        torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0]), normal_level=2.0 + level
    )
    merger.calibrate({"logical": (0.0, 1.0)})
    return merger


def test_the_larger_score_counts() -> None:
    """Both in standard deviations above the mean normal score, no margin."""
    maps = {"structural": torch.full((1, 1, 32, 32), 4.0), "composition": torch.zeros(1, 2, 32, 32)}  # two deviations
    for scores, expected in (([25.0, 30.0], 2.0), ([42.0, 30.0], 2.2), ([30.0, 60.0], 4.0)):
        merged = composed()(maps | {"composition_scores": torch.tensor([scores])})
        assert merged.scores.item() == pytest.approx(expected)
        torch.testing.assert_close(merged.maps, torch.full((1, 1, 32, 32), 2.0))  # without surplus it adds nothing


def test_each_histogram_marks_its_own_surplus() -> None:
    """A lead of the cells does not mark what the whole image has too much of, and the other way round."""
    surplus = torch.zeros(1, 2, 32, 32)
    surplus[0, 0, :16], surplus[0, 1, 16:] = 0.1, 0.1
    maps, merger = {"logical": torch.zeros(1, 1, 32, 32), "composition": surplus}, composed()
    for scores, upper, lower in (([35.0, 0.0], 45 * 0.1, 0.0), ([0.0, 30.0], 0.0, 240 * 0.1 * 0.5)):
        found = maps | {"composition_scores": torch.tensor([scores])}
        raised = merger(found).maps - merger({"logical": maps["logical"]}).maps.sub(2.0)
        torch.testing.assert_close(raised[0, 0, :, 0], torch.tensor([upper, lower]).repeat_interleave(16))
        torch.testing.assert_close(raised, merger.calibrated_maps(found)["composition"])


def test_a_lead_is_what_exceeds_the_branches_less_one_standard_deviation() -> None:
    """And half a standard deviation, if that is more."""
    surplus = torch.full((1, 2, 32, 32), 0.1)
    for peak, score, lead in ((3.0, 24.0, 0.0), (3.0, 35.0, 1.0), (5.0, 39.0, 0.0), (5.0, 50.0, 1.0), (5.0, 99.0, 2.0)):
        maps = {"logical": torch.full((1, 1, 32, 32), peak), "composition": surplus}  # s = 1 and 3
        merged = composed(-2.0)(maps | {"composition_scores": torch.tensor([[score, 0.0]])})
        torch.testing.assert_close(merged.maps, torch.full((1, 1, 32, 32), max(peak - 2, -2.0 + 45 * 0.1 * lead)))


def test_cells_count_a_further_lead_where_the_branches_see_nothing() -> None:
    surplus = torch.full((1, 2, 32, 32), 0.01)
    for peak, further in ((2.0, 1.0), (4.5, 0.5), (7.0, 0.0), (30.0, 0.0)):  # s = 0, 2.5, 5 and 28
        maps = {"structural": torch.full((1, 1, 32, 32), peak), "composition": surplus}
        base = max(peak - 3.0, 0.5)
        for lead, counted in ((0.5, 0.5), (3.0, 1.0), (5.0, 1 + 2 * further), (50.0, 1 + 3 * further)):
            scores = torch.tensor([[0.0, 20 + 10 * (base + lead)]])
            raised = composed().calibrated_maps(maps | {"composition_scores": scores})["composition"]
            torch.testing.assert_close(raised, torch.full((1, 1, 32, 32), 2.4 * counted), rtol=1e-4, atol=1e-4)


def test_the_composition_alone_counts_every_score_as_a_lead() -> None:
    maps = {"composition": torch.full((1, 2, 32, 32), 0.1)}
    for score, counted in ((10.0, 0.0), (25.0, 0.5), (30.0, 1.0), (70.0, 3.0), (999.0, 4.0)):
        merged = composed()(maps | {"composition_scores": torch.tensor([[0.0, score]])})
        torch.testing.assert_close(merged.maps, torch.full((1, 1, 32, 32), 24.0 * counted))


def test_the_logical_map_is_raised_where_the_composition_leads() -> None:
    """Nothing has a surplus; the logical map has two places above its level of two, a weak one and a strong one."""
    logical = torch.zeros(1, 1, 32, 32)
    logical[..., 8, 8], logical[..., 20, 20] = 2.25, 4.0
    maps = {"logical": logical, "composition": torch.zeros(1, 2, 32, 32)}  # s = 2, so that the limit is 3 + 5 * 0.6
    for lead, weak, strong in ((1.0, 0.5, 4.0), (1.2, 0.6, 4.8), (9.0, 4.5, 6.0), (99.0, 6.0, 6.0)):
        scores = torch.tensor([[0.0, 20 + 10 * (1 + lead)]])
        merged = composed(1.0)(maps | {"composition_scores": scores}).maps
        assert merged[0, 0, 8, 8].item() == pytest.approx(0.25 + weak)
        assert merged[0, 0, 20, 20].item() == pytest.approx(1.0 + strong)
        assert merged[0, 0, 0, 0].item() == pytest.approx(-2)


@settings(max_examples=50, deadline=None)
@given(whole=st.floats(0, 1e4), cells=st.floats(0, 1e4), level=st.floats(-3, 3), seed=st.integers(0, 99))
def test_the_composition_never_hides_what_a_branch_marks(whole: float, cells: float, level: float, seed: int) -> None:
    maps = {
        "logical": torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) * 3,
        "composition": torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(seed + 1)),
    }
    merger = composed(level)
    branches = merger({"logical": maps["logical"]}).maps - 2.0  # in deviations of one, above a mean of two
    merged = merger(maps | {"composition_scores": torch.tensor([[whole, cells]])}).maps
    assert (merged >= branches - 1e-5).all()
    peak = branches.max().item()
    quiet = min(max(1 - peak / 5, 0.0), 1.0)
    leads = [max((score - 20) / 10 - max(peak - 1, 0.5), 0.0) for score in (whole, cells)]
    factors = (45 * min(leads[0], 2.0), 240 * (min(leads[1], 1.0) + quiet * min(max(leads[1] - 3, 0.0), 3.0)))
    shown = torch.maximum(factors[0] * maps["composition"][:, :1], factors[1] * maps["composition"][:, 1:])
    logical = (2 * max(leads) * (maps["logical"] - 2).clamp(min=0)).clamp(max=3 + 5 * quiet)
    shown = shown.maximum(logical)
    torch.testing.assert_close(merged, torch.maximum(branches, branches.clamp(max=level) + shown), rtol=1e-4, atol=1e-3)


def test_the_level_that_most_normal_pixels_stay_below() -> None:
    """Maps that are constant in blocks, so that the quantile of a sample of the pixels is nearly that of all."""
    merger = MapMerger((64, 64), composition=[1], blur=torch.nn.Identity())
    assert merger.composition is not None
    generator = torch.Generator().manual_seed(0)
    planes = torch.rand(6, 1, 16, 16, generator=generator).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    values = torch.rand(6, 1, generator=generator)
    parts = [
        {
            "structural": planes[i : i + 2],
            "composition": torch.zeros(2, 1, 64, 64),
            "composition_scores": values[i : i + 2],
        }
        for i in (0, 2, 4)
    ]
    calibrate(merger, parts)
    branches = merger.composition.of_branches(merger({"structural": planes}).maps)
    assert merger.composition.normal_level.item() == pytest.approx(np.quantile(branches.numpy(), 0.95), abs=0.02)
    merged = merger({"structural": planes, "composition": torch.zeros_like(planes), "composition_scores": values})
    peaks = branches.amax((1, 2, 3))
    assert peaks.mean().item() == pytest.approx(0, abs=1e-5)
    assert (merged.scores >= peaks - 1e-5).all()


@pytest.mark.parametrize("composition", [None, [1]])
def test_scores_and_thresholds_are_those_of_the_map_that_is_returned(composition: list[int] | None) -> None:
    """Merged at 32 pixels, returned at 64: what is calibrated on, scored, marked and drawn has the same peaks."""
    merger = MapMerger(
        (32, 32), output_size=(64, 64), blur=gaussian_blur((32, 32)), maximum=True, composition=composition
    )
    generator = torch.Generator().manual_seed(0)
    maps = {name: torch.rand(5, 1, 32, 32, generator=generator) for name in ("logical", "structural", "composition")}
    maps["composition_scores"] = torch.rand(5, 1, generator=generator)
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
            merger.composition.of_peaks(peaks), merger.composition.of_composition(maps["composition_scores"])
        )
        assert torch.equal(merged.scores, expected)
