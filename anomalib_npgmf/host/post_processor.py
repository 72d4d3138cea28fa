"""Normalisation and threshold from normal images alone, without losing the ranking of the scores."""

from typing import Any

import torch
from anomalib.post_processing import PostProcessor
from torch import Tensor

THRESHOLD_DEVIATIONS = 3.0


class CalibratedPostProcessor(PostProcessor):
    """anomalib's post-processor with a threshold from normal images only and a strictly increasing normalisation.

    anomalib chooses its threshold by F1 on the validation set, which some data modules take from the test set, and
    clamps scores to [0, 1], which makes strong anomalies tie. Here the threshold is the mean plus three standard
    deviations of the image scores of the calibration images, and that of pixels the same of the maxima of their maps.
    Scores s become ``1/2 (1 + x / (1 + |x|))`` with
    ``x = (s - threshold) / (threshold - mean)``, which lies in (0, 1), is 1/2 at the threshold and 1/4 at the mean of
    the normal images' scores.

    Args:
        **kwargs: See `anomalib.post_processing.PostProcessor`.

    Example:
        >>> post = CalibratedPostProcessor()
        >>> post.calibrate(torch.tensor([1.0, 2.0, 3.0]))
        >>> [round(v, 3) for v in post._normalize(torch.tensor([2.0, 5.0, 50.0]), post.image_min, post.image_max,
        ...                                       post.image_threshold).tolist()]
        [0.25, 0.5, 0.969]
    """

    def calibrate(self, scores: Tensor, peaks: Tensor | None = None) -> None:
        """Fix thresholds and ranges.

        Args:
            scores: Image scores of normal images, [N].
            peaks: Maxima of their maps, [N]; ``None`` where these are the scores.

        Raises:
            ValueError: If there is no score or one is not finite.
        """
        for prefix, given in (("image", scores), ("pixel", scores if peaks is None else peaks)):
            if not len(given) or not torch.isfinite(given).all():
                msg = "Calibration needs at least one normal image, and finite scores."
                raise ValueError(msg)
            values = given.double()
            mean = values.mean()
            spread = values.std() if len(values) > 1 else values.abs().mean()
            # Identical scores leave no spread; keep a range that float32 still resolves.
            spread = torch.maximum(spread, 1e-6 * mean.abs().clamp(min=1.0))
            threshold = mean + THRESHOLD_DEVIATIONS * spread
            getattr(self, f"_{prefix}_threshold").copy_(threshold)
            getattr(self, f"{prefix}_min").copy_(mean)
            getattr(self, f"{prefix}_max").copy_(threshold)

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
