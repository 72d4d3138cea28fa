"""Properties that hold for any input: coreset, merging rule, AU-sPRO, post-processor."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import InferenceBatch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anomalib_npgmf.host.post_processor import CalibratedPostProcessor
from anomalib_npgmf.merging.rule import MapMerger
from anomalib_npgmf.metrics import auc_spro
from anomalib_npgmf.structural.bank import MemoryBank
from anomalib_npgmf.structural.coreset import covering_radius, select_coreset
from anomalib_npgmf.torch_model import gaussian_blur

SEEDS = st.integers(0, 2**31 - 1)
LIMITS = [0.05, 0.3, 1.0]


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------ coreset


@settings(max_examples=40)
@given(seed=SEEDS, number=st.integers(2, 9), size=st.integers(1, 4), method=st.sampled_from(["fast", "exact"]))
def test_the_radius_is_at_most_twice_the_best(seed: int, number: int, size: int, method: Any) -> None:
    """The bound of greedy k-centre; so few dimensions are not projected."""
    points, size = _random(seed, number, 2), min(size, number)
    chosen = select_coreset(points, size, method=method, seed=seed % 100)
    assert len(chosen.unique()) == size
    best = min(covering_radius(points, torch.tensor(rows)) for rows in combinations(range(number), size))
    assert covering_radius(points, chosen) <= 2 * best + 1e-5


@settings(max_examples=20)
@given(seed=SEEDS, images=st.integers(1, 6), order=st.randoms(use_true_random=False), split=st.integers(1, 6))
def test_the_bank_depends_neither_on_order_nor_on_batches(seed: int, images: int, order: Any, split: int) -> None:
    patches = _random(seed, images, 12, 3)
    shuffled = list(range(images))
    order.shuffle(shuffled)
    banks = []
    for rows, size in ((list(range(images)), images), (shuffled, split)):
        bank = MemoryBank(coreset_ratio=0.4)
        for start in range(0, images, size):
            part = rows[start : start + size]
            bank.append(patches[part], keys=[f"{row}.png" for row in part])
        bank.finish()
        banks.append(bank)
    assert torch.equal(banks[0].embeddings, banks[1].embeddings)
    queries = _random(seed + 1, 7, 3)
    distances = banks[0].search(queries)
    assert (distances >= 0).all()
    one_by_one = torch.cat([banks[1].search(query[None]) for query in queries])
    torch.testing.assert_close(distances, one_by_one, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ merging


def _merger(maximum: bool, weights: tuple[float, float]) -> MapMerger:
    merger = MapMerger((16, 16), *weights, blur=gaussian_blur((64, 64)), maximum=maximum)
    merger.calibrate({"logical": (0.5, 0.2), "structural": (3.0, 1.5)})
    return merger


@settings(max_examples=30)
@given(
    seed=SEEDS,
    maximum=st.booleans(),
    weights=st.tuples(st.floats(0.1, 5), st.floats(0.1, 5)),
    branches=st.sampled_from([("logical",), ("structural",), ("logical", "structural")]),
    raised=st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(0, 7), st.floats(0, 10)),
)
def test_merging_is_monotone_and_looks_at_each_image_alone(
    seed: int, maximum: bool, weights: tuple[float, float], branches: tuple[str, ...], raised: Any
) -> None:
    merger = _merger(maximum, weights)
    maps = {branch: _random(seed + index, 4, 1, 8, 8) for index, branch in enumerate(branches)}
    merged = merger(maps)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    for one, row in zip(order.tolist(), range(4), strict=True):
        alone = merger({branch: values[one : one + 1] for branch, values in maps.items()})
        again = merger({branch: values[order] for branch, values in maps.items()})
        torch.testing.assert_close(alone.maps[0], merged.maps[one], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again.scores[row], merged.scores[one], rtol=1e-5, atol=1e-5)
    image, y, x, amount = raised
    maps[branches[-1]][image, 0, y, x] += amount
    higher = merger(maps)
    assert (higher.maps >= merged.maps - 1e-5).all()
    assert (higher.scores >= merged.scores - 1e-5).all()


# ------------------------------------------------------------------ AU-sPRO


@settings(max_examples=30)
@given(seed=SEEDS, images=st.integers(1, 4), levels=st.sampled_from([2, 1000]), raised=st.floats(0, 3))
def test_spro_is_a_share_that_ignores_the_order_and_rises_with_defects(
    seed: int, images: int, levels: int, raised: float
) -> None:
    rng = np.random.default_rng(seed)
    maps = [torch.from_numpy(np.round(rng.random((6, 5)) * levels) / levels) for _ in range(images)]
    masks = [torch.from_numpy(rng.random((rng.integers(1, 3), 6, 5)) < 0.3) for _ in range(images)]
    for mask in masks:
        mask[:, 0, 0], mask[:, -1, -1] = True, False
    areas = [[int(rng.integers(1, 12)) for _ in mask] for mask in masks]
    values = auc_spro(maps, masks, areas, LIMITS)
    assert ((values >= 0) & (values <= 1)).all()
    order = rng.permutation(images).tolist()
    shuffled = auc_spro([maps[i] for i in order], [masks[i] for i in order], [areas[i] for i in order], LIMITS)
    torch.testing.assert_close(shuffled, values, rtol=0, atol=1e-12)
    higher = [score + raised * mask.any(dim=0) for score, mask in zip(maps, masks, strict=True)]
    assert (auc_spro(higher, masks, areas, LIMITS) >= values - 1e-12).all()


# ------------------------------------------------------------------ post-processor


@settings(max_examples=40)
@given(
    normal=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8),
    scores=st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_the_post_processor_keeps_the_ranking_and_looks_at_each_image_alone(
    normal: list[float], scores: list[float], order: Any
) -> None:
    post, shuffled = CalibratedPostProcessor(), list(normal)
    order.shuffle(shuffled)
    post.calibrate(torch.tensor(normal))
    again = CalibratedPostProcessor()
    again.calibrate(torch.tensor(shuffled))
    assert post.image_threshold.item() == pytest.approx(again.image_threshold.item(), rel=1e-6, abs=1e-6)
    raw = torch.tensor(scores)
    maps = raw.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    found = post(InferenceBatch(pred_score=raw, anomaly_map=maps))
    assert ((found.pred_score >= 0) & (found.pred_score <= 1)).all()
    assert (found.pred_score[raw.argsort()].diff() >= 0).all()
    assert torch.equal(found.pred_label.bool(), found.pred_score > 0.5)
    alone = [post(InferenceBatch(pred_score=raw[i : i + 1], anomaly_map=maps[i : i + 1])) for i in range(len(raw))]
    assert torch.equal(torch.cat([one.pred_score for one in alone]), found.pred_score)
    assert torch.equal(torch.cat([one.anomaly_map for one in alone]), found.anomaly_map)
