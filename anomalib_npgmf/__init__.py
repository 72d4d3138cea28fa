"""NPGMF for anomalib: logical and structural anomaly detection (arXiv 2506.18544).

Importing this package imports neither torch nor anomalib; the public names below load on first use.

Example:
    >>> import anomalib_npgmf
    >>> "Npgmf" in dir(anomalib_npgmf)
    True
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_EXPORTS = {
    "Npgmf": "anomalib_npgmf.lightning_model",
    "NpgmfModel": "anomalib_npgmf.torch_model",
    "SyntheticLOCO": "anomalib_npgmf.data",
    "LOCO": "anomalib_npgmf.data",
    "SPRO": "anomalib_npgmf.metrics",
    "LocoAUROC": "anomalib_npgmf.metrics",
    "evaluate_loco": "anomalib_npgmf.metrics",
    "register": "anomalib_npgmf.host.plugin",
}

__all__ = ["LOCO", "SPRO", "LocoAUROC", "Npgmf", "NpgmfModel", "SyntheticLOCO", "evaluate_loco", "register"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
