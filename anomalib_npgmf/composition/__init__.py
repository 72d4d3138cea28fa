"""Composition read-out: how much of what an image shows, as a whole and in each part of it."""

from anomalib_npgmf.composition.config import CompositionConfig
from anomalib_npgmf.composition.explanation import Explanation
from anomalib_npgmf.composition.model import CompositionBranch, CompositionOutput

__all__ = ["CompositionBranch", "CompositionConfig", "CompositionOutput", "Explanation"]
