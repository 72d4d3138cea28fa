"""Train and test many models on many categories; results are stored with their settings and origin."""

from anomalib_npgmf.benchmark.plan import Cell, Plan, load_plan

__all__ = ["Cell", "Plan", "load_plan"]
