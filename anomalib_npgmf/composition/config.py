"""Settings of the composition branch."""

from dataclasses import dataclass
from typing import Annotated

from anomalib_npgmf.fields import Items, Range, check_fields

_Sizes = Annotated[tuple[Annotated[int, Range(2, 1024)], ...], Items(1, distinct=False)]
_MAX_BINS = 8192  # a covariance of 8192 x 8192 takes 256 MiB, one per level and codebook


@dataclass(frozen=True)
class CompositionConfig:
    """Settings of the composition branch.

    Args:
        levels: Backbone levels whose patches are counted; level k has stride 2^k.
        codebook_sizes: Numbers of codes of whole-image histograms. Few codes suit a small training set, many tell
            similar objects apart; the squared distances of all sizes are averaged.
        codebooks: Codebooks per level and size, from different random starts of k-means. Their squared distances are
            averaged as well, because it partly depends on the start which objects share a code.
        grids: Cells per side of each grid; a grid of n has a histogram in each of n x n cells.
        grid_codebook_sizes: Numbers of codes of the histograms of grids.
        region_levels: Backbone levels of the memory bank of regions, see
            `anomalib_npgmf.composition.regions.RegionBank`; empty for no such bank.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If a value is out of range, or the covariances of the grids would take too much memory.

    Example:
        >>> CompositionConfig(levels=[4, 3]).levels
        (3, 4)
        >>> CompositionConfig(codebooks=0)
        Traceback (most recent call last):
        ...
        ValueError: composition.codebooks must be a whole number from 1 to 64, not 0.
    """

    levels: Annotated[tuple[Annotated[int, Range(1, 16)], ...], Items(at_least=1)] = (3, 4)
    codebook_sizes: _Sizes = (8, 16, 32)
    codebooks: Annotated[int, Range(1, 64)] = 3
    grids: Annotated[tuple[Annotated[int, Range(2, 64)], ...], Items()] = (2, 3)
    grid_codebook_sizes: _Sizes = (32,)
    region_levels: Annotated[tuple[Annotated[int, Range(1, 16)], ...], Items()] = ()

    @property
    def read_levels(self) -> tuple[int, ...]:
        """All levels that the branch reads, finest first."""
        return tuple(sorted({*self.levels, *self.region_levels}))

    def __post_init__(self) -> None:
        """Check types, ranges and the memory that grids take, and sort the levels."""
        check_fields(self, "composition.")
        for name in ("levels", "region_levels"):
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))
        if self.grids and (bins := max(self.grids) ** 2 * max(self.grid_codebook_sizes)) > _MAX_BINS:
            msg = (
                f"composition.grids {self.grids} with grid_codebook_sizes {self.grid_codebook_sizes} make histograms "
                f"of {bins} bins, whose covariance takes too much memory; lower either for at most {_MAX_BINS}."
            )
            raise ValueError(msg)
