# Copyright (C) 2026 The anomalib-npgmf authors
# SPDX-License-Identifier: Apache-2.0

"""Drawn images in the layout of MVTec LOCO AD, for trying a method without a download."""

from __future__ import annotations

from .datamodule import SyntheticLOCO

__all__ = ["SyntheticLOCO"]
