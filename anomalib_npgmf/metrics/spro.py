"""AU-sPRO as a metric for the evaluator of any anomalib model."""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet, ref

import torch
from anomalib.metrics import AnomalibMetric
from torch import Tensor

from anomalib_npgmf.disk import reserve
from anomalib_npgmf.metrics.base import Kind, LocoMetric, has_loco_layout
from anomalib_npgmf.metrics.category import spro_curves
from anomalib_npgmf.metrics.curve import check_limit
from anomalib_npgmf.metrics.ground_truth import CONFIG_NAME, image_size
from anomalib_npgmf.metrics.heap import trim
from anomalib_npgmf.metrics.scores import FloatArray, as_scores, resize_map

# Maps beyond this many bytes move to an unnamed temporary file; a whole category of 256 x 256 maps is 86 MB.
_IN_MEMORY = 512 << 20

# Values of the last computation, with a digest of its inputs: the metrics for logical, structural and mean share one
# computation, and an evaluator calls them one after the other.
_last: tuple[bytes, dict[str, float]] = (b"", {})
# Likewise the last batch of maps that was moved to a file.
_last_file: tuple[Callable[[], Tensor | None], Tensor] = (lambda: None, torch.empty(0))
_mapped: WeakSet[mmap.mmap] = WeakSet()


class _SPRO(LocoMetric):
    """AU-sPRO of anomaly maps, accumulated over batches; see ``SPRO``."""

    def __init__(self, kind: Kind = "mean", limit: float = 0.05, **kwargs: Any) -> None:
        super().__init__(kind=kind, **kwargs)
        check_limit(limit)
        self.limit = limit
        self._stored = 0

    def update(self, anomaly_map: Tensor, image_path: Sequence[str]) -> None:
        """Store a batch of anomaly maps at the size the model gave them.

        Args:
            anomaly_map: ``(B, H, W)`` or ``(B, 1, H, W)`` scores.
            image_path: B paths.

        Raises:
            ValueError: If the shape is wrong, or a score is NaN or infinite.
        """
        if not has_loco_layout(image_path, CONFIG_NAME, optional=self.optional):
            return
        maps = anomaly_map.detach().as_subclass(Tensor)  # anomalib's batches hold a subclass
        maps = maps.squeeze(1) if maps.ndim == 4 else maps
        if maps.ndim != 3 or len(maps) != len(image_path):
            raise ValueError(
                f"SPRO needs one (H, W) map per image, got {tuple(anomaly_map.shape)} for {len(image_path)} paths."
            )
        finite = torch.isfinite(maps).flatten(1).all(dim=1)
        if not bool(finite.all()):
            name = image_path[int(finite.int().argmin())]
            raise ValueError(f"The anomaly map of {name} holds NaN or infinite scores; check the model.")
        if self.compute_on_cpu:
            maps = maps.cpu()
        self._stored += maps.nbytes
        if self._stored > _IN_MEMORY and maps.device.type == "cpu":
            maps = _to_file(anomaly_map, maps)
            trim()
        self.append(maps, image_path, maps.device)

    def compute(self) -> Tensor | None:
        """Integrate the curve over all stored maps, without binning of thresholds, at the original size of the images.

        Returns:
            Scalar in [0, 1], or None if there are no good images or none of the anomaly type.
        """
        maps = self.by_path()
        return self.result(_shared_values(maps, self.limit)) if maps else None

    def reset(self) -> None:
        """Delete all maps."""
        super().reset()
        self._stored = 0


class SPRO(AnomalibMetric, _SPRO):  # type: ignore[misc]  # update() takes a batch, as of all anomalib metrics
    """Area under the saturated per-region overlap curve of MVTec LOCO AD, without binning, for any anomalib model.

    Give it to the model's evaluator and test on ``anomalib.data.MVTecLOCO`` or any data module in the same layout: the
    masks of the individual defects and their saturation thresholds are read from ``ground_truth/`` and
    ``defects_config.json`` next to the images of the batch, and the maps are compared at the original image size. On
    other data it warns once and reports nothing.

    For anomalib's evaluator a metric is one value, so logical, structural and mean are three metrics; they share one
    computation. Maps stay at the size the model gave them, 86 MB for 330 maps of 256 x 256, and beyond 512 MB in a
    memory-mapped temporary file.

    Args:
        kind: ``"logical"`` (good and logical images), ``"structural"`` (good and structural images), or ``"mean"`` of
            both values.
        limit: Upper limit of the integration over the false positive rate; the area is divided by it. A small limit is
            several times faster than 1, as only the highest scores have to be sorted.
        fields: Batch fields; the default ones fit every anomalib model.
        prefix: Prefix of the name under which the value is logged.
        strict: Whether a batch without anomaly maps is an error.
        **kwargs: Arguments of ``torchmetrics.Metric``.

    Raises:
        ValueError: If the kind is unknown, the limit is outside (0, 1], a map is not finite, or the ground truth is
            invalid.

    Example:
        >>> from anomalib.metrics import Evaluator
        >>> evaluator = Evaluator(test_metrics=[SPRO("logical"), SPRO("structural"), SPRO("mean"), SPRO(limit=0.3)])
        >>> [metric.name for metric in evaluator.test_metrics]
        ['SPRO_logical', 'SPRO_structural', 'SPRO', 'SPRO@0.3']
    """

    default_fields = ("anomaly_map", "image_path")

    def __init__(
        self,
        kind: Kind = "mean",
        limit: float = 0.05,
        fields: Sequence[str] | None = None,
        prefix: str = "",
        strict: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(fields=fields, prefix=prefix, strict=strict, kind=kind, limit=limit, **kwargs)
        self.name += ("" if kind == "mean" else f"_{kind}") + ("" if limit == 0.05 else f"@{limit:g}")


def _shared_values(maps: dict[Path, Tensor], limit: float) -> dict[str, float]:
    """AU-sPRO per kind, computed once for metrics with the same maps and limit."""
    global _last
    digest = hashlib.blake2b(repr(limit).encode())
    for path, scores in maps.items():
        digest.update(os.fsencode(path) + f" {tuple(scores.shape)} {scores.dtype}".encode())
        digest.update(scores.contiguous().cpu().view(torch.uint8).numpy())  # type: ignore[arg-type]  # it is a buffer
        _release_pages()
    if _last[0] != digest.digest():

        def load(path: Path) -> FloatArray:
            scores = resize_map(as_scores(maps[path], str(path)), image_size(path))
            _release_pages()
            return scores

        curves = spro_curves(list(maps), load, limit).curves
        _last = (digest.digest(), {kind: curve.area(limit) for kind, curve in curves.items()})
    return _last[1]


def _to_file(source: Tensor, maps: Tensor) -> Tensor:
    """Copy of the maps in an unnamed temporary file that is deleted with them, one for all metrics given ``source``."""
    global _last_file
    if _last_file[0]() is not source:
        with tempfile.TemporaryFile() as file:
            reserve(file, maps.nbytes, tempfile.gettempdir())
            mapped = mmap.mmap(file.fileno(), maps.nbytes)
        stored = torch.frombuffer(mapped, dtype=maps.dtype).view(maps.shape)
        stored.copy_(maps)
        mapped.flush()
        _mapped.add(mapped)
        _release_pages()
        _last_file = (ref(source), stored)
    return _last_file[1]


def _release_pages() -> None:
    """Release the pages of the mapped files; the next access reads them from the file again."""
    for mapped in _mapped:
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)
