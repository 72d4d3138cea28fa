"""Memory bank of regions: patch embeddings of coarse feature levels.

A region covers an object and its surroundings, such as the fruit on a label and the colour beside it. A large distance
from the nearest region of normal images means that this combination does not occur in normal images. An addition
to the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_npgmf.composition.explanation import third_of
from anomalib_npgmf.distributed import gather_list, process_rank, raise_together
from anomalib_npgmf.structural.bank import MemoryBank
from anomalib_npgmf.structural.model import concatenated

CORESET_RATIO = 0.1
_FOLDS = 5
_COLLECT_BYTES = 1 << 30


class RegionExplanation(NamedTuple):
    """The region that is farthest from those of normal images.

    Attributes:
        distance: Its distance.
        normal_distance: Mean over normal images of the distance of their farthest region.
        mask: Pixels whose distance exceeds ``normal_distance``, boolean [H, W].
        place: Where the region lies, in words.

    Example:
        >>> RegionExplanation(3.0, 2.0, torch.zeros(2, 2, dtype=torch.bool), "upper left").reason
        'region most unlike normal ones: upper left (distance 3.00; in normal images 2.00 on average)'
    """

    distance: float
    normal_distance: float
    mask: Tensor
    place: str

    @property
    def text(self) -> str:
        """One line for a caption."""
        return f"composition: {self.reason}"

    @property
    def reason(self) -> str:
        """`text` without the name of the branch."""
        distances = f"distance {self.distance:.2f}; in normal images {self.normal_distance:.2f} on average"
        return f"region most unlike normal ones: {self.place} ({distances})"


class RegionBank(nn.Module):
    """Memory bank of the patches of coarse levels, in whitened features.

    Unlike in PatchCore, patches are not averaged over neighbours. All levels have the same weight.

    Args:
        channels: Channels of each level.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> regions = RegionBank([2])
        >>> for number in range(6):
        ...     regions.collect([torch.rand(1, 2, 4, 4)], [f"{number}.png"])
        >>> regions.finish().shape
        torch.Size([6])
        >>> distances = regions([torch.cat([torch.rand(1, 2, 4, 4), torch.full((1, 2, 4, 4), 3.0)])])
        >>> distances.shape, bool(distances[1].min() > distances[0].max())
        (torch.Size([2, 1, 4, 4]), True)
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.bank = self._bank()

    def _bank(self, patches: int = 0) -> MemoryBank:
        ratio = CORESET_RATIO if CORESET_RATIO * patches >= 1 else 1.0  # if a tenth is less than one patch, all stay
        return MemoryBank(ratio, whiten=self.channels, collect_bytes=_COLLECT_BYTES)

    def collect(self, features: Sequence[Tensor], keys: Sequence[str]) -> None:
        """Collect the regions of normal images.

        Args:
            features: Map [B, C, h, w] of each level.
            keys: A key per image, see `MemoryBank.append`.
        """
        self.bank.append(concatenated(features).flatten(1, 2), keys)

    def finish(self) -> Tensor:
        """Select the bank; in a distributed run every process must call this.

        Returns:
            Largest region distance of each image in the order of the keys, [N], from a bank of other images (five-fold
            cross-validation); empty on ranks other than 0.
        """
        collector, device = self.bank.collector, self.bank.norms.device
        found = torch.empty(0, device=device)
        collector.gather(device)
        with raise_together():
            if process_rank() == 0:
                blocks = collector.ordered()
                found = self._cross_validated(blocks, collector.num_patches // max(1, len(blocks)))
        self.bank.coreset_ratio = self._bank(sum(gather_list([collector.num_patches]))).coreset_ratio
        self.bank.finish()
        return found

    def _cross_validated(self, blocks: Sequence[Tensor], patches: int) -> Tensor:
        """Largest distance of each image, [N]; ``patches`` is the number of patches per image before thinning.

        Distances of the images that the bank was built from would be too small.
        """
        largest = torch.zeros(len(blocks), device=self.bank.norms.device)
        for fold in range(min(_FOLDS, len(blocks))):
            others = [block.clone() for number, block in enumerate(blocks) if number % _FOLDS != fold]
            if not others:
                break  # a single image
            with largest.device:
                bank = self._bank(len(others) * patches)
            bank.build(others, len(others) * patches)
            for number in range(fold, len(blocks), _FOLDS):
                largest[number] = bank.search(blocks[number]).max()
        return largest

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Distance of each region from the nearest normal one.

        Args:
            features: Map [B, C, h, w] of each level.

        Returns:
            [B, 1, h, w] on the grid of the finest level.
        """
        patches = concatenated(features)
        return self.bank.search(patches.flatten(0, 2)).reshape(patches.shape[:3]).unsqueeze(1)


def explain_region(distances: Tensor, normal_distance: float, size: tuple[int, int]) -> RegionExplanation:
    """Find the region that is farthest from normal ones.

    Args:
        distances: Distance of every region of one image, [1, h, w].
        normal_distance: Mean over normal images of their largest distance.
        size: Height and width of the mask.

    Example:
        >>> distances = torch.ones(1, 8, 8)
        >>> distances[0, 7, 0] = 3.0
        >>> found = explain_region(distances, 2.0, (8, 8))
        >>> found.place, int(found.mask.sum())
        ('lower left', 1)
    """
    plane = F.interpolate(distances[None], size=size, mode="bilinear", align_corners=False)[0, 0]
    row, column = divmod(int(distances.argmax()), distances.shape[-1])
    place = third_of(row, column, distances.shape[-2], distances.shape[-1])
    return RegionExplanation(float(distances.max()), normal_distance, plane > normal_distance, place)
