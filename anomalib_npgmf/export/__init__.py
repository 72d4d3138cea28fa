"""Export: files that give the scores of the trained model and hold its metadata."""

from anomalib_npgmf.export.metadata import describe

__all__ = ["describe"]
