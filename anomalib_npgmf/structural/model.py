"""Structural branch: distance of every patch to the normal patches of a memory bank (section III-B, eqs. 8 to 10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalib_npgmf.precision import in_single_precision
from anomalib_npgmf.structural.bank import MemoryBank
from anomalib_npgmf.structural.config import StructuralConfig


class StructuralBranch(nn.Module):
    """Patch-wise anomaly detector over the features of a frozen backbone.

    The backbone is not part of it, so that both branches can share one pass of it.

    Args:
        channels: Channels of each feature map, finest first.
        config: Settings of the branch; defaults to the paper's.

    Example:
        >>> branch = StructuralBranch([4, 8], StructuralConfig(coreset_ratio=0.1))
        >>> features = [torch.rand(2, 4, 8, 8), torch.rand(2, 8, 4, 4)]
        >>> branch.collect(features, keys=["a.png", "b.png"])
        >>> branch.finish()
        >>> len(branch.bank), branch(features).shape
        (12, torch.Size([2, 1, 8, 8]))
    """

    neighbourhood: tuple[int, ...] = (3,)  # default for .pt files of old versions, which stored none

    def __init__(self, channels: Sequence[int], config: StructuralConfig | None = None) -> None:
        super().__init__()
        config = config or StructuralConfig()
        self.channels = tuple(channels)
        self.neighbourhood = config.neighbourhood
        self.bank = MemoryBank(
            config.coreset_ratio,
            coreset_method=config.coreset_method,
            dtype=getattr(torch, config.bank_dtype),
            reduce_to=config.reduce_to,
            whiten=self.channels if config.whiten else None,
            collect_bytes=int(config.collect_gb * 2**30),
        )

    def embed(self, features: Sequence[Tensor]) -> Tensor:
        """Aggregate the levels into one embedding p(i, j) per patch.

        Each map is averaged over neighbourhoods; coarser maps are interpolated to the size of the finest.

        Args:
            features: Maps ``[B, C_l, H_l, W_l]``, finest first.

        Returns:
            Patch embeddings ``[B, H, W, d]`` on the grid of the finest map, d being the sum of the channels.

        Raises:
            ValueError: If the maps do not have the channels that the branch was made for.
        """
        if tuple(level.shape[1] for level in features) != self.channels:
            found = tuple(level.shape[1] for level in features)
            msg = f"The structural branch was made for maps of {self.channels} channels, but it got {found}."
            raise ValueError(msg)
        last = len(self.neighbourhood) - 1
        return concatenated([averaged(f, self.neighbourhood[min(i, last)]) for i, f in enumerate(features)])

    @in_single_precision
    def collect(self, features: Sequence[Tensor], keys: Sequence[str] | None = None) -> None:
        """Collect the patches of normal training images for the bank (eq. 8).

        Args:
            features: Maps ``[B, C_l, H_l, W_l]``, finest first.
            keys: A key per image, see :meth:`MemoryBank.append`.
        """
        self.bank.append(self.embed(features).flatten(1, 2), keys)

    @in_single_precision
    def finish(self, *, progress: bool = False) -> None:
        """Select the memory bank from the collected patches, see :meth:`MemoryBank.finish`."""
        self.bank.finish(progress=progress)

    @in_single_precision
    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Compute the structural map s(i, j) = ||p(i, j) - m*|| (eqs. 9 and 10).

        Args:
            features: Maps ``[B, C_l, H_l, W_l]``, finest first.

        Returns:
            Distance map ``[B, 1, H, W]``, float32, on the patch grid.

        Raises:
            RuntimeError: If the bank is empty, because the model was not trained.
        """
        patches = self.embed(features)
        distances = self.bank.search(patches.flatten(0, 2))
        return distances.reshape(patches.shape[:3]).unsqueeze(1)


def averaged(features: Tensor, side: int) -> Tensor:
    """Mean over the neighbourhood of every position; zeros beyond the border.

    Args:
        features: Map ``[B, C, H, W]``.
        side: Side of the neighbourhood, odd; 1 leaves the map as it is.

    Example:
        >>> [round(value, 3) for value in averaged(torch.ones(1, 1, 3, 3), 3)[0, 0, 1].tolist()]
        [0.667, 1.0, 0.667]
    """
    return features if side == 1 else functional.avg_pool2d(features, side, stride=1, padding=side // 2)


def concatenated(features: Sequence[Tensor]) -> Tensor:
    """Concatenate the levels at every patch; coarser maps are interpolated to the size of the finest.

    Args:
        features: Maps ``[B, C_l, H_l, W_l]``, finest first.

    Returns:
        ``[B, H, W, d]`` on the grid of the finest map, d being the sum of the channels.

    Example:
        >>> concatenated([torch.zeros(1, 2, 4, 4), torch.ones(1, 3, 2, 2)])[0, 0, 0].tolist()
        [0.0, 0.0, 1.0, 1.0, 1.0]
    """
    size = features[0].shape[-2:]
    coarse = [functional.interpolate(level, size=size, mode="bilinear", align_corners=False) for level in features[1:]]
    return torch.cat([features[0], *coarse], dim=1).permute(0, 2, 3, 1)
