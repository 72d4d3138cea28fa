"""Drawn categories for the studies: features of every image from one backbone pass, ground truth and scores."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.backbone.resize import AntialiasedResize
from anomalib_npgmf.metrics import auc_spro
from anomalib_npgmf.metrics.ground_truth import read_defects, read_defects_config

SIZE = (256, 256)
KINDS = ("logical", "structural")
FOLDERS = {
    "train": "train/good",
    "calibration": "validation/good",
    "good": "test/good",
    "logical": "test/logical_anomalies",
    "structural": "test/structural_anomalies",
}


class GroundTruth:
    """What is wrong with which image of a drawn category, and scores against it.

    Args:
        paths: Images of one category.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        config = read_defects_config(self.paths[0].parents[2])
        self._masks, self._areas = [], []
        for path in self.paths:
            defects = read_defects(path, config) if path.parent.name.endswith("anomalies") else []
            stack = [torch.from_numpy(defect.mask) for defect in defects]
            self._masks.append(torch.stack(stack) if stack else torch.zeros(0, *SIZE, dtype=torch.bool))
            self._areas.append([defect.saturation_area for defect in defects])

    def part(self, name: str) -> list[int]:
        """Numbers of the images of a part: train, calibration, good, logical or structural."""
        folder = Path(FOLDERS[name])
        return [i for i, path in enumerate(self.paths) if Path(*path.parts[-3:-1]) == folder]

    def auroc(self, scores: Tensor) -> dict[str, float]:
        """Image AUROC per type of anomaly, and their mean."""
        good = scores[self.part("good")]
        found = {}
        for kind in KINDS:
            bad = scores[self.part(kind)]
            found[kind] = float(roc_auc_score([0] * len(good) + [1] * len(bad), torch.cat([good, bad])))
        return found | {"mean": (found["logical"] + found["structural"]) / 2}

    def spro(self, maps: Tensor) -> dict[str, float]:
        """AU-sPRO at 0.05 per type of anomaly, and their mean.

        Args:
            maps: Scores of all images, [N, 1, h, w].
        """
        found = {}
        for kind in KINDS:
            rows = self.part("good") + self.part(kind)
            scores = F.interpolate(maps[rows], size=SIZE, mode="bilinear", align_corners=False)[:, 0]
            area = auc_spro(list(scores), [self._masks[r] for r in rows], [self._areas[r] for r in rows])
            found[kind] = area.item()
        return found | {"mean": (found["logical"] + found["structural"]) / 2}


class DrawnCategory(GroundTruth):
    """Features and ground truth of a category's images.

    Args:
        folder: The category's folder, as `ensure_drawn` returns it.
        backbone: Frozen network; its levels are kept.
        size: Height and width that the network sees.

    Attributes:
        paths: Every image.
        rows: Their numbers by part, see `part`.
        features: Map [N, C, h, w] of all images by level.
        images: The images as the network sees them, [N, 3, *size].
    """

    def __init__(self, folder: Path, backbone: Backbone, size: tuple[int, int] = SIZE) -> None:
        super().__init__([path for name in FOLDERS.values() for path in sorted((folder / name).glob("*.png"))])
        self.rows = {name: self.part(name) for name in FOLDERS}
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        resize = AntialiasedResize(size) if size != SIZE else torch.nn.Identity()
        images: list[Tensor] = []
        levels: list[list[Tensor]] = []
        for start in range(0, len(self.paths), 8):
            pixels = np.stack([np.asarray(Image.open(path)) for path in self.paths[start : start + 8]])
            images.append(resize(((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)))
            levels.append(backbone(images[-1]))
        self.images = torch.cat(images)
        self.features = {
            level: torch.cat(maps) for level, maps in zip(backbone.levels, zip(*levels, strict=True), strict=True)
        }


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.1f} ± {deviation:.1f}"
