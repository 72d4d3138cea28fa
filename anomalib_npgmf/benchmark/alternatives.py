"""Merged maps of the two branches by other merging rules, for comparison."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from anomalib_npgmf.merging import MapMerger
from anomalib_npgmf.merging.rule import BRANCHES


def merged_by_other_rules(merger: MapMerger, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merged maps [B, 1, *output_size] by rule, see `results.MAPS`; empty unless both branches are there.

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
