"""The logical branch: reconstruction of features under normal priors (paper, section III-A)."""
