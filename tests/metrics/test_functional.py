from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc
from spro_reference import area_under, brute_force_curve

from anomalib_npgmf.metrics import auc_spro
from anomalib_npgmf.metrics.curve import SproCurve, merge_hits

LIMITS = [0.01, 0.05, 0.3, 0.77, 1.0]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray], list[list[int]]]:
    """Odd sizes, one or more images, ties or quantised or continuous scores, overlapping defects, any saturation."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 5, 0]))
    maps, masks, areas = [], [], []
    for index in range(draw(st.integers(1, 3))):
        height, width = draw(st.integers(2, 7)), draw(st.integers(1, 7))
        scores = rng.standard_normal((height, width)).astype(np.float32)
        maps.append(np.round(scores * levels) / levels if levels else scores)
        channels = draw(st.integers(1 if index == 0 else 0, 3))
        stack = rng.random((channels, height, width)) < draw(st.sampled_from([0.1, 0.5]))
        stack[:, 0, 0] = True  # no empty defect, and all of them overlap
        stack[:, -1, -1] = False  # some negative pixel
        masks.append(stack)
        areas.append([draw(st.integers(1, int(mask.sum()) + 3)) for mask in stack])
    return maps, masks, areas


def tensors(arrays: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_equals_brute_force(case: tuple[list[np.ndarray], list[np.ndarray], list[list[int]]]) -> None:
    maps, masks, areas = case
    values = auc_spro(tensors(maps), tensors(masks), areas, LIMITS)
    curve = brute_force_curve(*case)
    assert values.tolist() == pytest.approx([area_under(curve, limit) for limit in LIMITS], abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_only_the_ranking_matters(case: tuple[list[np.ndarray], list[np.ndarray], list[list[int]]]) -> None:
    maps, masks, areas = case
    wide = [np.exp(m.astype(np.float64)) * 1e6 for m in maps]
    expected = auc_spro(tensors(maps), tensors(masks), areas, LIMITS)
    torch.testing.assert_close(auc_spro(tensors(wide), tensors(masks), areas, LIMITS), expected, rtol=0, atol=1e-12)


def example(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.linspace(0, 1, 64).view(8, 8).to(dtype)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 4:7, 2:5] = True
    return scores, mask


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type(dtype: torch.dtype) -> None:
    scores, mask = example(dtype)
    expected = area_under(brute_force_curve([scores.float().numpy()], [mask.numpy()], [[4]]), 0.3)
    assert auc_spro([scores], [mask], [[4]], [0.3]).item() == pytest.approx(expected, abs=1e-9)


def test_double_precision_keeps_scores_apart() -> None:
    scores = torch.zeros(2, 2, dtype=torch.float64)
    scores[0, 0] = 1e-12 + 1
    scores[0, 1] = 1
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = True
    assert auc_spro([scores], [mask], [[1]], [1.0]).item() == 1.0
    assert auc_spro([scores.float()], [mask], [[1]], [1.0]).item() < 1.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda() -> None:
    scores, mask = example()
    assert auc_spro([scores.cuda()], [mask.cuda()], [[4]]) == auc_spro([scores], [mask], [[4]])


def test_perfect_and_constant_maps() -> None:
    _, mask = example()
    assert auc_spro([mask[0].float()], [mask], [[9]], LIMITS).tolist() == pytest.approx([1.0] * 5)
    # a constant map is the diagonal: half of the limit
    constant = auc_spro([torch.zeros(8, 8)], [mask], [[9]], LIMITS).tolist()
    assert constant == pytest.approx([limit / 2 for limit in LIMITS])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, m, a: ([s * float("nan")], [m], [a]), "NaN"),
        (lambda s, m, a: ([s[None]], [m], [a]), "one score per pixel"),
        (lambda s, m, a: ([s], [m[:, :4]], [a]), "one mask per saturation area"),
        (lambda s, m, a: ([s], [m], [[]]), "one mask per saturation area"),
        (lambda s, m, a: ([s], [m], [a, a]), "as many"),
        (lambda s, m, a: ([s], [m], [[0]]), "saturation area 0"),
        (lambda s, m, a: ([s], [m & False], [a]), "without pixels"),
        (lambda s, m, a: ([s], [m | True], [a]), "add a normal image"),
        (lambda s, m, a: ([s], [m[:0]], [[]]), "at least one image with a mask"),
    ],
)
def test_bad_input_is_explained(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        auc_spro(*change(*example(), [4]))


@pytest.mark.parametrize("limit", [0, -0.1, 1.5, float("nan")])
def test_bad_limit_is_explained(limit: float) -> None:
    scores, mask = example()
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        auc_spro([scores], [mask], [[4]], [limit])


def test_points_lie_on_the_curve() -> None:
    rng = np.random.default_rng(0)
    hits = merge_hits([rng.random(500), rng.random(300)], [600, 300])
    steps = rng.integers(0, 3, 2 * len(hits.scores)).cumsum()[::-1]  # ties and gaps between the hits
    curve = SproCurve(hits.gains, steps[1::2].astype(np.uint32), steps[::2].astype(np.uint32), int(steps[0]) + 5)
    fpr, spro = curve.points(10_000)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(spro) >= -1e-12).all()
    assert spro[-1] == pytest.approx((500 / 600 + 1) / 2)
    assert auc(fpr, spro) == pytest.approx(curve.area(1.0), abs=1e-9)
    few, _ = curve.points(50)
    assert len(few) <= 102
    assert set(few) <= set(fpr)
