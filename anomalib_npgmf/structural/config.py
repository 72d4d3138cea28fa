"""Configuration of the structural branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class StructuralConfig:
    """Settings of the structural branch (section III-B of the paper).

    Args:
        levels: Backbone levels that a patch aggregates, finest first. Level k has stride 2^k: the default takes
            strides 8 and 16, the second and third block of a ResNet. The paper numbers these convolution groups 3 and 4
            as well.
        coreset_ratio: Fraction of all training patches that the memory bank keeps, in (0, 1].
        coreset_method: How the greedy k-centre coreset is computed, see
            :func:`~anomalib_npgmf.structural.coreset.select_coreset`.
        bank_dtype: Precision of the stored patches. ``"float16"`` halves the bank and the memory of building it.
        reduce_to: Number of principal components to which the bank and every query are reduced, plus one dimension for
            the norm of the residual; ``None``, or a number not below a patch's dimension, keeps all dimensions.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> StructuralConfig(coreset_ratio=0.1).levels
        (3, 4)
        >>> StructuralConfig(coreset_ratio=0)
        Traceback (most recent call last):
        ...
        ValueError: coreset_ratio must lie in (0, 1], but it is 0.
    """

    levels: tuple[int, ...] = (3, 4)
    coreset_ratio: float = 0.01
    coreset_method: Literal["fast", "exact"] = "fast"
    bank_dtype: Literal["float32", "float16"] = "float32"
    reduce_to: int | None = None

    def __post_init__(self) -> None:
        if not self.levels or list(self.levels) != sorted(set(self.levels)) or self.levels[0] < 1:
            msg = f"levels must be distinct backbone levels from 1 on, finest first, but they are {self.levels}."
            raise ValueError(msg)
        if not 0 < self.coreset_ratio <= 1:
            msg = f"coreset_ratio must lie in (0, 1], but it is {self.coreset_ratio}."
            raise ValueError(msg)
        if self.coreset_method not in ("fast", "exact"):
            msg = f"coreset_method must be 'fast' or 'exact', but it is {self.coreset_method!r}."
            raise ValueError(msg)
        if self.bank_dtype not in ("float32", "float16"):
            msg = f"bank_dtype must be 'float32' or 'float16', but it is {self.bank_dtype!r}."
            raise ValueError(msg)
        if self.reduce_to is not None and self.reduce_to < 1:
            msg = f"reduce_to must be a positive dimension or None, but it is {self.reduce_to}."
            raise ValueError(msg)
