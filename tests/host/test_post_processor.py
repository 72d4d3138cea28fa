"""Post-processor: threshold from normal images, ranking kept, validation set never looked at."""

import math

import pytest
import torch
from _factory import make_model
from anomalib.data import ImageBatch, InferenceBatch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc

from anomalib_npgmf.config import resolve
from anomalib_npgmf.host.calibration import Calibrator, calibrate_on
from anomalib_npgmf.host.post_processor import CalibratedPostProcessor
from anomalib_npgmf.merging import MapMerger, Merged
from anomalib_npgmf.merging.threshold import deviations
from anomalib_npgmf.torch_model import NpgmfModel


def calibrated(scores: list[float]) -> CalibratedPostProcessor:
    post = CalibratedPostProcessor()
    post.calibrate(torch.tensor(scores))
    return post


def calibrated_for(rate: float, scores: list[float]) -> CalibratedPostProcessor:
    post = CalibratedPostProcessor(false_alarm_rate=rate)
    post.calibrate(torch.tensor(scores))
    return post


def normalise(post: CalibratedPostProcessor, scores: torch.Tensor) -> torch.Tensor:
    out = post._normalize(scores, post.image_min, post.image_max, post.image_threshold)
    assert out is not None
    return out


def test_threshold_is_the_bound_of_a_prediction_interval() -> None:
    """Mean + t sqrt(1 + 1/n) deviations; 4.5407 is the 0.99 quantile of Student's t with 3 degrees of freedom."""
    post = calibrated([1.0, 2.0, 3.0, 6.0])
    mean, deviation = 3.0, torch.tensor([1.0, 2.0, 3.0, 6.0]).std().item()
    threshold = mean + 4.5407 * math.sqrt(1.25) * deviation
    assert post.image_threshold.item() == pytest.approx(threshold, rel=1e-4)
    assert post.pixel_threshold == post.image_threshold
    assert normalise(post, torch.tensor([mean, threshold])).tolist() == pytest.approx([0.25, 0.5], abs=1e-4)


def test_the_rate_moves_the_threshold_and_keeps_the_order() -> None:
    post = calibrated([1.0, 2.0, 3.0, 6.0])
    raw = torch.linspace(-3, 40, 50)
    before, order = post.image_threshold.item(), normalise(post, raw).argsort()
    post.set_false_alarm_rate(0.2)
    assert post.image_threshold.item() < before
    assert post.image_threshold.item() == pytest.approx(
        calibrated_for(0.2, [1.0, 2.0, 3.0, 6.0]).image_threshold.item()
    )
    assert torch.equal(normalise(post, raw).argsort(), order)
    post.set_false_alarm_rate(0.01)
    assert post.image_threshold.item() == before


@pytest.mark.parametrize("rate", [0.0, 0.5, -0.1, 1.0, float("nan")])
def test_rates_out_of_range(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and"):
        CalibratedPostProcessor(false_alarm_rate=rate)


def test_a_given_rate_wins_over_the_stored_one_and_a_missing_one_does_not() -> None:
    stored = calibrated_for(0.1, [1.0, 2.0, 3.0, 6.0])
    for rate, expected in ((None, 0.1), (0.3, 0.3)):
        restored = CalibratedPostProcessor(false_alarm_rate=rate)
        restored.load_checkpoint_config(stored.checkpoint_config())
        restored.load_state_dict(stored.state_dict())
        other = calibrated_for(expected, [1.0, 2.0, 3.0, 6.0])
        assert restored.false_alarm_rate == expected
        assert torch.equal(restored.image_threshold, other.image_threshold)
        assert torch.equal(restored.normal_scores, stored.normal_scores)


def test_files_without_the_scores_of_normal_images_keep_their_threshold() -> None:
    state = calibrated([1.0, 2.0, 3.0]).state_dict()
    del state["normal_scores"]
    restored = CalibratedPostProcessor()
    restored.load_state_dict(state)
    assert torch.equal(restored.image_threshold, state["_image_threshold"])
    assert restored.statement() == ""
    with pytest.raises(ValueError, match="calibrate it anew"):
        CalibratedPostProcessor(false_alarm_rate=0.1).load_state_dict(state)


def test_statement_says_how_many_good_parts_are_rejected() -> None:
    post = calibrated_for(0.02, torch.randn(30, generator=torch.Generator().manual_seed(0)).tolist())
    assert post.statement().startswith("The threshold was set on 30 good pictures: it will reject about 20 of 1,000 ")


def test_pixels_have_a_threshold_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    scores, peaks = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 6.0, 8.0])
    monkeypatch.setattr(model.calibrator, "run", lambda batches: (scores, peaks))
    calibrate_on(model, [])
    post = model.post_processor
    assert isinstance(post, CalibratedPostProcessor)
    k = deviations(3, post.false_alarm_rate)
    assert (post.image_threshold.item(), post.pixel_threshold.item()) == pytest.approx((2 + k, 6 + 2 * k))
    assert (post.image_min.item(), post.pixel_min.item()) == pytest.approx((2.0, 6.0))


def test_a_pixel_of_a_good_image_counts_no_more_than_its_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """A composition may raise it above; it must not raise the threshold of all pixels."""
    model = NpgmfModel(resolve("small", {"logical_image_size": 128, "branches": "logical"})).eval()
    maps = torch.tensor([5.0, 0.5]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    monkeypatch.setattr(MapMerger, "forward", lambda self, parts: Merged(torch.tensor([1.0, 2.0]), maps))
    batch = ImageBatch(image=torch.rand(2, 3, 128, 128), image_path=["0.png", "1.png"])
    scores, peaks = Calibrator(model, lambda images: images).run([batch])
    assert scores.tolist() == [1.0, 2.0]
    assert peaks.tolist() == [1.0, 0.5]


@settings(max_examples=200, deadline=None)
@given(
    first=st.floats(-50, 50, width=32),
    second=st.floats(-50, 50, width=32),
    normal=st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=6),
)
def test_normalisation_is_strictly_increasing_within_0_and_1(first: float, second: float, normal: list[float]) -> None:
    post = calibrated(normal)
    unit = (post.image_max - post.image_min).item()
    # float32 tells apart what differs by more than its rounding of the squashed scores
    reach = max(abs(first - post.image_threshold.item()), abs(second - post.image_threshold.item())) / unit
    assume(abs(first - second) / unit > 1e-6 * (1 + reach) ** 2)
    low, high = normalise(post, torch.tensor(sorted([first, second])))
    assert 0 < low < high < 1


@pytest.mark.parametrize("scores", [[7.0], [7.0, 7.0, 7.0], [0.0, 0.0], [0.0], [1000.0, 1000.0], [-3.0]])
def test_identical_normal_scores(scores: list[float]) -> None:
    post = calibrated(scores)
    low, middle, high = normalise(post, torch.tensor([scores[0] - 1, scores[0], scores[0] + 1000]))
    assert 0 <= low < middle < 0.5 < high <= 1


def test_auroc_stays_that_of_the_raw_scores() -> None:
    """anomalib's clamp makes strong anomalies tie; here every pair keeps its order."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.cat([torch.randn(50, generator=generator), torch.randn(50, generator=generator) * 3 + 2])
    labels = torch.arange(100) >= 50
    post = calibrated(scores[:20].tolist())
    normalised = normalise(post, scores)
    assert torch.equal(normalised.argsort(), scores.argsort())
    # ranks lie outside [0, 1] and would go through torchmetrics' sigmoid, hence divided
    raw = scores.argsort().argsort() / 100
    assert binary_auroc(normalised, labels) == binary_auroc(raw, labels)


def test_labels_and_masks_agree() -> None:
    """An image is anomalous exactly when one of its pixels is."""
    post = calibrated([1.0, 2.0, 3.0])
    threshold = post.image_threshold.item()
    maps = torch.tensor([[threshold - 0.1, 0.0], [threshold + 0.1, 0.0]]).view(2, 1, 1, 2)
    out = post(InferenceBatch(pred_score=maps.amax(dim=(1, 2, 3)), anomaly_map=maps))
    assert out.pred_label.tolist() == [False, True]
    assert out.pred_mask.flatten().tolist() == [False, False, True, False]
    assert out.pred_score.tolist() == out.anomaly_map.amax(dim=(1, 2, 3)).tolist()


def test_validation_batches_are_not_looked_at() -> None:
    post = calibrated([1.0, 2.0, 3.0])
    before = {n: v.clone() for n, v in post.state_dict().items()}
    batch = ImageBatch(
        image=torch.rand(2, 3, 8, 8),
        gt_label=torch.tensor([0, 1]),
        gt_mask=torch.zeros(2, 8, 8, dtype=torch.bool),
        pred_score=torch.tensor([0.1, 99.0]),
        anomaly_map=torch.rand(2, 8, 8) * 99,
    )
    post.on_validation_batch_end(None, None, batch)
    post.on_validation_epoch_end(None, None)
    assert all(torch.equal(v, before[n]) for n, v in post.state_dict().items())


@pytest.mark.parametrize("scores", [[], [1.0, float("nan")], [float("inf")]])
def test_calibration_needs_finite_scores(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one normal image, and finite scores"):
        CalibratedPostProcessor().calibrate(torch.tensor(scores))


def test_calibration_is_stored() -> None:
    original, restored = calibrated([1.0, 2.0, 3.0]), CalibratedPostProcessor()
    restored.load_state_dict(original.state_dict())
    assert torch.equal(restored.image_threshold, original.image_threshold)
    assert normalise(restored, original.image_threshold).item() == pytest.approx(0.5)
