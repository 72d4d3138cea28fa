"""Small pictures of the best, worst and borderline images of a cell, kept beside its record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from PIL import Image

from anomalib_npgmf.benchmark.evaluate import Prediction, TestPass
from anomalib_npgmf.benchmark.results import MERGED
from anomalib_npgmf.disk import write_picture
from anomalib_npgmf.host.drawing import heat_map, outline, panels, resized
from anomalib_npgmf.metrics.ground_truth import GOOD, kind_of

_SHOWN = (MERGED, "logical", "structural", "composition")
_HEIGHT = 112  # pixels of one panel
_QUALITY = 80  # of JPEG


def choose(scores: Mapping[Path, float], labels: Mapping[Path, bool]) -> dict[str, Path]:
    """Choose the images to show, by role; none twice, and none unless there are good and anomalous ones.

    The threshold lies half way between the medians of the good and of the anomalous images. An image's margin is its
    distance from it, negative if the image is misclassified. ``best_<kind>`` has the largest margin of a kind of
    anomaly. Of the good and of the anomalous images, ``worst_...`` has the smallest margin, and ``borderline_...`` the
    one closest to zero.

    Example:
        >>> scores = {Path(f"{i}.png"): float(i) for i in range(8)}
        >>> chosen = choose(scores, {path: score > 3 for path, score in scores.items()})
        >>> [f"{role} {path.stem}" for role, path in chosen.items()]  # the threshold is 3.5
        ['best_anomalous 7', 'worst_good 3', 'worst_anomalous 4', 'borderline_good 2', 'borderline_anomalous 5']
    """
    by_label = {label: [path for path in scores if labels[path] is label] for label in (False, True)}
    if not all(by_label.values()):
        return {}
    cut = sum(median(scores[path] for path in paths) for paths in by_label.values()) / 2
    margins = {path: score - cut if labels[path] else cut - score for path, score in scores.items()}
    by_kind: dict[str, list[Path]] = {}
    for path in by_label[True]:
        by_kind.setdefault((kind_of(path) or "anomalous").removesuffix("_anomalies"), []).append(path)
    chosen = {f"best_{kind}": max(paths, key=margins.__getitem__) for kind, paths in sorted(by_kind.items())}
    for role in ("worst", "borderline"):
        for name, label in ((GOOD, False), ("anomalous", True)):
            left = [path for path in by_label[label] if path not in chosen.values()]
            if left:
                nearest = min(left, key=lambda path: margins[path] if role == "worst" else abs(margins[path]))
                chosen[f"{role}_{name}"] = nearest
    return chosen


def write_gallery(test_pass: TestPass, stem: Path) -> dict[str, str]:
    """Draw the chosen images of a test pass as ``<stem>_<role>.jpg``; names of the files by role, see `choose`.

    One colour scale per map serves all images of the cell: 0 is the mean over the good images, 1 the median of the
    maxima of the anomalous ones. Older files are removed.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    for old in stem.parent.glob(f"{stem.name}_*.jpg"):
        old.unlink()
    merged = test_pass.predictions[MERGED]
    shown = {name: test_pass.predictions[name] for name in _SHOWN if name in test_pass.predictions}
    scales = {name: scale for name, kept in shown.items() if (scale := _scale(kept, test_pass.labels)) is not None}
    files = {}
    for role, path in choose({path: p.score for path, p in merged.items()}, test_pass.labels).items():
        with Image.open(path) as file:
            image = np.asarray(file.convert("RGB"), dtype=np.uint8)
        size = _HEIGHT, round(_HEIGHT * image.shape[1] / image.shape[0])
        image = resized(image, size)
        named = {"image": image}
        if path in test_pass.masks:
            named["ground truth"] = outline(image, test_pass.masks[path])
        for name, (low, high) in scales.items():
            plane = shown[name][path].anomaly_map
            assert plane is not None
            named[name] = heat_map(image, (plane - low) / (high - low))
        if path in test_pass.reconstructions:
            named["normal version"] = resized(test_pass.reconstructions[path], size)
        title = f"{role.replace('_', ', ')}: {path.parent.name}/{path.name}, score {merged[path].score:.3g}"
        target = stem.with_name(f"{stem.name}_{role}.jpg")
        picture = cv2.cvtColor(panels(named, title), cv2.COLOR_RGB2BGR)
        write_picture(target, np.asarray(picture, np.uint8), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        files[role] = target.name
    return files


def _scale(predictions: Mapping[Path, Prediction], labels: Mapping[Path, bool]) -> tuple[float, float] | None:
    """Scores that the colour scale shows as 0 and 1; None without maps."""
    maps = {path: p.anomaly_map for path, p in predictions.items() if p.anomaly_map is not None}
    good = [float(plane.mean()) for path, plane in maps.items() if not labels[path]]
    peaks = [float(plane.max()) for path, plane in maps.items() if labels[path]]
    if not good or not peaks:
        return None
    low, high = float(np.mean(good)), median(peaks)
    return low, high if high > low else low + 1.0
