"""Data modules for MVTec LOCO AD and for images that need no download."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loco import LOCO
    from .synthetic.datamodule import SyntheticLOCO

__all__ = ["LOCO", "SyntheticLOCO"]

_MODULES = {"LOCO": "loco", "SyntheticLOCO": "synthetic.datamodule"}


def __getattr__(name: str) -> Any:
    # Importing anomalib takes seconds; whoever needs one data module should not wait for the other.
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
