"""The frozen network that the branches read their features from, its weights, and the resize in front of it."""

from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.backbone.resize import AntialiasedResize

__all__ = ["AntialiasedResize", "Backbone"]
