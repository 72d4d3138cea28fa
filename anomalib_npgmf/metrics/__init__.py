"""Exact metrics of MVTec LOCO AD, for any anomalib model and for anomaly maps of any tool."""

from anomalib_npgmf.metrics.evaluate import evaluate_loco
from anomalib_npgmf.metrics.functional import auc_spro
from anomalib_npgmf.metrics.loco import LocoAUROC, loco_metrics
from anomalib_npgmf.metrics.spro import SPRO
from anomalib_npgmf.metrics.writer import write_anomaly_maps

__all__ = ["SPRO", "LocoAUROC", "auc_spro", "evaluate_loco", "loco_metrics", "write_anomaly_maps"]
