"""Levels of a plain vision transformer, whose blocks all have one stride."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_npgmf.backbone.resize import AntialiasedResize


def blocks_by_level(patch: int) -> dict[int, int]:
    """The last three blocks of a plain transformer as levels.

    Patches of 14 or 16 pixels count as stride 16 (level 4), patches of 32 as stride 32 (level 5). The blocks become
    levels k - 1, k and k + 1. Unlike the simple feature pyramid of ViTDet (Li et al., ECCV 2022), which builds all
    levels from the last block by trained layers, each level is another block, resized.

    Args:
        patch: Side of a patch, in pixels.

    Returns:
        Index of the block by level, negative as counted from the end.

    Example:
        >>> blocks_by_level(14)
        {3: -3, 4: -2, 5: -1}
    """
    level = (patch - 1).bit_length()
    return {level - 1: -3, level: -2, level + 1: -1}


class TransformerLevels:
    """Runs a plain transformer on an image, and resizes the maps of its blocks to the strides of the levels.

    With patches of 14 pixels the image is first resized by 14 / 16, so that one patch covers 16 pixels of the original.

    Args:
        patch: Side of a patch, in pixels.
        levels: Level of each map that the network gives.
        image_size: Height and width of the images.

    Raises:
        ValueError: If the image is no multiple of the stride of a patch.
    """

    def __init__(self, patch: int, levels: Sequence[int], image_size: tuple[int, int]) -> None:
        self.image_size = image_size
        self._sizes = [(image_size[0] >> level, image_size[1] >> level) for level in levels]
        self._resize = AntialiasedResize(transformer_image_size(image_size, patch))

    def __call__(self, features: nn.Module, image: Tensor) -> list[Tensor]:
        """Run timm's network on images [B, 3, H, W]; gives one map [B, C, H/2^k, W/2^k] for each level k."""
        maps = features(self._resize(image))
        return [
            F.interpolate(block, size=size, mode="bilinear", align_corners=False)
            for block, size in zip(maps, self._sizes, strict=True)
        ]


def transformer_image_size(image_size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Height and width of the image that the transformer sees.

    Raises:
        ValueError: If the image is no multiple of the stride of a patch.

    Example:
        >>> transformer_image_size((256, 512), 14)
        (224, 448)
    """
    stride = 1 << (patch - 1).bit_length()
    if image_size[0] % stride or image_size[1] % stride:
        msg = (
            f"A network with patches of {patch} pixels takes images whose sides are multiples of {stride}, not "
            f"{image_size[0]} x {image_size[1]}."
        )
        raise ValueError(msg)
    return image_size[0] // stride * patch, image_size[1] // stride * patch
