"""Normalisation and threshold from normal images alone, without losing the ranking of the scores."""

from typing import Any

import torch
from anomalib.post_processing import PostProcessor
from torch import Tensor

from anomalib_npgmf.merging.threshold import deviations, rate_interval

FALSE_ALARM_RATE = 0.01
_STORED = "normal_scores"


class CalibratedPostProcessor(PostProcessor):
    """anomalib's post-processor with a threshold from normal images only and a strictly increasing normalisation.

    anomalib chooses its threshold by F1 on the validation set, which some data modules take from the test set, and
    clamps scores to [0, 1], which makes strong anomalies tie. Here the threshold comes from the image scores of the
    calibration images: it lies so far above their mean that a share ``false_alarm_rate`` of normal images is expected
    above it, see `anomalib_npgmf.merging.threshold.deviations`. Pixels get theirs from the maxima of the maps, of which
    none counts for more than the image's score.
    Scores s become ``1/2 (1 + x / (1 + |x|))`` with ``x = (s - threshold) / (threshold - mean)``, which lies in (0, 1),
    is 1/2 at the threshold and 1/4 at the mean of the normal images' scores.

    Args:
        false_alarm_rate: Share of normal images that may be called anomalous, in (0, 0.5). The default is 0.01, or the
            rate of the checkpoint that is loaded. A rate that is given also moves the threshold of that checkpoint.
        **kwargs: See `anomalib.post_processing.PostProcessor`.

    Attributes:
        normal_scores: Image scores of the calibration images and maxima of their maps, at most the score, [N, 2].

    Raises:
        ValueError: If the rate is out of range.

    Example:
        >>> post = CalibratedPostProcessor(false_alarm_rate=0.05)
        >>> post.calibrate(torch.tensor([1.0, 2.0, 3.0]))
        >>> [round(v, 3) for v in post._normalize(torch.tensor([2.0, 50.0]), post.image_min, post.image_max,
        ...                                       post.image_threshold).tolist()]
        [0.25, 0.965]
        >>> round(post.image_threshold.item(), 3)  # 2 + 2.92 * sqrt(4 / 3)
        5.372
    """

    normal_scores: Tensor

    def __init__(self, false_alarm_rate: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._chosen = None if false_alarm_rate is None else _checked(false_alarm_rate)
        self.false_alarm_rate = FALSE_ALARM_RATE if self._chosen is None else self._chosen
        self.register_buffer(_STORED, torch.zeros(0, 2))

    def calibrate(self, scores: Tensor, peaks: Tensor | None = None) -> None:
        """Set thresholds and normalisation ranges.

        Args:
            scores: Image scores of normal images, [N].
            peaks: Maxima of their maps, [N]; ``None`` where these are the scores.

        Raises:
            ValueError: If there is no score or one is not finite.
        """
        both = torch.stack([scores, scores if peaks is None else peaks], dim=1)
        if not len(both) or not torch.isfinite(both).all():
            msg = "Calibration needs at least one normal image, and finite scores."
            raise ValueError(msg)
        self.normal_scores = both.to(self.image_min.device, torch.float32)
        self._set_thresholds()

    def set_false_alarm_rate(self, rate: float) -> None:
        """Move the thresholds of a calibrated model; scores, maps and their order stay as they are.

        Args:
            rate: Share of normal images that may be called anomalous, in (0, 0.5).

        Raises:
            ValueError: If the rate is out of range, or the scores of the normal images are not known.
        """
        self._chosen = self.false_alarm_rate = _checked(rate)
        if not len(self.normal_scores):
            msg = (
                "This model does not hold the scores of its normal images (it was calibrated before version 0.2), so "
                "its threshold cannot be moved; calibrate it anew with python -m anomalib_npgmf.calibrate."
            )
            raise ValueError(msg)
        self._set_thresholds()

    def statement(self) -> str:
        """What the threshold means, as a sentence; empty where it is not known."""
        count = len(self.normal_scores)
        if not count:
            return ""
        rate = self.false_alarm_rate
        about, low, high = (in_thousand(share) for share in (rate, *rate_interval(count, rate)))
        return (
            f"The threshold was set on {count} good picture{'s'[: count > 1]}: it will reject about {about} of 1,000 "
            f"good parts (95 % confidence: between {low} and {high})."
        )

    def _set_thresholds(self) -> None:
        for prefix, values in zip(("image", "pixel"), self.normal_scores.double().T, strict=True):
            mean = values.mean()
            spread = values.std() if len(values) > 1 else values.abs().mean()
            # Identical scores leave no spread; keep a range that float32 still resolves.
            spread = torch.maximum(spread, 1e-6 * mean.abs().clamp(min=1.0))
            threshold = mean + deviations(len(values), self.false_alarm_rate) * spread
            getattr(self, f"_{prefix}_threshold").copy_(threshold)
            getattr(self, f"{prefix}_min").copy_(mean)
            getattr(self, f"{prefix}_max").copy_(threshold)

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "false_alarm_rate")

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Load anomalib's fields and the false alarm rate, unless a rate was given to this object."""
        super().load_checkpoint_config(config)
        if self._chosen is not None:
            self.false_alarm_rate = self._chosen

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        stored = state_dict.setdefault(f"{prefix}{_STORED}", torch.zeros(0, 2))  # older checkpoints lack it
        self.normal_scores = torch.empty_like(stored, device=self.image_min.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if self._chosen is not None:
            self.set_false_alarm_rate(self._chosen)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Leave the validation set alone: it may hold test images."""

    def on_validation_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Leave the validation set alone: it may hold test images."""

    @staticmethod
    def _normalize(preds: Tensor | None, norm_min: Tensor, norm_max: Tensor, threshold: Tensor) -> Tensor | None:
        """Map scores into (0, 1), strictly increasing; see the class."""
        if preds is None:
            return None
        x = (preds - threshold) / (norm_max - norm_min)
        return 0.5 * (1 + x / (1 + x.abs()))


def in_thousand(share: float) -> str:
    """A share as a number out of 1,000, with two significant digits.

    Example:
        >>> [in_thousand(share) for share in (6e-20, 0.00034, 0.01, 0.1234, 1.0)]
        ['0', '0.34', '10', '120', '1000']
    """
    return f"{float(f'{1000 * share:.2g}') if share >= 1e-5 else 0:g}"


def _checked(rate: float) -> float:
    if not 0 < rate < 0.5:
        msg = f"false_alarm_rate is the share of good parts that may be rejected, between 0 and 0.5, not {rate}."
        raise ValueError(msg)
    return rate
