"""Composition branch: compares code histograms of an image and its grid cells with those of normal images.

An anomaly map scores each patch by itself, so an image with a missing part may look normal everywhere. Here every patch
is softly assigned to the codes of small codebooks, and the image is judged by its histogram of codes: a bag of visual
words (Sivic and Zisserman, ICCV 2003) on frozen features, with a Gaussian model of normal histograms. Further
histograms do the same in each cell of a coarse grid (Lazebnik, Schmid and Ponce, CVPR 2006); their covariance describes
which codes vary together.
An addition to the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_npgmf.composition.collector import FeatureCollector
from anomalib_npgmf.composition.config import CompositionConfig
from anomalib_npgmf.composition.examples import THUMBNAIL
from anomalib_npgmf.composition.explanation import Explanation, explain
from anomalib_npgmf.composition.histogram import CodeHistograms
from anomalib_npgmf.distributed import broadcast_from_rank0, process_rank, raise_together
from anomalib_npgmf.precision import in_single_precision

GRID_MARGIN = 0.5  # standard deviations; chosen on development seeds, see docs/findings.md
_MIN_RELATIVE_STD = 0.05  # lower bound on standard deviation / mean, for few images; as in merging/statistics.py
_MIN_IMAGES = 4  # below it there is no standardisation: cross-validation would fit a covariance to two images
_DISABLED = 1e6  # stored as mean distance of a histogram that is not used; its score is then never the largest


class CompositionOutput(NamedTuple):
    """Result for a batch.

    Attributes:
        scores: Score of each image for each histogram, [B, M]: the standardised distance (a z-score) minus the margin.
            Negative for typical images.
        surplus: Surplus map of each histogram, [B, M, H, W], in [0, 1]: where codes occur too often, see
            `CodeHistograms.forward`. Histograms of the whole image get the maximum over all histograms, because those
            of grid cells localise better.
        explanations: One per image: the code and cell that contribute most to the histogram with the largest score;
            empty without ``mask_size``.
    """

    scores: Tensor
    surplus: Tensor
    explanations: list[Explanation]

    @property
    def score(self) -> Tensor:
        """Composition score of each image, [B]: the maximum over the histograms."""
        return self.scores.amax(dim=-1)


class CompositionBranch(nn.Module):
    """Code histograms of the whole image, and of each cell of grids.

    Histograms of the whole image ignore positions. The first, of small codebooks, finds wrong numbers of objects; one
    in whitened features finds colours that do not go together. Histograms of grid cells find objects in the wrong place
    and wrong combinations. Each distance is standardised by its mean and standard deviation over normal images; the
    score is the largest of them. Half a standard deviation is subtracted for grid cells, against false alarms. With
    fewer than four training images only the first histogram is used, without standardisation.

    The map shows what occurs too often. It cannot show what is missing; the logical branch can, where objects have
    fixed positions.

    Args:
        levels: Backbone level of each feature map, finest first.
        channels: Channels of each map.
        config: Settings; the levels must be its `CompositionConfig.levels`.

    Attributes:
        mean: Mean distance of normal images, one value per histogram (whole image, then grids), [M], from
            cross-validation over the training images.
        std: Its standard deviation.
        margin: Standard deviations subtracted from each score, [M]: 0.5 for cells, 0 for the whole image.
        cv_stats: Count, mean and sum of squared differences from the mean of the cross-validated composition scores
            of the training images, [3]. Calibration pools them with those of the few calibration images.

    Example:
        >>> config = CompositionConfig(levels=(3,), codebook_sizes=(2,), codebooks=1, grids=())
        >>> branch = CompositionBranch([3], [2], config)
        >>> def scene(parts):  # that many of 64 patches show a part
        ...     return (torch.arange(64) < parts).float().view(1, 1, 8, 8) * torch.tensor([1.0, 5.0]).view(1, 2, 1, 1)
        >>> for number in range(20):
        ...     branch.collect([scene(8 + number % 3)], [f"{number:03d}"], torch.zeros(1, 3, 64, 64))
        >>> branch.finish()
        >>> output = branch([torch.cat([scene(9), scene(30)])], size=(16, 16), mask_size=(8, 8))
        >>> bool(output.scores[0] < 1 and output.scores[1] > 5), output.surplus.shape
        (True, torch.Size([2, 1, 16, 16]))
        >>> output.explanations[1].level, tuple(output.explanations[1].mask.shape)
        (3, (8, 8))
    """

    mean: Tensor
    std: Tensor
    margin: Tensor
    cv_stats: Tensor

    def __init__(self, levels: Sequence[int], channels: Sequence[int], config: CompositionConfig) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.channels = tuple(channels)
        books = config.codebooks
        histograms = [CodeHistograms(self.levels, self.channels, config.codebook_sizes, books=books)]
        # Objects that belong together may differ in colour alone, in directions of low variance: hence the whitening.
        histograms += [
            CodeHistograms(self.levels, self.channels, (codes,), books=books, grid=grid, whiten=True)
            for grid, codes in zip(config.grids, config.codes_of_grids, strict=True)
        ]
        self.histograms = nn.ModuleList(histograms)
        self.register_buffer("mean", torch.zeros(len(histograms)))
        self.register_buffer("std", torch.ones(len(histograms)))
        margin = torch.tensor([GRID_MARGIN if grid > 1 else 0.0 for grid in self.grids])
        self.register_buffer("margin", margin, persistent=False)
        self.register_buffer("cv_stats", torch.zeros(3))
        self._collector = FeatureCollector(self.channels)

    @property
    def grids(self) -> tuple[int, ...]:
        """Cells per side of each histogram's grid, [M]; 1 for the whole image."""
        return tuple(part.grid for part in self._all())

    @in_single_precision
    def collect(self, features: Sequence[Tensor], keys: Sequence[str], images: Tensor) -> None:
        """Collect normal training images.

        Args:
            features: Map [B, C, H, W] of each level.
            keys: One key per image, the same in every process, such as its path.
            images: The images, RGB in [0, 1], [B, 3, h, w]; small versions are kept as examples of the codes.
        """
        small = F.interpolate(images.float(), (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)
        self._collector.append(features, keys, (255 * small.clamp(0, 1)).round().byte())

    @torch.no_grad()
    @in_single_precision
    def finish(self) -> None:
        """Fit codes, means and covariances to the collected images, and free them.

        In a distributed run every process must call this: the first one fits, all end with the same buffers.

        Raises:
            ValueError: If there are too few images or patches. In a distributed run every process raises.
        """
        collector, self._collector = self._collector, FeatureCollector(self.channels)
        maps, thumbnails = collector.assemble()
        with raise_together():
            if process_rank() == 0:
                self._fit(maps, thumbnails, collector.projections)
        broadcast_from_rank0(self.buffers())

    def _fit(self, maps: Sequence[Tensor], thumbnails: Tensor, projections: Sequence[Tensor | None]) -> None:
        squared = torch.stack([part.fit(maps, thumbnails, projections) for part in self._all()])
        if len(maps[0]) < _MIN_IMAGES:
            self.mean[1:] = _DISABLED
            return
        distances = squared.clamp_min(0).sqrt()
        std, mean = torch.std_mean(distances, dim=1)
        self.mean.copy_(mean)
        self.std.copy_(std.maximum(_MIN_RELATIVE_STD * mean).clamp_min(1e-6))
        largest = self._standardise(distances.to(self.mean).T).amax(dim=1)
        variance, mean = torch.var_mean(largest, correction=0)
        count = len(largest)
        self.cv_stats[0], self.cv_stats[1], self.cv_stats[2] = count, mean, count * variance

    @in_single_precision
    def forward(
        self, features: Sequence[Tensor], size: tuple[int, int], mask_size: tuple[int, int] | None = None
    ) -> CompositionOutput:
        """Compute score and map.

        Args:
            features: Map [B, C, h, w] of each level.
            size: Height and width of the anomaly map.
            mask_size: Height and width of the masks of explanations; ``None`` for no explanations.

        Returns:
            Scores, maps and explanations.
        """
        found = [part(features, size) for part in self._all()]
        scores = self._standardise(torch.stack([part.squared.clamp_min(0).sqrt() for part in found], dim=-1))
        used = (self.mean < _DISABLED).view(-1, 1, 1)
        surplus = torch.cat([part.surplus for part in found], dim=1) * used
        largest = surplus.amax(dim=1, keepdim=True)
        shown = [own if grid > 1 else largest for grid, own in zip(self.grids, surplus.split(1, dim=1), strict=True)]
        explanations = []
        if mask_size is not None:
            for image, winner in enumerate(scores.argmax(dim=-1).tolist()):
                levels = [self.levels[index] for index in self._all()[winner].inputs]
                explanations.append(explain(found[winner].evidence, image, levels, mask_size))
        return CompositionOutput(scores, torch.cat(shown, dim=1), explanations)

    def _all(self) -> list[CodeHistograms]:
        return [part for part in self.histograms if isinstance(part, CodeHistograms)]

    def _standardise(self, distances: Tensor) -> Tensor:
        """Scores [..., M] from distances [..., M]."""
        return (distances - self.mean) / self.std - self.margin
