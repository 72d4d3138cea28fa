"""One reading of an image's composition: how much of each code there is, as a whole or in each cell of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_npgmf.composition.codes import SoftCodes
from anomalib_npgmf.composition.variation import NormalVariation, cross_validated

_RARE = 1e-4  # share below which a code counts as absent; keeps the slope of the square root finite


class Addition(NamedTuple):
    """What one code in one cell adds to an image's squared distance.

    Attributes:
        amount: The addition.
        bag: Number of the pair of level and codebook size.
        book: Number of the codebook among those of that pair.
        code: Its number in the codebook.
        row: Row of the cell.
        column: Column of the cell.
        share: Share of the cell's patches that belong to the code, in [0, 1].
        normal_share: The same on normal images.
    """

    amount: float
    bag: int
    book: int
    code: int
    row: int
    column: int
    share: float
    normal_share: float


class Reading(nn.Module):
    """Bags of soft codes of several sizes on several levels, and their Mahalanobis distance from normal images.

    The composition vector holds the square roots of the codes' shares of the patches of each cell, which makes the
    variance of a count independent of its size. The distance is the root mean square of the Mahalanobis distances of
    all codebooks, each weighted as the side of its level's map: of more patches, a share is known more exactly.

    Args:
        levels: Number of each level that is read.
        channels: Channels of each.
        sizes: Numbers of codes.
        books: Codebooks per level and size.
        grid: Cells per side of the image; with one, places do not matter.
        whiten: Whether codes are told apart in whitened features, see `SoftCodes`.

    Example:
        >>> reading = Reading([3], [2], (2,), books=1, grid=2)
        >>> def scene(column, rows):  # some of 64 patches show a part
        ...     part = torch.zeros(1, 2, 8, 8)
        ...     part[0, 1, :rows, column] = 5.0
        ...     return part
        >>> held_out = reading.fit([torch.cat([scene(number % 3, 2 + number % 2) for number in range(20)])])
        >>> squared, surplus = reading([torch.cat([scene(2, 2), scene(6, 2)])], size=(16, 16))
        >>> held_out.shape, surplus.shape, bool(squared[1] > 5 * squared[0])
        (torch.Size([20]), torch.Size([2, 1, 16, 16]), True)
    """

    def __init__(
        self,
        levels: Sequence[int],
        channels: Sequence[int],
        sizes: Sequence[int],
        *,
        books: int,
        grid: int = 1,
        whiten: bool = False,
    ) -> None:
        super().__init__()
        self.grid = grid
        pairs = [(index, size) for index in range(len(levels)) for size in sizes]
        self.inputs = [index for index, _ in pairs]  # which level each bag is made of
        total = sum(2.0 ** -levels[index] for index in self.inputs)
        self._weights = [2.0 ** -levels[index] / total for index in self.inputs]
        self.codes = nn.ModuleList(SoftCodes(channels[index], size, books, whiten=whiten) for index, size in pairs)
        self.variations = nn.ModuleList(NormalVariation(books, size * grid**2) for _, size in pairs)

    def fit(self, maps: Sequence[Tensor], projections: Sequence[Tensor | None] | None = None) -> Tensor:
        """Fit codes and normal variation.

        Args:
            maps: Features of normal images, [N, C, H, W] for each level, or [N, d, H, W] if they were projected.
            projections: Orthonormal directions [C, d] of each level, ``None`` for one that was not projected.

        Returns:
            Squared distance of each image from the normal variation of the others, the codes kept, [N].

        Raises:
            ValueError: If there are too few images or patches.
        """
        squared = torch.zeros(len(maps[0]))
        for index, weight, codes, variation in zip(
            self.inputs, self._weights, self.codes, self.variations, strict=True
        ):
            assert isinstance(codes, SoftCodes)
            assert isinstance(variation, NormalVariation)
            level, projection = maps[index], projections[index] if projections else None
            codes.fit(level.permute(0, 2, 3, 1).flatten(0, 2), projection)
            vectors = []
            for block in level.split(32):
                values = block.to(codes.weight)
                if projection is not None:
                    # The codes lie in the span of the directions, so this gives the memberships of the features.
                    values = torch.einsum("cd,bdhw->bchw", projection.to(values), values)
                vectors.append(self.vector(codes(values)).flatten(2))
            variation.fit(torch.cat(vectors))
            squared += weight * cross_validated(torch.cat(vectors)).cpu()
        return squared

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Compute distance and map.

        Every patch adds to the distance through the codes it belongs to: a patch of codes of which there is too much in
        its cell raises it, one of codes of which there is too little lowers it. The map shows the first order of that,
        relative to the mean patch.

        Args:
            features: Map [B, C, h, w] of each level.
            size: Height and width of the map.

        Returns:
            Squared distances, [B], and what each place adds, [B, 1, H, W].
        """
        squared = features[0].new_zeros(features[0].shape[0], dtype=torch.float32)
        surplus = squared.view(-1, 1, 1, 1)
        for index, weight, codes, variation in zip(
            self.inputs, self._weights, self.codes, self.variations, strict=True
        ):
            memberships = codes(features[index])
            vector = self.vector(memberships)
            deviation, gradient = variation(vector.flatten(2))
            squared = squared + weight * (deviation * gradient).sum(dim=2).mean(dim=1)
            # Half the derivative of the squared distance by a patch's membership: d sqrt(s) / ds = 1 / (2 sqrt(s)).
            slope = gradient.unflatten(2, vector.shape[2:]) / (2 * vector)
            height, width = memberships.shape[-2:]
            rows, columns = cell_means(height, self.grid, vector), cell_means(width, self.grid, vector)
            slope = (height * width) * (rows.T @ slope @ columns)
            patches = weight * (memberships * slope).sum(dim=2).mean(dim=1, keepdim=True)
            patches = patches - patches.mean(dim=(-2, -1), keepdim=True)
            surplus = surplus + F.interpolate(patches, size=size, mode="bilinear", align_corners=False)
        return squared, surplus

    def vector(self, memberships: Tensor) -> Tensor:
        """Composition vectors [B, R, K, grid, grid] of memberships [B, R, K, H, W]."""
        height, width = memberships.shape[-2:]
        rows, columns = cell_means(height, self.grid, memberships), cell_means(width, self.grid, memberships)
        return (rows @ memberships @ columns.T + _RARE).sqrt()

    def largest_addition(self, features: Sequence[Tensor]) -> list[Addition]:
        """The code and cell that add most to each image's distance.

        Args:
            features: Map [B, C, h, w] of each level.

        Returns:
            One addition per image.
        """
        found: list[list[Addition]] = [[] for _ in range(len(features[0]))]
        for bag, (index, weight) in enumerate(zip(self.inputs, self._weights, strict=True)):
            variation = self.variations[bag]
            assert isinstance(variation, NormalVariation)
            vector = self.vector(self.codes[bag](features[index]))
            deviation, gradient = variation(vector.flatten(2))
            additions = (weight * deviation * gradient).unflatten(2, vector.shape[2:])
            normal = variation.mean.unflatten(1, vector.shape[2:]).square() - _RARE
            for image, addition in enumerate(additions):
                book, code, row, column = place = tuple(
                    map(int, torch.unravel_index(addition.argmax(), addition.shape))
                )
                share, usual = float(vector[image][place].square()) - _RARE, max(float(normal[place]), 0.0)
                found[image].append(Addition(float(addition[place]), bag, book, code, row, column, share, usual))
        return [max(additions) for additions in found]


def cell_means(side: int, grid: int, like: Tensor) -> Tensor:
    """What share of a cell's mean each of ``side`` rows (or columns) of patches has.

    Args:
        side: Rows of patches.
        grid: Rows of cells.
        like: Gives device and type.

    Returns:
        [grid, side], each row adding up to one; a patch that lies across counts in both cells.

    Example:
        >>> cell_means(4, 2, torch.zeros(1)).tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    edges = torch.arange(grid + 1, device=like.device, dtype=like.dtype) * (side / grid)
    start = torch.arange(side, device=like.device, dtype=like.dtype)
    overlap = torch.minimum(edges[1:, None], start + 1) - torch.maximum(edges[:-1, None], start)
    return overlap.clamp_min(0) * (grid / side)
