"""Merging of the maps: calibration on normal images, eq. 11 or a maximum, and the composition."""

from anomalib_npgmf.merging.calibration import calibrate
from anomalib_npgmf.merging.composition import CompositionMerger, Merged
from anomalib_npgmf.merging.rule import MapMerger

__all__ = ["CompositionMerger", "MapMerger", "Merged", "calibrate"]
