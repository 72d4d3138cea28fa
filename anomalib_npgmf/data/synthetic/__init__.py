"""Drawn images in the layout of MVTec LOCO AD, for trying a method without a download."""

from __future__ import annotations

from .datamodule import SyntheticLOCO

__all__ = ["SyntheticLOCO"]
