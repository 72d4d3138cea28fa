"""Data modules for MVTec LOCO AD and for synthetic images, drawn by code, which need no download."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loco import LOCO
    from .synthetic.datamodule import SyntheticLOCO

__all__ = ["LOCO", "SyntheticLOCO"]

_MODULES = {"LOCO": "loco", "SyntheticLOCO": "synthetic.datamodule"}


def __getattr__(name: str) -> Any:
    # Imported on first use: importing anomalib takes seconds, and drawing does not need it.
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
