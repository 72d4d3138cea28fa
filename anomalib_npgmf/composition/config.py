"""Settings of the composition branch."""

from dataclasses import dataclass
from typing import Annotated

from anomalib_npgmf.fields import Items, Range, check_fields

_Size = Annotated[int, Range(2, 1024)]
_MAX_BINS = 8192  # a covariance of 8192 x 8192 takes 256 MiB, one per level and codebook


@dataclass(frozen=True)
class CompositionConfig:
    """Settings of the composition branch.

    Args:
        levels: Backbone levels of the code histograms; level k has stride 2^k.
        codebook_sizes: Numbers of codes of the first histogram, of the whole image, which is not whitened. Small
            codebooks suit few training images, large ones separate similar objects; the squared distances of all sizes
            are averaged.
        codebooks: Codebooks per level and size, from different random starts of k-means. Their squared distances are
            averaged as well, because the clustering depends on the start.
        grids: Cells per side of each grid; n stands for a histogram in each of n x n cells, 1 for one of the whole
            image. The codes of grids are found in whitened features, see `anomalib_npgmf.composition.codes.SoftCodes`.
        grid_codebook_sizes: Number of codes of the histograms of each grid, or one number for all grids; empty for
            ``512 / n^3``, from 2 to 64, for a grid of n x n: 64 for the whole image and for 2 x 2, 8 for 4 x 4. Many
            codes separate colours; the more cells, the fewer codes, so that the covariance can be estimated.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If a value is out of range, there are neither as many ``grid_codebook_sizes`` as grids nor one, or
            the covariances of the grids would take too much memory.

    Example:
        >>> CompositionConfig(levels=[4, 3]).levels
        (3, 4)
        >>> CompositionConfig(grids=(2, 3)).codes_of_grids
        (64, 19)
        >>> CompositionConfig(codebooks=0)
        Traceback (most recent call last):
        ...
        ValueError: composition.codebooks must be a whole number from 1 to 64, not 0.
    """

    levels: Annotated[tuple[Annotated[int, Range(1, 16)], ...], Items(at_least=1)] = (3, 4)
    codebook_sizes: Annotated[tuple[_Size, ...], Items(1, distinct=False)] = (8, 16, 32)
    codebooks: Annotated[int, Range(1, 64)] = 3
    grids: Annotated[tuple[Annotated[int, Range(1, 64)], ...], Items()] = (1, 2, 4)
    grid_codebook_sizes: Annotated[tuple[_Size, ...], Items(distinct=False)] = ()

    @property
    def codes_of_grids(self) -> tuple[int, ...]:
        """Number of codes of each grid."""
        if len(self.grid_codebook_sizes) == len(self.grids):
            return self.grid_codebook_sizes
        return tuple(next(iter(self.grid_codebook_sizes), min(64, max(2, round(512 / grid**3)))) for grid in self.grids)

    def __post_init__(self) -> None:
        """Check types, ranges and the memory that grids take, and sort the levels."""
        check_fields(self, "composition.")
        object.__setattr__(self, "levels", tuple(sorted(self.levels)))
        if len(self.grid_codebook_sizes) not in (0, 1, len(self.grids)):
            msg = (
                f"composition.grid_codebook_sizes must hold one number for each of the grids {self.grids}, or one for "
                f"all, not {self.grid_codebook_sizes}."
            )
            raise ValueError(msg)
        bins = max((grid**2 * codes for grid, codes in zip(self.grids, self.codes_of_grids, strict=True)), default=0)
        if bins > _MAX_BINS:
            msg = (
                f"composition.grids {self.grids} with grid_codebook_sizes {self.codes_of_grids} make histograms "
                f"of {bins} bins, whose covariance takes too much memory; lower either for at most {_MAX_BINS}."
            )
            raise ValueError(msg)
