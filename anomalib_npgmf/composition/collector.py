"""Keeps frozen features of training images until the composition branch is fitted to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anomalib_npgmf.distributed import gather_list

_MAX_CHANNELS = 128


class FeatureCollector:
    """Keeps the feature maps of every image once, in the order of the images' keys, whatever the order of arrival.

    Maps of many channels are kept as their projection onto fixed random orthonormal directions, in half precision:
    k-means on so few random projections finds nearly the clusters that it finds on the features (Boutsidis et al.,
    NeurIPS 2010), so that an image of 256 x 256 pixels takes a third of a megabyte.

    Args:
        channels: Channels of each level.

    Attributes:
        projections: Directions [C, 128] of each level, ``None`` for one that is kept as it is.

    Example:
        >>> collector = FeatureCollector([4])
        >>> small = torch.zeros(2, 3, 128, 128, dtype=torch.uint8)
        >>> collector.append([torch.stack([torch.ones(4, 2, 2), torch.zeros(4, 2, 2)])], ["b", "a"], small)
        >>> collector.append([torch.ones(1, 4, 2, 2)], ["a"], small)
        >>> (level,), thumbnails = collector.assemble()
        >>> level.mean(dim=(1, 2, 3)).tolist()
        [0.0, 1.0]
    """

    def __init__(self, channels: Sequence[int]) -> None:
        self.projections = [_directions(count) if count > _MAX_CHANNELS else None for count in channels]
        self._maps: dict[str, list[Tensor]] = {}

    def append(self, features: Sequence[Tensor], keys: Sequence[str], thumbnails: Tensor) -> None:
        """Add a batch of images.

        Args:
            features: Map [B, C, H, W] of each level.
            keys: One key per image, such as its path; a key seen before is ignored.
            thumbnails: Small versions of the images, RGB, [B, 3, T, T] uint8.

        Raises:
            ValueError: If a feature is not finite in half precision.
        """
        kept = []
        for level, projection in zip(features, self.projections, strict=True):
            values = level.detach().float()
            if projection is not None:
                values = torch.einsum("cd,bchw->bdhw", projection.to(values.device), values)
            kept.append(values.half().cpu())
        for index, key in enumerate(keys):
            maps = [level[index].clone() for level in kept]
            if not all(bool(level.isfinite().all()) for level in maps):
                msg = f"The features of image {key!r} are not finite in float16; check it and the backbone's weights."
                raise ValueError(msg)
            self._maps.setdefault(key, [*maps, thumbnails[index].cpu()])

    def assemble(self) -> tuple[list[Tensor], Tensor]:
        """Return the maps of all images of all processes, [N, d, H, W] float16 per level, and thumbnails [N, 3, T, T].

        Raises:
            ValueError: If there is no image.
        """
        maps: dict[str, list[Tensor]] = {}
        for share in gather_list([self._maps]):
            maps |= share
        if not maps:
            msg = "The composition branch has no images to learn from; train on at least two normal images."
            raise ValueError(msg)
        *levels, thumbnails = (torch.stack(kept) for kept in zip(*(maps[key] for key in sorted(maps)), strict=True))
        return levels, thumbnails


def _directions(channels: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(channels)
    gaussian = torch.randn(channels, _MAX_CHANNELS, generator=generator, device="cpu")
    return torch.linalg.qr(gaussian).Q
