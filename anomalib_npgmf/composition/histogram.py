"""Code histograms of the whole image or of each cell of a grid, and their distance from normal ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_npgmf.composition.codes import SoftCodes
from anomalib_npgmf.composition.examples import CodeExamples
from anomalib_npgmf.composition.variation import NormalVariation, cross_validated

_EXAMPLE_IMAGES = 200  # largest number of normal images from which examples of the codes are taken
_SHOWN_LEVELS = 2  # number of the finest levels that contribute to the surplus map
_SMALLEST = 1e-6  # lower bound on the largest contribution, for an image that equals the mean
_EPSILON = 1e-4  # added to every share: keeps the slope of the square root finite


class Evidence(NamedTuple):
    """Contribution of one pair of level and codebook size to the squared distance of a batch.

    R is the number of codebooks, K that of codes, g the cells per side of the grid.

    Attributes:
        memberships: Soft assignment of patches to codes, [B, R, K, H, W].
        shares: Share of a cell's patches that belong to each code, [B, R, K, g, g], in [0, 1].
        normal_shares: Typical share on normal images, [R, K, g, g]: the squared mean of the square roots of their
            shares.
        contributions: Contribution of each code in each cell to the squared distance, [B, R, K, g, g].
        examples: Example patches of each code; ``None`` in files of before version 0.2.
    """

    memberships: Tensor
    shares: Tensor
    normal_shares: Tensor
    contributions: Tensor
    examples: CodeExamples | None


class HistogramOutput(NamedTuple):
    """Result for a batch.

    Attributes:
        squared: Squared distance of each image, [B].
        surplus: Relative excess of the codes at each position, [B, 1, H, W], in [0, 1]; see `CodeHistograms.forward`.
        evidence: One entry per pair of level and codebook size.
    """

    squared: Tensor
    surplus: Tensor
    evidence: list[Evidence]


class CodeHistograms(nn.Module):
    """Histograms of soft codes, of several codebook sizes on several levels, with their Mahalanobis distance.

    A histogram holds the square roots of the shares of the codes in each cell (Hellinger transform, which stabilises
    the variance). The squared distance is the mean of the squared Mahalanobis distances of all codebooks, weighted by
    the side of the level's map, because shares of more patches are more accurate.

    Args:
        levels: Index k of each level that is read; its stride is 2^k.
        channels: Channels of each.
        sizes: Codebook sizes; there are codebooks for each pair of level and size.
        books: Codebooks per level and size.
        grid: Cells per side of the image; 1 for the whole image.
        whiten: Whether codes are found in whitened features, see `SoftCodes`.

    Example:
        >>> histograms = CodeHistograms([3], [2], (2,), books=1)
        >>> def scene(column, rows):  # some of 64 patches show an object
        ...     part = torch.zeros(1, 2, 8, 8)
        ...     part[0, 1, :rows, column] = 5.0
        ...     return part
        >>> normal = torch.cat([scene(number % 3, 2 + number % 2) for number in range(20)])
        >>> held_out = histograms.fit([normal], torch.zeros(20, 3, 128, 128, dtype=torch.uint8))
        >>> output = histograms([torch.cat([scene(2, 2), scene(6, 6)])], size=(8, 8))
        >>> held_out.shape, output.surplus.shape, bool(output.squared[1] > 5 * output.squared[0])
        (torch.Size([20]), torch.Size([2, 1, 8, 8]), True)
        >>> [round(value, 2) for value in output.surplus[1, 0, [0, 0], [6, 0]].tolist()]  # (6 - 2.47) / 6
        [0.59, 0.0]
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
        self.inputs = [index for index, _ in pairs]  # position in ``levels`` of each pair
        total = sum(2.0 ** -levels[index] for index in self.inputs)
        self._weights = [2.0 ** -levels[index] / total for index in self.inputs]
        self.codes = nn.ModuleList(SoftCodes(channels[index], size, books, whiten=whiten) for index, size in pairs)
        self.variations = nn.ModuleList(NormalVariation(books, size * grid**2) for _, size in pairs)
        self.examples = nn.ModuleList(CodeExamples(books, size) for _, size in pairs)

    def fit(
        self, maps: Sequence[Tensor], thumbnails: Tensor, projections: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """Fit codes, mean and covariance, and keep examples of the codes.

        Args:
            maps: Features of normal images, [N, C, H, W] for each level, or [N, d, H, W] if they were projected.
            thumbnails: The images, see `CodeExamples.fit`.
            projections: Orthonormal directions [C, d] of each level, ``None`` for one that was not projected.

        Returns:
            Cross-validated squared distance of each image, [N]: mean and covariance come from the other images, the
            codes from all.

        Raises:
            ValueError: If there are too few images or patches.
        """
        squared = torch.zeros(len(maps[0]), device="cpu")
        every = math.ceil(len(thumbnails) / _EXAMPLE_IMAGES)
        for index, weight, codes, variation, examples in zip(
            self.inputs, self._weights, self.codes, self.variations, self.examples, strict=True
        ):
            assert isinstance(codes, SoftCodes)
            assert isinstance(variation, NormalVariation)
            assert isinstance(examples, CodeExamples)
            level, projection = maps[index], projections[index] if projections else None
            codes.fit(level.permute(0, 2, 3, 1).flatten(0, 2), projection)
            vectors, seen = [], []
            for start, block in zip(range(0, len(level), 32), level.split(32), strict=True):
                values = block.to(codes.weight)
                if projection is not None:
                    # The codes lie in the span of the directions, so this gives the memberships of the features.
                    values = torch.einsum("cd,bdhw->bchw", projection.to(values), values)
                memberships = codes(values)
                vectors.append(self.histogram(memberships).flatten(2))
                seen.append(memberships[-start % every :: every].cpu())
            examples.fit(torch.cat(seen), thumbnails[::every])
            variation.fit(torch.cat(vectors))
            squared += weight * cross_validated(torch.cat(vectors)).cpu()
        return squared

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> HistogramOutput:
        """Compute distance and map.

        The surplus map is computed in three steps.

        1. The excess of a code in a cell is ``max(0, s - m) / s``, with its share s in this image and its usual share m
           in normal images: 1/6 for six objects instead of five, 1 for an object that normal images never show.
        2. It is multiplied by ``max(0, c) / max c``, where c is the code's contribution to the squared distance (small
           where normal images vary) and the maximum is over all contributions in this image.
        3. A patch gets the sum over the codes of membership times weighted excess, averaged over codebooks, sizes and
           the two finest levels; coarser patches would also mark the surroundings.

        A missing object leaves no excess of its own; only what is seen in its place gets a larger share.

        Args:
            features: Map [B, C, h, w] of each level.
            size: Height and width of the map.
        """
        squared = features[0].new_zeros(features[0].shape[0], dtype=torch.float32)
        evidence = []
        known: Sequence[Any] = [None] * len(self.inputs) if "examples" not in self._modules else list(self.examples)
        for index, weight, codes, variation, examples in zip(
            self.inputs, self._weights, self.codes, self.variations, known, strict=True
        ):
            assert isinstance(variation, NormalVariation)
            memberships = codes(features[index])
            histogram = self.histogram(memberships)
            difference, gradient = variation(histogram.flatten(2))
            contributions = weight * difference * gradient
            squared = squared + contributions.sum(dim=2).mean(dim=1)
            cells = histogram.shape[2:]
            shares = histogram.square() - _EPSILON
            normal_shares = (variation.mean.unflatten(1, cells).square() - _EPSILON).clamp_min(0)
            evidence.append(Evidence(memberships, shares, normal_shares, contributions.unflatten(2, cells), examples))
        return HistogramOutput(squared, self._surplus(evidence, size), evidence)

    def _surplus(self, evidence: Sequence[Evidence], size: tuple[int, int]) -> Tensor:
        """Surplus of each position, [B, 1, *size]."""
        levels = sorted(set(self.inputs))[:_SHOWN_LEVELS]
        largest = torch.stack([found.contributions.amax(dim=(1, 2, 3, 4)) for found in evidence]).amax(dim=0)
        largest = largest.clamp_min(_SMALLEST).view(-1, 1, 1, 1, 1)
        shown = []
        for level in levels:  # every level has the same number of sizes, so the mean over levels is that over all pairs
            of_sizes = [
                surplus_of(found, found.contributions.clamp_min(0) / largest)
                for index, found in zip(self.inputs, evidence, strict=True)
                if index == level
            ]
            patches = torch.stack(of_sizes).mean(dim=0)
            shown.append(F.interpolate(patches, size=size, mode="bilinear", align_corners=False))
        return torch.stack(shown).mean(dim=0)

    def histogram(self, memberships: Tensor) -> Tensor:
        """Histograms [B, R, K, grid, grid], as square roots of shares, from memberships [B, R, K, H, W]."""
        height, width = memberships.shape[-2:]
        rows, columns = cell_means(height, self.grid, memberships), cell_means(width, self.grid, memberships)
        return (rows @ memberships @ columns.T + _EPSILON).sqrt()


def surplus_of(found: Evidence, importance: Tensor | float = 1.0) -> Tensor:
    """Surplus of each patch for one pair of level and codebook size, mean over the codebooks.

    Args:
        found: Evidence of the pair.
        importance: Weight of each code in each cell, [B, R, K, g, g].

    Returns:
        [B, 1, H, W] at the size of the level's map, in [0, 1].
    """
    memberships, shares = found.memberships, found.shares
    fraction = ((shares - found.normal_shares) / shares.clamp_min(_EPSILON)).clamp(0, 1) * importance
    rows, columns = (cell_means(side, shares.shape[-1], shares) for side in memberships.shape[-2:])
    # Each patch reads its own cell; one on a border reads a mean of both.
    fraction = (rows / rows.sum(dim=0)).T @ fraction @ (columns / columns.sum(dim=0))
    return (memberships * fraction).sum(dim=2).mean(dim=1, keepdim=True)


def cell_means(side: int, grid: int, like: Tensor) -> Tensor:
    """Matrix that averages ``side`` rows (or columns) of patches over the cells of a grid.

    Args:
        side: Rows of patches.
        grid: Rows of cells.
        like: Gives device and type.

    Returns:
        [grid, side], each row adding up to one; a patch on a border counts in both cells.

    Example:
        >>> cell_means(4, 2, torch.zeros(1)).tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    edges = torch.arange(grid + 1, device=like.device, dtype=like.dtype) * (side / grid)
    start = torch.arange(side, device=like.device, dtype=like.dtype)
    overlap = torch.minimum(edges[1:, None], start + 1) - torch.maximum(edges[:-1, None], start)
    return overlap.clamp_min(0) * (grid / side)
