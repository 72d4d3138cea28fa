"""All that exists because anomalib and Lightning are as they are. Nothing heavy is imported here, see `plugin`."""
