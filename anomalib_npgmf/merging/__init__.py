"""Merging of the maps: calibration on normal images, eq. 11, smoothing."""
