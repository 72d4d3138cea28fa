"""Examples of a code: image crops from normal images, and how many regions of it a normal image has."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

THUMBNAIL = 128  # side of the images that the patches are cut from, in pixels
SIDE = 32  # side of a patch, in pixels
PATCHES = 3
_SMALLEST = 3  # positions of the feature map; smaller regions are noise
_STEADY = 0.5  # largest standard deviation of the number of regions at which a usual number is stated


class CodeExamples(nn.Module):
    """Three normal patches for each code, from three images where possible, and its usual number of regions.

    A patch is cut out where the code is purest: where the mean membership of 3 x 3 positions is largest. A region is a
    connected set of at least three positions that belong to the code rather than to another one of its codebook.

    Args:
        books: Codebooks R.
        size: Codes K per codebook.

    Attributes:
        patches: RGB patches, [R, K, 3, 3, 32, 32] uint8, with the index of the patch in dimension 2.
        regions: Mean and standard deviation of the number of regions in a normal image, [R, K, 2].

    Example:
        >>> memberships = torch.zeros(4, 1, 2, 8, 8)
        >>> memberships[:, 0, 0], memberships[:, 0, 1, 1:3, 1:4] = 1.0, 2.0
        >>> examples = CodeExamples(1, 2)
        >>> examples.fit(memberships, torch.full((4, 3, 128, 128), 200, dtype=torch.uint8))
        >>> examples.patches[0, 1].float().mean().item(), examples.regions[0, 1].tolist()
        (200.0, [1.0, 0.0])
    """

    patches: Tensor
    regions: Tensor

    def __init__(self, books: int, size: int) -> None:
        super().__init__()
        self.register_buffer("patches", torch.zeros(books, size, PATCHES, 3, SIDE, SIDE, dtype=torch.uint8))
        self.register_buffer("regions", torch.zeros(books, size, 2))

    def fit(self, memberships: Tensor, thumbnails: Tensor) -> None:
        """Cut out patches and count regions.

        Args:
            memberships: Of N normal images, [N, R, K, H, W].
            thumbnails: The images, RGB, [N, 3, 128, 128] uint8.
        """
        width = memberships.shape[-1]
        pure = F.avg_pool2d(memberships.flatten(1, 2).float(), 3, 1, 1, count_include_pad=False)
        best, places = pure.flatten(2).max(dim=2)  # of each code in each image
        padded = F.pad(thumbnails.float(), [SIDE // 2] * 4, mode="replicate")
        for code, (values, where) in enumerate(zip(best.T, places.T, strict=True)):
            images = values.topk(min(PATCHES, len(values))).indices
            for number in range(PATCHES):
                image = images[number % len(images)]
                row, column = divmod(int(where[image]), width)
                top, left = (int((at + 0.5) * THUMBNAIL / side) for at, side in ((row, pure.shape[2]), (column, width)))
                patch = padded[image, :, top : top + SIDE, left : left + SIDE]
                self.patches[divmod(code, self.patches.shape[1])][number] = patch.to(self.patches)
        numbers = torch.tensor(
            [[component_counts(book) for book in image] for image in memberships], device=pure.device
        )
        deviation, mean = torch.std_mean(numbers.float(), dim=0, correction=0)
        self.regions.copy_(torch.stack([mean, deviation], dim=-1))

    def usual_regions(self, book: int, code: int) -> int | None:
        """Usual number of regions of a code in a normal image; ``None`` if it varies, is zero or is not known."""
        mean, deviation = self.regions[book, code].tolist()
        usual = round(mean)
        return usual if usual >= 1 and deviation <= _STEADY and abs(mean - usual) <= _STEADY / 2 else None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, value in self._buffers.items():
            state_dict.setdefault(prefix + name, torch.zeros_like(value))  # type: ignore[arg-type]  # older files
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def component_counts(memberships: Tensor) -> list[int]:
    """Number of regions of each code: connected sets of at least three positions.

    Args:
        memberships: Of one image in one codebook, [K, H, W].

    Returns:
        K numbers.

    Example:
        >>> memberships = torch.zeros(2, 6, 6)
        >>> memberships[0], memberships[1, :2, :2], memberships[1, 4:, :3], memberships[1, 5, 5] = 0.5, 1.0, 1.0, 1.0
        >>> component_counts(memberships)  # the single position is too small
        [1, 2]
    """
    labels = memberships.argmax(dim=0).cpu().numpy()
    found = []
    for code in range(len(memberships)):
        regions, _ = ndimage.label(labels == code)
        found.append(int((np.bincount(regions.ravel())[1:] >= _SMALLEST).sum()))
    return found
