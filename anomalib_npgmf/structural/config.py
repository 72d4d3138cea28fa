"""Configuration of the structural branch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from anomalib_npgmf.fields import Items, Range, check_fields


@dataclass(frozen=True)
class StructuralConfig:
    """Settings of the structural branch (section III-B of the paper).

    Args:
        levels: Backbone levels that a patch aggregates, finest first. Level k has stride 2^k: the default takes
            strides 8 and 16, layer2 and layer3 of a ResNet. The paper numbers these convolution groups 3 and 4 as well.
        neighbourhood: Side of the square of positions over which each level is averaged, odd, finest level first; the
            last one holds for all further levels. 3 is PatchCore's. 1 stands for no averaging: small damage stands out
            more, and normal images vary more.
        coreset_ratio: Fraction of all training patches that the memory bank keeps, in (0, 1].
        coreset_method: How the greedy k-centre coreset is computed, see
            :func:`~anomalib_npgmf.structural.coreset.select_coreset`.
        bank_dtype: Precision of the stored patches. ``"float16"`` halves the bank and the memory of building it.
        reduce_to: Number r of principal components that bank and queries keep. They then have r + 1 dimensions; the
            last is the norm of the residual. ``None``, or r not below a patch's dimension, keeps all dimensions.
        whiten: Whether distances are measured in whitened features, in which every level has the same weight, see
            :func:`~anomalib_npgmf.structural.whitening.whitening`; an addition to the paper.
        collect_gb: Memory for the patches of the training images while the bank is built, in GiB. Above it each image
            is first thinned to a coreset of its own, which keeps the larger of a quarter and four times
            ``coreset_ratio`` of its patches, so that the bank is no longer selected from all patches. In preset
            ``paper`` 350 images need 8.2 GiB.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If a value is out of range.

    Example:
        >>> StructuralConfig(coreset_ratio=0.1).levels
        (3, 4)
        >>> StructuralConfig(coreset_ratio=0)
        Traceback (most recent call last):
        ...
        ValueError: structural.coreset_ratio must be a number above 0 to 1, not 0.
    """

    levels: Annotated[tuple[Annotated[int, Range(1, 16)], ...], Items(at_least=1)] = (3, 4)
    neighbourhood: Annotated[tuple[Annotated[int, Range(1, 15)], ...], Items(at_least=1, distinct=False)] = (3,)
    coreset_ratio: Annotated[float, Range(0, 1, above_low=True)] = 0.01
    coreset_method: Literal["fast", "exact"] = "fast"
    bank_dtype: Literal["float32", "float16"] = "float32"
    reduce_to: Annotated[int, Range(1)] | None = None
    whiten: bool = False
    collect_gb: Annotated[float, Range(0)] = 2.0

    def __post_init__(self) -> None:
        """Check types, ranges, the neighbourhoods and the order of the levels."""
        check_fields(self, "structural.")
        if any(side % 2 == 0 for side in self.neighbourhood):
            msg = f"structural.neighbourhood must be odd, so that it has a centre, but it is {self.neighbourhood}."
            raise ValueError(msg)
        if list(self.levels) != sorted(self.levels):
            msg = f"structural.levels must be in ascending order, finest first, but they are {self.levels}."
            raise ValueError(msg)
