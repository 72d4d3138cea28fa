"""Calibration of the merging rule from the maps of normal images."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from anomalib_npgmf.distributed import gather_list
from anomalib_npgmf.merging.rule import BRANCHES, NORMAL_QUANTILE, MapMerger
from anomalib_npgmf.merging.statistics import MapStatistics

_STEP = 4  # the quantile is taken of every fourth pixel per axis; the maps are smooth


def calibrate(merger: MapMerger, batches: Sequence[dict[str, Tensor]], cv_stats: Tensor | None = None) -> None:
    """Set the statistics of each branch's map, then what the composition needs (paper, section III-C).

    Args:
        merger: The merger to calibrate.
        batches: Raw maps by part as `MapMerger.forward` takes them, of normal images that no branch was fitted on;
            in a distributed run this process's share.
        cv_stats: Cross-validated composition scores, see `anomalib_npgmf.composition.CompositionBranch`.

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
        found: list[tuple[float, float, Tensor]] = []
        for maps in to_device(batches, merger.mean.device):
            merged = merger.merge_branches(maps)
            assert merged is not None
            pixels = merged[..., ::_STEP, ::_STEP].flatten(1).cpu()
            found += zip(
                merged.amax((1, 2, 3)).tolist(), maps["composition_scores"].amax(dim=-1).tolist(), pixels, strict=True
            )
        scores, composition_scores, samples = zip(*gather_list(found), strict=True)
        level = float(np.quantile(torch.cat(samples).numpy(), NORMAL_QUANTILE))
        peaks, composed = (torch.tensor(values, device="cpu") for values in (scores, composition_scores))
        merger.composition.calibrate(peaks, composed, cv_stats, normal_level=level)


def to_device(batches: Sequence[dict[str, Tensor]], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Move batches of maps to a device, one at a time."""
    return ({part: raw.to(device) for part, raw in maps.items()} for maps in batches)
