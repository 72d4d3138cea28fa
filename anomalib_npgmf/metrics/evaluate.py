"""Score a folder of anomaly maps of any tool on MVTec LOCO AD."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from anomalib_npgmf.metrics.category import Progress, spro_curves
from anomalib_npgmf.metrics.curve import SproCurve, check_limit
from anomalib_npgmf.metrics.files import reading
from anomalib_npgmf.metrics.ground_truth import (
    GOOD,
    KINDS,
    image_size,
    kind_of,
    list_test_images,
)
from anomalib_npgmf.metrics.loco import auroc_by_label
from anomalib_npgmf.metrics.scores import FloatArray, as_scores

LIMITS = (0.01, 0.05, 0.1, 0.3, 1.0)


def evaluate_loco(
    dataset_root: Path | str,
    category: str,
    anomaly_maps_dir: Path | str,
    limits: Sequence[float] = LIMITS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Image AUROC and exact AU-sPRO of a folder of anomaly maps.

    The map of the image ``<dataset_root>/<category>/test/<kind>/NNN.png`` is the file
    ``<anomaly_maps_dir>/<category>/test/<kind>/NNN.tiff``: one score per pixel at the size of the image, higher means
    more anomalous. An image's score is the maximum of its map. A defect type is compared on the good images and those
    that hold it: its own defects count for the sPRO, while no defect of an image counts as false positive.

    Args:
        dataset_root: Folder of the categories of MVTec LOCO AD.
        category: Name of the category.
        anomaly_maps_dir: Folder of the maps.
        limits: False positive rates up to which to integrate.
        progress: Wraps an iterable, given a description and a length, to show progress.

    Returns:
        Plain floats: ``["localization"]["auc_spro"][kind][limit]`` with the kinds ``"logical_anomalies"``,
        ``"structural_anomalies"`` and ``"mean"`` and the limits as text, ``["classification"]["auc_roc"][kind]``, and
        the same per defect type in ``"auc_spro_per_defect"`` and ``"auc_roc_per_defect"``. A kind that the category
        has no images of is left out, and so is the mean then.

    Raises:
        FileNotFoundError: If an image, a map, a ground truth or the config is missing.
        ValueError: If a map has another size than its image, is not finite or not real, or the ground truth is invalid,
            or a file is damaged.
    """
    return evaluate_with_curves(dataset_root, category, anomaly_maps_dir, limits, progress)[0]


def evaluate_with_curves(
    dataset_root: Path | str,
    category: str,
    anomaly_maps_dir: Path | str,
    limits: Sequence[float] = LIMITS,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], dict[str, SproCurve]]:
    """Like ``evaluate_loco``, with the curves.

    Args:
        dataset_root: Folder of the categories of MVTec LOCO AD.
        category: Name of the category.
        anomaly_maps_dir: Folder of the maps.
        limits: False positive rates up to which to integrate.
        progress: Wraps an iterable, given a description and a length, to show progress.

    Returns:
        The dictionary of ``evaluate_loco``, and the curve per kind and per defect type, valid up to the largest limit.

    Raises:
        FileNotFoundError: As ``evaluate_loco``.
        ValueError: As ``evaluate_loco``.
    """
    if not isinstance(limits, Sequence) or not limits:
        raise ValueError("Give at least one false positive rate limit, such as [0.05].")
    for limit in limits:
        check_limit(limit)
    images = list_test_images(Path(dataset_root) / category)
    maps_dir = Path(anomaly_maps_dir) / category / "test"
    map_paths = {path: maps_dir / path.parent.name / f"{path.stem}.tiff" for path in images}
    missing = [path for path in map_paths.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(images)} anomaly maps are missing, {missing[0]} first; every test image needs one."
        )
    image_scores: dict[Path, float] = {}

    def load(path: Path) -> FloatArray:
        scores = read_map(map_paths[path], image_size(path))
        image_scores[path] = float(scores.max())
        return scores

    curves, anomalous = spro_curves(images, load, max(limits), per_defect=True, progress=progress)
    by_label = {GOOD: [image_scores[path] for path in images if kind_of(path) == GOOD]}
    by_label |= {name: [image_scores[path] for path in paths] for name, paths in anomalous.items()}
    defects = [name for name in curves if name not in KINDS]
    spro = {name: {str(limit): curve.area(limit) for limit in limits} for name, curve in curves.items()}
    auroc = auroc_by_label(by_label, list(curves))
    kinds = [kind for kind in KINDS if kind in curves]
    by_kind: dict[str, Any] = {kind: spro[kind] for kind in kinds}
    auroc_by_kind = {kind: auroc[kind] for kind in kinds}
    if len(kinds) == len(KINDS):
        by_kind["mean"] = {limit: float(np.mean([spro[kind][limit] for kind in KINDS])) for limit in map(str, limits)}
        auroc_by_kind["mean"] = float(np.mean(list(auroc_by_kind.values())))
    return {
        "localization": {
            "auc_spro": by_kind,
            "auc_spro_per_defect": {name: spro[name] for name in defects},
        },
        "classification": {
            "auc_roc": auroc_by_kind,
            "auc_roc_per_defect": {name: auroc[name] for name in defects},
        },
    }, curves


def read_map(path: Path, size: tuple[int, int]) -> FloatArray:
    """Read one anomaly map.

    Args:
        path: TIFF with one score per pixel.
        size: Height and width of the image.

    Returns:
        ``(H, W)`` scores.

    Raises:
        ValueError: If the file is damaged, or the map has another size than the image or is not finite or not real.
    """
    with reading(path, "TIFF"):
        scores = tifffile.imread(path)
    if scores.shape != size:
        raise ValueError(
            f"Anomaly map {path} has shape {scores.shape}, but its image is {size}; resize it (bilinear) to the image."
        )
    return as_scores(scores, str(path))
