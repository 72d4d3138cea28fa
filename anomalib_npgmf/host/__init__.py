"""Integration with anomalib and Lightning: plug-in, training hooks, calibration, post-processing, pictures."""
