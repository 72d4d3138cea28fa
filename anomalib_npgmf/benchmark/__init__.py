"""Train and test many models on many categories, and keep every figure with what it came from."""

from anomalib_npgmf.benchmark.plan import Cell, Plan, load_plan

__all__ = ["Cell", "Plan", "load_plan"]
