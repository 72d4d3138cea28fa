"""What can be set about the composition read-out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CompositionConfig:
    """Settings of the composition read-out.

    Args:
        levels: Backbone levels whose patches are counted; level k has stride 2^k.
        codebook_size: Codes per codebook. Few codes keep the composition of a small training set in low dimension.
        codebooks: Codebooks per level, from different starts of k-means. Their distances are averaged, because which
            parts share a code is to some degree a matter of chance.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> CompositionConfig(levels=[4, 3]).levels
        (3, 4)
        >>> CompositionConfig(codebook_size=1)
        Traceback (most recent call last):
        ...
        ValueError: codebook_size must be at least 2, but it is 1.
    """

    levels: tuple[int, ...] = (3, 4)
    codebook_size: int = 16
    codebooks: int = 5

    def __post_init__(self) -> None:
        """Check the ranges and turn lists (as YAML gives them) into sorted tuples."""
        object.__setattr__(self, "levels", tuple(sorted(self.levels)))
        if not self.levels or len(set(self.levels)) < len(self.levels) or self.levels[0] < 1:
            msg = f"levels must be distinct backbone levels from 1 on, but they are {self.levels}."
            raise ValueError(msg)
        for name, least in (("codebook_size", 2), ("codebooks", 1)):
            if getattr(self, name) < least:
                msg = f"{name} must be at least {least}, but it is {getattr(self, name)}."
                raise ValueError(msg)
