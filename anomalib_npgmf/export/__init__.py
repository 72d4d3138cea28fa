"""Export: files that score like the trained model and say what they are."""

from anomalib_npgmf.export.metadata import describe

__all__ = ["describe"]
