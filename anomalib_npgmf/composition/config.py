"""Settings of the composition branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CompositionConfig:
    """Settings of the composition branch.

    Args:
        levels: Backbone levels whose patches are counted; level k has stride 2^k.
        codebook_sizes: Numbers of codes of whole-image histograms. Few codes suit a small training set, many tell
            similar parts apart; the squared distances of all sizes are averaged.
        codebooks: Codebooks per level and size, from different random starts of k-means. Their squared distances are
            averaged as well, because it partly depends on the start which parts share a code.
        grids: Cells per side of each grid; a grid of n has a histogram in each of n x n cells.
        grid_codebook_sizes: Numbers of codes of the histograms of grids.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> CompositionConfig(levels=[4, 3]).levels
        (3, 4)
        >>> CompositionConfig(codebook_sizes=(16, 1))
        Traceback (most recent call last):
        ...
        ValueError: codebook_sizes must be at least 2 each, but they are (16, 1).
    """

    levels: tuple[int, ...] = (3, 4)
    codebook_sizes: tuple[int, ...] = (8, 16, 32)
    codebooks: int = 3
    grids: tuple[int, ...] = (2, 3)
    grid_codebook_sizes: tuple[int, ...] = (32,)

    def __post_init__(self) -> None:
        """Check the ranges and turn lists (as YAML gives them) into tuples, levels sorted."""
        object.__setattr__(self, "levels", tuple(sorted(self.levels)))
        if not self.levels or len(set(self.levels)) < len(self.levels) or self.levels[0] < 1:
            msg = f"levels must be distinct backbone levels from 1 on, but they are {self.levels}."
            raise ValueError(msg)
        for name in ("codebook_sizes", "grid_codebook_sizes"):
            sizes = tuple(getattr(self, name))
            object.__setattr__(self, name, sizes)
            if not sizes or min(sizes) < 2:
                msg = f"{name} must be at least 2 each, but they are {sizes}."
                raise ValueError(msg)
        grids: Any = self.grids  # whatever YAML gave
        valid = isinstance(grids, (list, tuple)) and all(isinstance(grid, int) and grid >= 2 for grid in grids)
        if not valid or len(set(grids)) < len(grids):
            msg = f"grids must be a list of distinct numbers of cells from 2 on, but they are {grids}."
            raise ValueError(msg)
        object.__setattr__(self, "grids", tuple(grids))
        if self.codebooks < 1:
            msg = f"codebooks must be at least 1, but it is {self.codebooks}."
            raise ValueError(msg)
