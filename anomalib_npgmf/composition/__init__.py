"""Composition branch: histograms of codes, of the whole image and of the cells of grids. An addition to the paper."""

from anomalib_npgmf.composition.config import CompositionConfig
from anomalib_npgmf.composition.explanation import Explanation
from anomalib_npgmf.composition.model import CompositionBranch, CompositionOutput

__all__ = ["CompositionBranch", "CompositionConfig", "CompositionOutput", "Explanation"]
