"""Calibration of the merging rule from the maps of normal images."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from anomalib_npgmf.distributed import gather_list
from anomalib_npgmf.merging.rule import BRANCHES, MapMerger
from anomalib_npgmf.merging.statistics import MapStatistics


def calibrate(merger: MapMerger, batches: Sequence[dict[str, Tensor]], cv_stats: Tensor | None = None) -> None:
    """Set the statistics of each branch's map, then those of the composition's image scores (paper, section III-C).

    Args:
        merger: The merger to calibrate.
        batches: Raw maps by part, [B, 1, h, w] each, of normal images that no branch was fitted on; in a distributed
            run this process's share.
        cv_stats: Cross-validated composition distances, see `anomalib_npgmf.composition.CompositionBranch`.

    Raises:
        ValueError: If a map is constant or not finite.

    Example:
        >>> from torch import nn
        >>> merger = MapMerger((8, 8), blur=nn.Identity())
        >>> calibrate(merger, [{"structural": torch.arange(64.0).view(1, 1, 8, 8)}])
        >>> merger.mean.tolist()
        [0.0, 31.5]
    """
    statistics = {branch: MapStatistics() for branch in BRANCHES}
    for maps in to_device(batches, merger.mean.device):
        for branch in maps.keys() & set(BRANCHES):
            statistics[branch].update(merger.resize(maps[branch]))
    for branch_statistics in statistics.values():
        branch_statistics.synchronise()
    merger.calibrate({branch: (s.mean, s.std) for branch, s in statistics.items() if s.count})
    if merger.composition is not None:
        pairs: list[tuple[float, float]] = []
        for maps in to_device(batches, merger.mean.device):
            pairs += image_scores(merger, maps)
        scores, distances = torch.tensor(gather_list(pairs)).T
        merger.composition.calibrate(scores, distances, cv_stats)


def image_scores(merger: MapMerger, maps: dict[str, Tensor]) -> list[tuple[float, float]]:
    """Image score of the merged branches and composition distance of each image.

    Args:
        merger: A merger whose branches are calibrated.
        maps: Raw maps by part, [B, 1, h, w] each, with a composition map.
    """
    merged = merger.merge_branches(maps)
    assert merged is not None
    return list(zip(merged.amax((1, 2, 3)).tolist(), maps["composition"].amax((1, 2, 3)).tolist(), strict=True))


def to_device(batches: Sequence[dict[str, Tensor]], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Move batches of maps to a device, one at a time."""
    return ({part: raw.to(device) for part, raw in maps.items()} for maps in batches)
