"""Composition read-out: is there as much of everything as in normal images?

An anomaly map judges every patch where it lies, so an image with one part too few looks normal everywhere. Here every
patch is labelled with one of a few codes, and the image is judged by how much there is of each: a bag of visual words
(Sivic and Zisserman, ICCV 2003) on frozen features, with a model of its normal variation. An addition to the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_npgmf.composition.codes import SoftCodes
from anomalib_npgmf.composition.collector import FeatureCollector
from anomalib_npgmf.composition.config import CompositionConfig
from anomalib_npgmf.composition.explanation import Explanation
from anomalib_npgmf.composition.variation import NormalVariation, cross_validated

_RARE = 1e-4  # share below which a code counts as absent; keeps the slope of the square root finite


class CompositionOutput(NamedTuple):
    """What the read-out says of a batch.

    Attributes:
        distance: Distance of each image's composition from the normal ones, [B]; about one for a normal image.
        anomaly_map: Where the surplus lies, [B, 1, H, W], scaled so that its maximum is the distance.
    """

    distance: Tensor
    anomaly_map: Tensor


class CompositionBranch(nn.Module):
    """Bags of soft codes of several sizes on several levels, and their Mahalanobis distance from normal images.

    The composition vector holds the square roots of the codes' shares of the patches, which makes the variance of a
    count independent of its size. The distance is the root mean square of the Mahalanobis distances of all codebooks,
    each weighted as the side of its level's map: of more patches, a share is known more exactly.

    Every patch adds to the distance through the codes it belongs to: a patch of codes of which there is too much raises
    it, one of codes of which there is too little lowers it. The map shows the first order of that, relative to the mean
    patch, where positive. Too many parts light up themselves; with one too few, what shows in its place does.

    Args:
        levels: Number of each level that is read, for explanations.
        channels: Channels of each.
        config: Settings.

    Attributes:
        held_out: Number, mean and sum of squared deviations of the distances of the training images, each from the
            normal variation of the others (cross-validation, the codes kept), [3]: what a normal image's distance is
            like, known more exactly than from the few images that calibration holds out.

    Example:
        >>> branch = CompositionBranch([3], [2], CompositionConfig(levels=(3,), codebook_sizes=(2,), codebooks=1))
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

    held_out: Tensor

    def __init__(self, levels: Sequence[int], channels: Sequence[int], config: CompositionConfig) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.channels = tuple(channels)
        books, pairs = config.codebooks, [(i, size) for i in range(len(channels)) for size in config.codebook_sizes]
        self._inputs = [i for i, _ in pairs]  # which level each bag is made of
        total = sum(2.0 ** -self.levels[i] for i in self._inputs)
        self._weights = [2.0 ** -self.levels[i] / total for i in self._inputs]
        self.codes = nn.ModuleList(SoftCodes(channels[i], size, books) for i, size in pairs)
        self.variations = nn.ModuleList(NormalVariation(books, size) for _, size in pairs)
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
        distributed = dist.is_available() and dist.is_initialized()
        if not distributed or dist.get_rank() == 0:
            squared = torch.zeros(len(maps[0]))
            bags = zip(self._inputs, self._weights, self.codes, self.variations, strict=True)
            for index, weight, codes, variation in bags:
                level, projection = maps[index], collector.projections[index]
                assert isinstance(codes, SoftCodes)
                assert isinstance(variation, NormalVariation)
                codes.fit(level.permute(0, 2, 3, 1).flatten(0, 2), projection)
                vectors = []
                for block in level.split(32):
                    values = block.to(codes.weight)
                    if projection is not None:
                        # The codes lie in the span of the directions, so this gives the memberships of the features.
                        values = torch.einsum("cd,bdhw->bchw", projection.to(values), values)
                    vectors.append(_vector(codes(values)))
                variation.fit(torch.cat(vectors))
                squared += weight * cross_validated(torch.cat(vectors)).cpu()
            if len(squared) > 2:
                spread, mean = torch.var_mean(squared.clamp_min(0).sqrt(), correction=0)
                self.held_out.copy_(torch.tensor([len(squared), mean, len(squared) * spread]))
        if distributed:
            for buffer in self.buffers():
                dist.broadcast(buffer, src=0)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> CompositionOutput:
        """Compute distance and map.

        Args:
            features: Map [B, C, h, w] of each level.
            size: Height and width of the anomaly map.

        Returns:
            Distances and maps.
        """
        squared = features[0].new_zeros(features[0].shape[0], dtype=torch.float32)
        surplus = squared.view(-1, 1, 1, 1)
        bags = zip(self._inputs, self._weights, self.codes, self.variations, strict=True)
        for index, weight, codes, variation in bags:
            memberships = codes(features[index])
            vector = _vector(memberships)
            deviation, gradient = variation(vector)
            squared = squared + weight * (deviation * gradient).sum(dim=2).mean(dim=1)
            # Half the derivative of the squared distance by a patch's membership: d sqrt(s) / ds = 1 / (2 sqrt(s)).
            slope = (gradient / (2 * vector)).unsqueeze(-1).unsqueeze(-1)
            patches = weight * (memberships * slope).sum(dim=2).mean(dim=1, keepdim=True)
            patches = patches - patches.mean(dim=(-2, -1), keepdim=True)
            surplus = surplus + F.interpolate(patches, size=size, mode="bilinear", align_corners=False)
        distance = squared.clamp_min(0).sqrt()
        surplus = surplus.relu()
        peak = surplus.amax(dim=(-2, -1), keepdim=True)
        # An image whose patches are all alike has nothing to point at, and as a whole keeps its distance.
        relative = torch.where(peak > 0, surplus / peak.clamp_min(torch.finfo(torch.float32).tiny), 1.0)
        return CompositionOutput(distance, relative * distance.view(-1, 1, 1, 1))

    @torch.no_grad()
    def explain(self, features: Sequence[Tensor], size: tuple[int, int]) -> list[Explanation]:
        """Name the code that adds most to each image's distance.

        Args:
            features: Map [B, C, h, w] of each level.
            size: Height and width of the masks.

        Returns:
            One explanation per image.
        """
        bags = zip(self._inputs, self.codes, strict=True)
        memberships: list[Tensor] = [codes(features[index]) for index, codes in bags]
        additions: list[Tensor] = []
        for values, weight, variation in zip(memberships, self._weights, self.variations, strict=True):
            deviation, gradient = variation(_vector(values))
            additions.append(weight * deviation * gradient)  # [B, R, K]
        found = []
        for image in range(len(features[0])):
            bag = max(range(len(additions)), key=lambda i: float(additions[i][image].max()))
            addition = additions[bag][image]
            book, code = (int(i) for i in torch.unravel_index(addition.argmax(), addition.shape))
            membership = memberships[bag][image, book, code]
            variation = self.variations[bag]
            assert isinstance(variation, NormalVariation)
            normal = float(variation.mean[book, code].square()) - _RARE
            mask = F.interpolate(membership[None, None], size=size, mode="bilinear", align_corners=False)[0, 0] > 0.5
            level, size_of_book = self.levels[self._inputs[bag]], len(variation.mean[book])
            share = float(membership.mean())
            found.append(Explanation(level, size_of_book, book, code, share, max(normal, 0.0), mask))
        return found


def _vector(memberships: Tensor) -> Tensor:
    """Composition vectors [B, R, K] of memberships [B, R, K, H, W]."""
    return (memberships.mean(dim=(-2, -1)) + _RARE).sqrt()
