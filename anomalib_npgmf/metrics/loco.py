"""Image AUROC per kind of anomaly, as published for MVTec LOCO AD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from anomalib.metrics import AnomalibMetric
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomalib_npgmf.metrics.base import Kind, LocoMetric, has_loco_layout
from anomalib_npgmf.metrics.ground_truth import GOOD, KINDS, kind_of
from anomalib_npgmf.metrics.spro import SPRO


def auroc_by_label(scores: Mapping[str, Sequence[float]], labels: Sequence[str]) -> dict[str, float]:
    """AUROC of each label against the good images.

    Args:
        scores: Image scores by label, ``"good"`` among them.
        labels: Labels to compute; those without an image are left out, all of them if there is no good image.

    Returns:
        AUROC in [0, 1] by label. Ties count one half; only the ranking of the scores matters.

    Example:
        >>> auroc_by_label({"good": [0.1, 0.4], "logical_anomalies": [0.3, 0.4]}, ["logical_anomalies"])
        {'logical_anomalies': 0.625}
    """
    good = list(scores.get(GOOD, []))
    values = {}
    for label in labels:
        found = list(scores.get(label, []))
        if good and found:
            values[label] = float(roc_auc_score([0] * len(good) + [1] * len(found), good + found))
    return values


class _LocoAUROC(LocoMetric):
    """Image AUROC of a stream of scores; see ``LocoAUROC``."""

    def update(self, pred_score: Tensor, image_path: Sequence[str]) -> None:
        """Store a batch of image scores.

        Args:
            pred_score: ``(B,)`` or ``(B, 1)`` scores.
            image_path: B paths.

        Raises:
            ValueError: If there are not as many scores as paths, or a score is NaN or infinite.
        """
        if not has_loco_layout(image_path, optional=self.optional):
            return
        scores = pred_score.detach().reshape(-1)
        if len(scores) != len(image_path):
            raise ValueError(f"LocoAUROC needs one score per image, got {len(scores)} for {len(image_path)} images.")
        finite = torch.isfinite(scores)
        if not bool(finite.all()):
            name = image_path[int(finite.int().argmin())]
            raise ValueError(f"The score of {name} is NaN or infinite; check the model.")
        self.append(scores, image_path, scores.device)

    def compute(self) -> Tensor | None:
        """AUROC over all stored scores.

        Returns:
            Scalar in [0, 1], or None if there are no images of a kind that is needed.
        """
        scores: dict[str, list[float]] = {}
        for path, score in self.by_path().items():
            scores.setdefault(str(kind_of(path)), []).append(float(score))
        return self.result(auroc_by_label(scores, KINDS))


class LocoAUROC(AnomalibMetric, _LocoAUROC):  # type: ignore[misc]  # update() takes a batch
    """Image AUROC of the logical anomalies, of the structural ones, or the mean of the two.

    Each kind is compared with the good test images. The mean of the two is what is published; pooling both kinds, as
    anomalib's ``AUROC`` does, gives another number. On data without the folders of MVTec LOCO AD it warns once and
    reports nothing.

    Args:
        kind: ``"logical"``, ``"structural"`` or ``"mean"``.
        fields: Batch fields; the default ones fit every anomalib model.
        prefix: Put before the name under which the value is logged.
        strict: Whether a batch without scores is an error.
        **kwargs: Arguments of ``torchmetrics.Metric``.

    Raises:
        ValueError: If the kind is unknown or a score is not finite.

    Example:
        >>> import torch
        >>> from anomalib.data import ImageBatch
        >>> metric = LocoAUROC("logical")
        >>> metric.update(ImageBatch(
        ...     image=torch.rand(4, 3, 8, 8),
        ...     pred_score=torch.tensor([0.1, 0.4, 0.3, 0.4]),
        ...     image_path=[f"pushpins/test/{name}.png" for name in (
        ...         "good/000", "good/001", "logical_anomalies/000", "logical_anomalies/001")],
        ... ))
        >>> metric.name, metric.compute()
        ('LocoAUROC_logical', tensor(0.6250))
    """

    default_fields = ("pred_score", "image_path")

    def __init__(
        self,
        kind: Kind = "mean",
        fields: Sequence[str] | None = None,
        prefix: str = "",
        strict: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(fields=fields, prefix=prefix, strict=strict, kind=kind, **kwargs)
        self.name += "" if kind == "mean" else f"_{kind}"


def loco_metrics() -> list[AnomalibMetric]:
    """The metrics published for MVTec LOCO AD, for the evaluator of any anomalib model.

    Returns:
        Image AUROC and AU-sPRO up to 0.05, each for logical anomalies, structural anomalies and their mean.

    Example:
        >>> [metric.name for metric in loco_metrics()]  # doctest: +ELLIPSIS
        ['LocoAUROC_logical', 'LocoAUROC_structural', 'LocoAUROC', 'SPRO_logical', 'SPRO_structural', 'SPRO']
    """
    kinds: tuple[Kind, ...] = ("logical", "structural", "mean")
    return [LocoAUROC(kind) for kind in kinds] + [SPRO(kind) for kind in kinds]
