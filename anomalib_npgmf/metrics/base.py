"""Base class of the two LOCO metrics: stores predictions with the paths of their images."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from anomalib_npgmf.metrics.ground_truth import KINDS, LOGICAL, STRUCTURAL, category_of, kind_of

logger = logging.getLogger(__name__)

Kind = Literal["mean", "logical", "structural"]
KIND_FOLDERS: dict[str, tuple[str, ...]] = {"mean": KINDS, "logical": (LOGICAL,), "structural": (STRUCTURAL,)}


class LocoMetric(Metric):
    """Base class of metrics that tell the kind of a test image from its path.

    Predictions are stored with the paths of their images, as bytes so that they synchronise between processes like any
    tensor. An image that a distributed sampler repeats counts once.

    Args:
        kind: Value to report: of logical anomalies, of structural anomalies, or the mean of both.
        **kwargs: Arguments of ``torchmetrics.Metric``.

    Attributes:
        optional: Whether to report nothing without a warning on data that are not in the layout of MVTec LOCO AD.

    Raises:
        ValueError: If the kind is unknown.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    predictions: list[Tensor] | Tensor
    paths: list[Tensor] | Tensor
    optional = False

    def __init__(self, kind: Kind = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if kind not in KIND_FOLDERS:
            raise ValueError(f"Unknown kind {kind!r}; choose one of {', '.join(KIND_FOLDERS)}.")
        self.kind = kind
        self.add_state("predictions", default=[], dist_reduce_fx="cat")
        self.add_state("paths", default=[], dist_reduce_fx="cat")

    def append(self, predictions: Tensor, image_path: Sequence[str], device: torch.device) -> None:
        """Store a batch of predictions with the paths of their images.

        Args:
            predictions: ``(B, ...)``.
            image_path: B paths.
            device: Where to keep the paths.
        """
        text = b"".join(os.fsencode(path) + b"\0" for path in image_path)  # the one byte that no path holds
        assert isinstance(self.predictions, list)
        assert isinstance(self.paths, list)
        self.predictions.append(predictions)
        self.paths.append(torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device))

    def by_path(self) -> dict[Path, Tensor]:
        """Stored predictions by image path, each path once.

        Returns:
            Views of the stored predictions, without the batch axis.
        """
        # after synchronisation between processes a list state is one tensor
        batches = self.predictions if isinstance(self.predictions, list) else [self.predictions]
        texts = self.paths if isinstance(self.paths, list) else [self.paths]
        paths = b"".join(bytes(text.cpu().numpy()) for text in texts).split(b"\0")[:-1]
        return dict(zip(map(Path, map(os.fsdecode, paths)), (item for batch in batches for item in batch), strict=True))

    def result(self, values: dict[str, float]) -> Tensor | None:
        """The value to report, or None where it is not defined.

        Args:
            values: Value per kind of anomaly that has images.

        Returns:
            Scalar float32 on the device of the metric, or None if a kind that it needs has no image; anomalib logs
            nothing then.
        """
        needed = KIND_FOLDERS[self.kind]
        if not all(folder in values for folder in needed):
            return None
        return torch.tensor(sum(values[folder] for folder in needed) / len(needed), device=self.device)


def has_loco_layout(image_path: Sequence[str], requirement: str = "", *, optional: bool = False) -> bool:
    """Whether all images lie in test folders as in MVTec LOCO AD; otherwise it warns once per folder.

    Args:
        image_path: Paths of the images.
        requirement: File that must lie in the folder of the category as well.
        optional: Whether not to warn.

    Returns:
        False for data on which the metrics of LOCO are not defined.
    """
    for path in map(Path, image_path):
        if kind_of(path) is None:
            if not optional:
                _warn_once(
                    "SPRO and LocoAUROC report nothing: %s has not the layout of MVTec LOCO AD.", path.parents[1]
                )
            return False
        if requirement and not (category_of(path) / requirement).is_file():
            _warn_once(f"SPRO reports nothing: %s has no {requirement}.", category_of(path))
            return False
    return True


@lru_cache(maxsize=1024)
def _warn_once(message: str, folder: Path) -> None:
    logger.warning(message, folder)
