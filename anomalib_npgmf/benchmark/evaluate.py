"""Collect the anomaly maps of one test pass, each branch's included, and compute every metric from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomalib_npgmf.benchmark.results import MERGED
from anomalib_npgmf.host.drawing import Picture, to_rgb
from anomalib_npgmf.host.visualizer import maps_of
from anomalib_npgmf.lightning_model import Npgmf
from anomalib_npgmf.merging.rule import BRANCHES, MapMerger
from anomalib_npgmf.metrics.category import spro_curves
from anomalib_npgmf.metrics.evaluate import LIMITS
from anomalib_npgmf.metrics.ground_truth import CONFIG_NAME, GOOD, category_of, image_size, kind_of
from anomalib_npgmf.metrics.loco import auroc_by_label
from anomalib_npgmf.metrics.scores import FloatArray, as_scores, resize_map
from anomalib_npgmf.torch_model import PARTS

CURVE_POINTS = 100


class Prediction(NamedTuple):
    """Image score, and ``(H, W)`` scores or None for a model without maps."""

    score: float
    anomaly_map: FloatArray | None


class TestPass(Callback):
    """Keep all predictions of a test pass, by path of the image.

    The model must have no post-processor: anomalib's clamps scores, and the ties change the AUROC. Predictions are kept
    by the name of the map: ``"merged"``, the model's output; for an `Npgmf` of several branches also each branch
    alone, by its name, and the two branches merged with weights 1:3, 3:1 and 1:1 and by their maximum.
    """

    __test__ = False  # for pytest, this is no class of tests

    def __init__(self) -> None:
        self.predictions: dict[str, dict[Path, Prediction]] = {}
        self.labels: dict[Path, bool] = {}  # whether the image is anomalous
        self.masks: dict[Path, Any] = {}  # (H, W) ground truth at the size of the maps
        self.reconstructions: dict[Path, Picture] = {}  # by the logical branch of an `Npgmf`

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Keep the predictions of a batch."""
        del trainer, batch, batch_idx
        paths = [Path(path) for path in outputs.image_path]
        self.labels.update(zip(paths, map(bool, outputs.gt_label.tolist()), strict=True))
        if outputs.gt_mask is not None:
            masks = outputs.gt_mask.cpu().numpy().reshape(len(paths), *outputs.gt_mask.shape[-2:]) > 0
            self.masks.update(zip(paths, masks, strict=True))
        self._keep(MERGED, paths, outputs.pred_score, outputs.anomaly_map)
        if isinstance(pl_module, Npgmf):
            self._keep_parts(pl_module, paths, outputs)

    def _keep_parts(self, module: Npgmf, paths: list[Path], outputs: Any) -> None:
        found = maps_of(outputs)
        if found is None:
            return
        if found.reconstruction is not None:
            mean, std = module.model.mean, module.model.std
            pictures = [to_rgb(image, mean, std) for image in found.reconstruction]
            self.reconstructions.update(zip(paths, pictures, strict=True))
        parts = [part for part in PARTS if part in found.maps]
        if len(parts) > 1:
            for part in parts:
                alone = module.model.merge(found.alone(part))
                self._keep(part, paths, alone.pred_score, alone.anomaly_map)
            for rule, merged in merged_by_other_rules(module.model.merger, found.maps).items():
                self._keep(rule, paths, merged.amax(dim=(-3, -2, -1)), merged)

    def _keep(self, name: str, paths: list[Path], scores: Tensor | None, maps: Tensor | None) -> None:
        assert scores is not None
        kept = self.predictions.setdefault(name, {})
        for index, (path, score) in enumerate(zip(paths, scores.reshape(-1).tolist(), strict=True)):
            anomaly_map = None if maps is None else as_scores(maps[index].reshape(maps.shape[-2:]), str(path))
            kept[path] = Prediction(score, anomaly_map)


def merged_by_other_rules(merger: MapMerger, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps [B, 1, *output_size] of the two branches merged by each rule of `results.MAPS`; empty without both.

    Args:
        merger: A calibrated merger.
        maps: Raw maps by branch, [B, 1, h, w] each.

    Example:
        >>> merger = MapMerger((64, 64), blur=torch.nn.Identity())
        >>> merged = merged_by_other_rules(merger, {name: torch.full((1, 1, 64, 64), 2.0) for name in BRANCHES})
        >>> {rule: values.mean().item() for rule, values in merged.items()}
        {'1:3': 8.0, '3:1': 8.0, '1:1': 4.0, 'maximum': 2.0}
        >>> merged_by_other_rules(merger, {"structural": torch.zeros(1, 1, 64, 64)})
        {}
    """
    if not all(branch in maps for branch in BRANCHES):
        return {}
    logical, structural = (merger.smoothed({branch: maps[branch]})[branch] for branch in BRANCHES)
    merged = {f"{a}:{b}": a * logical + b * structural for a, b in ((1, 3), (3, 1), (1, 1))}
    return {**merged, "maximum": torch.maximum(logical, structural)}


def evaluate(
    predictions: Mapping[Path, Prediction], labels: Mapping[Path, bool], masks: Mapping[Path, Any]
) -> dict[str, Any]:
    """Every metric of one set of predictions.

    Args:
        predictions: By path of the image.
        labels: Whether the image is anomalous, by path.
        masks: ``(H, W)`` ground truth at the size of the maps, by path.

    Returns:
        ``image_auroc`` and ``pixel_auroc`` over all images. For data in MVTec LOCO AD's layout also, against the good
        images: ``loco_auroc`` with ``logical``, ``structural`` and their ``mean``; ``loco_auroc_per_defect``; ``spro``
        by limit, then as ``loco_auroc``; ``spro_per_defect`` by defect type, then by limit; and ``spro_curve``, points
        (false positive rates, mean sPRO values) by kind. A value that is not defined is left out.

    Example:
        >>> scores = {Path(name): Prediction(score, None) for name, score in {"a": 0.1, "b": 0.9}.items()}
        >>> evaluate(scores, {Path("a"): False, Path("b"): True}, {})
        {'image_auroc': 1.0}
    """
    found: dict[str, Any] = {}
    if len(set(labels.values())) == 2:
        truth, scores = [labels[path] for path in predictions], [p.score for p in predictions.values()]
        found["image_auroc"] = float(roc_auc_score(truth, scores))
    maps = {path: p.anomaly_map for path, p in predictions.items() if p.anomaly_map is not None}
    # a defect smaller than a pixel of the map may have vanished
    if maps and set(maps) <= set(masks) and any(masks[path].any() for path in maps):
        marked = np.concatenate([masks[path].ravel() for path in maps])
        found["pixel_auroc"] = float(roc_auc_score(marked, np.concatenate([m.ravel() for m in maps.values()])))
    if all(kind_of(path) for path in predictions):
        found |= _evaluate_loco(predictions, maps)
    return found


def _evaluate_loco(predictions: Mapping[Path, Prediction], maps: Mapping[Path, FloatArray]) -> dict[str, Any]:
    by_label: dict[str, list[float]] = {}
    for path, prediction in predictions.items():
        by_label.setdefault(str(kind_of(path)), []).append(prediction.score)
    found: dict[str, Any] = {"loco_auroc": _short(auroc_by_label(by_label, [k for k in by_label if k != GOOD]))}
    if not maps or not all((category_of(path) / CONFIG_NAME).is_file() for path in maps):
        return found

    def load(path: Path) -> FloatArray:
        return resize_map(maps[path], image_size(path))

    curves, anomalous = spro_curves(list(maps), load, max(LIMITS), per_defect=True)
    kinds = {name: curve for name, curve in curves.items() if name in by_label}
    defects = {name: curve for name, curve in curves.items() if name not in by_label}
    by_defect = {name: [predictions[path].score for path in anomalous[name]] for name in defects}
    found["loco_auroc_per_defect"] = auroc_by_label({GOOD: by_label.get(GOOD, []), **by_defect}, list(defects))
    found["spro"] = {str(limit): _short({kind: c.area(limit) for kind, c in kinds.items()}) for limit in LIMITS}
    found["spro_per_defect"] = {name: {str(limit): c.area(limit) for limit in LIMITS} for name, c in defects.items()}
    found["spro_curve"] = {
        kind.removesuffix("_anomalies"): [[round(float(v), 6) for v in axis] for axis in curve.points(CURVE_POINTS)]
        for kind, curve in kinds.items()
    }
    return found


def _short(values: Mapping[str, float]) -> dict[str, float]:
    """Values by short name of the kind and, where both are there, their mean."""
    short = {kind.removesuffix("_anomalies"): value for kind, value in values.items()}
    return short | ({"mean": sum(short.values()) / 2} if len(short) == 2 else {})
