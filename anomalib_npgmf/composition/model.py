"""Composition read-out: is there as much of everything as in normal images, and is it where it should be?

An anomaly map judges every patch where it lies, so an image with one part too few looks normal everywhere. Here every
patch is labelled with one of a few codes, and the image is judged by how much there is of each: a bag of visual words
(Sivic and Zisserman, ICCV 2003) on frozen features, with a model of its normal variation. Further readings do the
same in each cell of a coarse grid (Lazebnik, Schmid and Ponce, CVPR 2006): there the covariance tells which amounts go
together. An addition to the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_npgmf.composition.codes import SoftCodes
from anomalib_npgmf.composition.collector import FeatureCollector
from anomalib_npgmf.composition.config import CompositionConfig
from anomalib_npgmf.composition.explanation import Explanation, place_of
from anomalib_npgmf.composition.histogram import Addition, Reading
from anomalib_npgmf.distributed import broadcast_from_rank0, process_rank
from anomalib_npgmf.merging.statistics import LEAST_SPREAD

GRID_MARGIN = 0.5  # deviations; chosen on development seeds, see docs/findings.md
_LEAST_IMAGES = 4  # for cross-validation: of three, two are left, between which no covariance can be told
_SILENT = 1e6  # mean distance with which a reading never says most


class CompositionOutput(NamedTuple):
    """What the read-out says of a batch.

    Attributes:
        distance: How far each image's composition is from the normal ones, [B]: the largest distance of a reading, in
            standard deviations above a normal image's, less the reading's margin. Below zero for typical images.
        anomaly_map: Where what there is too much of lies, [B, 1, H, W], in the same unit; its maximum is the distance.
    """

    distance: Tensor
    anomaly_map: Tensor


class CompositionBranch(nn.Module):
    """Several readings of an image's composition: the amounts in the whole image, and those in each cell of a grid.

    Parts may lie anywhere in the first, which therefore counts best; the others see what lies in the wrong place or
    does not go with the rest. Each distance is brought to the unit of its deviation over normal images, and the largest
    one decides, where readings of a grid give way by half a deviation, a compromise between counting, which their false
    alarms disturb, and what they alone see. With fewer than four images no reading knows its unit, and those of grids
    are silent.

    Too many parts light up themselves; with one too few, what shows in its place does.

    Args:
        levels: Number of each level that is read, for explanations.
        channels: Channels of each.
        config: Settings.

    Attributes:
        mean: Mean distance of a normal image in each reading, from cross-validation: of each training image from the
            variation of the others, [R].
        std: Its standard deviation.
        margin: By how many deviations each reading gives way, [R].
        held_out: Number, mean and sum of squared deviations of the largest distance, in that unit, over the training
            images, [3]: what a normal image is like, known more exactly than from the few that calibration holds out.

    Example:
        >>> config = CompositionConfig(levels=(3,), codebook_sizes=(2,), codebooks=1, grids=())
        >>> branch = CompositionBranch([3], [2], config)
        >>> def scene(parts):  # that many of 64 patches show a part
        ...     return (torch.arange(64) < parts).float().view(1, 1, 8, 8) * torch.tensor([1.0, 5.0]).view(1, 2, 1, 1)
        >>> for number in range(20):
        ...     branch.collect([scene(8 + number % 3)], keys=[f"{number:03d}"])
        >>> branch.finish()
        >>> output = branch([torch.cat([scene(9), scene(30)])], size=(16, 16))
        >>> bool(output.distance[0] < 1 and output.distance[1] > 5), output.anomaly_map.shape
        (True, torch.Size([2, 1, 16, 16]))
        >>> explanation = branch.explain([scene(30)], size=(8, 8))[0]
        >>> explanation.level, tuple(explanation.mask.shape)
        (3, (8, 8))
    """

    mean: Tensor
    std: Tensor
    margin: Tensor
    held_out: Tensor

    def __init__(self, levels: Sequence[int], channels: Sequence[int], config: CompositionConfig) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.channels = tuple(channels)
        books = config.codebooks
        readings = [Reading(levels, channels, config.codebook_sizes, books=books)]
        # What goes with what may differ in colour alone, a small part of the features: hence the whitening.
        readings += [
            Reading(levels, channels, config.grid_codebook_sizes, books=books, grid=grid, whiten=True)
            for grid in config.grids
        ]
        self.readings = nn.ModuleList(readings)
        self.register_buffer("mean", torch.zeros(len(readings)))
        self.register_buffer("std", torch.ones(len(readings)))
        self.register_buffer("margin", torch.tensor([0.0] + [GRID_MARGIN] * len(config.grids)), persistent=False)
        self.register_buffer("held_out", torch.zeros(3))
        self._collector = FeatureCollector(self.channels)

    def collect(self, features: Sequence[Tensor], keys: Sequence[str]) -> None:
        """Collect normal training images.

        Args:
            features: Map [B, C, H, W] of each level.
            keys: One key per image, the same in every process, such as its path.
        """
        self._collector.append(features, keys)

    @torch.no_grad()
    def finish(self) -> None:
        """Fit codes and normal variation to the collected images, and free them.

        In a distributed run every process must call this: the first one fits, all end with the same buffers.

        Raises:
            ValueError: If there are too few images or patches.
        """
        collector, self._collector = self._collector, FeatureCollector(self.channels)
        maps = collector.assemble()
        if process_rank() == 0:
            squared = torch.stack([reading.fit(maps, collector.projections) for reading in self._all()])
            if len(maps[0]) < _LEAST_IMAGES:
                self.mean[1:] = _SILENT
            else:
                distances = squared.clamp_min(0).sqrt()
                spread, mean = torch.std_mean(distances, dim=1)
                self.mean.copy_(mean)
                self.std.copy_(spread.maximum(LEAST_SPREAD * mean).clamp_min(1e-6))
                largest = self._in_common_unit(distances.to(self.mean).T).amax(dim=1)
                spread, mean = torch.var_mean(largest, correction=0)
                self.held_out.copy_(torch.tensor([len(largest), mean, len(largest) * spread]))
        broadcast_from_rank0(self.buffers())

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> CompositionOutput:
        """Compute distance and map.

        Args:
            features: Map [B, C, h, w] of each level.
            size: Height and width of the anomaly map.

        Returns:
            Distances and maps, in single precision whatever the precision of the network's pass.
        """
        if torch.compiler.is_compiling():
            return self._forward(features, size)
        with torch.autocast(features[0].device.type, enabled=False):
            return self._forward(features, size)

    def _forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> CompositionOutput:
        maps, distances = [], []
        for reading in self._all():
            squared, surplus = reading(features, size)
            distance = squared.clamp_min(0).sqrt()
            surplus = surplus.relu()
            peak = surplus.amax(dim=(-2, -1), keepdim=True)
            # An image whose patches are all alike has nothing to point at, and as a whole keeps its distance.
            relative = torch.where(peak > 0, surplus / peak.clamp_min(torch.finfo(torch.float32).tiny), 1.0)
            maps.append(relative * distance.view(-1, 1, 1, 1))
            distances.append(distance)
        return CompositionOutput(
            self._in_common_unit(torch.stack(distances, dim=-1)).amax(dim=-1),
            self._in_common_unit(torch.stack(maps, dim=-1)).amax(dim=-1),
        )

    def _all(self) -> list[Reading]:
        return [reading for reading in self.readings if isinstance(reading, Reading)]

    def _in_common_unit(self, distances: Tensor) -> Tensor:
        """Distances of the readings, [..., R], in deviations from a normal image's, less what each gives way by."""
        return (distances - self.mean) / self.std - self.margin

    @torch.no_grad()
    def explain(self, features: Sequence[Tensor], size: tuple[int, int]) -> list[Explanation]:
        """Name the code that adds most to each image's distance, in the reading that says most.

        Args:
            features: Map [B, C, h, w] of each level.
            size: Height and width of the masks.

        Returns:
            One explanation per image.
        """
        with torch.autocast(features[0].device.type, enabled=False):
            squared = torch.stack([reading(features, (1, 1))[0] for reading in self._all()], dim=1)
            speakers = self._in_common_unit(squared.clamp_min(0).sqrt()).argmax(dim=1).tolist()
            additions: dict[int, Addition] = {}
            for number, reading in enumerate(self._all()):
                images = [image for image, speaker in enumerate(speakers) if speaker == number]
                if images:
                    additions |= zip(
                        images, reading.largest_addition([level[images] for level in features]), strict=True
                    )
        found = []
        for image, speaker in enumerate(speakers):
            reading, addition = self._all()[speaker], additions[image]
            level, codes = reading.inputs[addition.bag], reading.codes[addition.bag]
            assert isinstance(codes, SoftCodes)
            membership = codes(features[level][image : image + 1])[0, addition.book, addition.code]
            mask = F.interpolate(membership[None, None], size=size, mode="bilinear", align_corners=False)[0, 0] > 0.5
            cell = torch.zeros(1, 1, reading.grid, reading.grid, device=mask.device)
            cell[0, 0, addition.row, addition.column] = 1
            found.append(
                Explanation(
                    level=self.levels[level],
                    codebook_size=codes.weight.shape[1],
                    codebook=addition.book,
                    code=addition.code,
                    share=addition.share,
                    normal_share=addition.normal_share,
                    mask=mask & (F.interpolate(cell, size=size, mode="nearest")[0, 0] > 0),
                    place=place_of(addition.row, addition.column, reading.grid),
                )
            )
        return found
