"""Metadata of a model: what it was built from and how it is calibrated."""

import math
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import anomalib_npgmf
from anomalib_npgmf.merging.rule import BRANCHES

if TYPE_CHECKING:
    from anomalib_npgmf.lightning_model import Npgmf


def describe_model(module: "Npgmf") -> dict[str, Any]:
    """Metadata that exported files and checkpoints carry; see `anomalib_npgmf.export.describe` for the fields.

    Args:
        module: The model, trained or not.
    """
    merger = module.model.merger
    post: Any = module.post_processor
    statistics: dict[str, dict[str, Any]] = {
        branch: {"mean": mean, "std": std}
        for branch, mean, std in zip(BRANCHES, merger.mean.tolist(), merger.std.tolist(), strict=True)
        if module.settings.branches in ("both", branch)
    }
    if merger.composition is not None:
        # Of the branches' image scores and of the composition scores, see CompositionMerger.
        means, stds = merger.composition.mean.tolist(), merger.composition.std.tolist()
        statistics["branches"] = {"mean": means[0], "std": stds[0]}
        level = merger.composition.normal_level.item()
        statistics["branches"]["normal_level"] = level if math.isfinite(level) else None  # unknown in files of 0.1
        statistics["composition"] = {"mean": means[1], "std": stds[1]}
        margins = merger.composition.margins.tolist()
        for part, margin in zip(("branches", "composition"), margins, strict=True):
            statistics[part]["margin"] = margin
        for name in ("weight", "largest_lead", "further_lead", "logical_map_weight", "logical_map_limit"):
            statistics["composition"][name] = getattr(merger.composition, name).tolist()
        statistics["composition"]["map_rule"] = merger.composition.rule._asdict()
    normalised = getattr(post, "enable_normalization", False)
    return {
        "version": anomalib_npgmf.__version__,
        "preset": module.preset,
        "backbone": module.settings.backbone,
        "structural_backbone": module.settings.structural_backbone or module.settings.backbone,
        "branches": module.settings.branches,
        "merging": module.settings.merging,
        "weights": None if merger.maximum or module.settings.branches != "both" else merger.weights,
        "category": module.category,
        "prompt": module.caption or module.prompt,
        "image_size": list(module.settings.image_size),
        "logical_image_size": list(module.settings.logical_image_size),
        "structural_image_size": list(module.settings.structural_image_size),
        "calibration": statistics,
        "threshold": post.image_threshold.item() if normalised else None,
        "normal_score": post.image_min.item() if normalised else None,
        "false_alarm_rate": getattr(post, "false_alarm_rate", None),
        "calibration_images": len(getattr(post, "normal_scores", ())) or None,
        "bank_size": None if module.model.structural is None else len(module.model.structural.bank),
        "calibrated_for_bank": module.calibrated_for_bank,
        "configuration": asdict(module.settings),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
