"""Integration with the host, anomalib and Lightning: plug-in, training hooks, calibration, thresholds, reports."""
