"""What the torch model computes on the way to the merged map."""

from typing import NamedTuple

from torch import Tensor

from anomalib_npgmf.composition import Explanation


class Features(NamedTuple):
    """Frozen features for each branch of the model; empty for a branch that is not in use.

    Attributes:
        logical: Levels of the encoder that the logical branch uses, [B, C_k, H/2^k, W/2^k], finest first; standardised
            where the configuration says so.
        structural: The memory bank's levels, never standardised.
        composition: The composition branch's levels, never standardised.
    """

    logical: list[Tensor]
    structural: list[Tensor]
    composition: list[Tensor]


class BranchMaps(NamedTuple):
    """Raw results of the branches for a batch.

    Attributes:
        maps: By branch, if in use: anomaly maps ``"logical"`` [B, 1, H, W] and ``"structural"`` [B, 1, h, w]; for the
            composition the surplus maps ``"composition"`` [B, M, H, W] and the scores ``"composition_scores"`` [B, M]
            of its M histograms, see `CompositionOutput`.
        reconstruction: Image from the logical branch's decoder, [B, 3, H, W], normalised like the input; ``None``
            without that branch, without ``details``, or where its map was known.
        explanations: What is abnormal about the composition of each image, with a mask of the size of the input; empty
            without composition branch, without ``details``, or where its map was known.
    """

    maps: dict[str, Tensor]
    reconstruction: Tensor | None
    explanations: list[Explanation]

    def alone(self, part: str) -> dict[str, Tensor]:
        """The entries that `anomalib_npgmf.torch_model.NpgmfModel.merge` needs for one branch alone."""
        names = (part, "composition_scores") if part == "composition" else (part,)
        return {name: self.maps[name] for name in names}
