"""Structural branch: memory bank of normal patches, its coreset and the nearest-neighbour map."""

from anomalib_npgmf.structural.bank import MemoryBank
from anomalib_npgmf.structural.config import StructuralConfig
from anomalib_npgmf.structural.coreset import covering_radius, select_coreset
from anomalib_npgmf.structural.model import StructuralBranch

__all__ = ["MemoryBank", "StructuralBranch", "StructuralConfig", "covering_radius", "select_coreset"]
