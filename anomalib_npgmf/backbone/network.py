"""The frozen ImageNet networks that both branches read their features from.

anomalib's ``TimmFeatureExtractor`` is not used here because it cannot read weights from a local file.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from anomalib_npgmf.backbone.weights import check_state_dict, read_state_dict


def _level_of(reduction: int) -> int:
    """Level k of a feature map whose side is 1/2^k of the image's."""
    return reduction.bit_length() - 1


class Backbone(nn.Module):
    """Frozen feature pyramid of a timm network (method, section III-A and III-B).

    Level k is the feature map of stride 2^k, the last one of that stride that timm offers. For a ResNet the five levels
    are its five convolution groups, E^1 to E^5 of the paper. Channels and strides are read from the network.

    Args:
        name: timm name of a network with feature levels, e.g. ``"resnet101.tv_in1k"``.
        levels: Levels to return, ascending. ``None`` returns all that the network has.

    Raises:
        ValueError: If timm does not know the network, it has no feature pyramid or lacks a level.

    Example:
        >>> backbone = Backbone("mobilenetv2_100", levels=(3, 4))
        >>> backbone.channels
        (32, 96)
        >>> [tuple(f.shape) for f in backbone(torch.zeros(1, 3, 64, 64))]
        [(1, 32, 8, 8), (1, 96, 4, 4)]
    """

    def __init__(self, name: str, levels: Sequence[int] | None = None) -> None:
        super().__init__()
        self.name = name
        try:
            info: Any = timm.create_model(name, pretrained=False, features_only=True).feature_info
        except Exception as error:
            msg = f"timm has no network {name!r} with feature levels ({error}); see timm.list_models()."
            raise ValueError(msg) from error
        index_of: dict[int, int] = {}
        for index, reduction in enumerate(info.reduction()):
            if reduction & (reduction - 1) == 0:
                index_of[_level_of(reduction)] = index
        if len(index_of) < 2:
            msg = f"{name} has only {len(index_of)} distinct feature level(s); choose a network with a feature pyramid."
            raise ValueError(msg)
        self.available_levels = tuple(sorted(index_of))
        self.levels = tuple(sorted(levels)) if levels is not None else self.available_levels
        unknown = [level for level in self.levels if level not in index_of]
        if unknown:
            msg = f"{name} has the feature levels {self.available_levels}, not {unknown}; choose among them."
            raise ValueError(msg)
        indices = tuple(index_of[level] for level in self.levels)
        self._features = timm.create_model(name, pretrained=False, features_only=True, out_indices=indices)
        self._indices = indices
        all_channels = info.channels()
        self.channels = tuple(int(all_channels[index]) for index in indices)
        self.strides = tuple(2**level for level in self.levels)
        self.freeze()

    def freeze(self) -> None:
        """Evaluation mode, no gradients: the encoder is frozen throughout (paper, section III-A)."""
        self._features.eval()
        self._features.requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode whatever the parent does."""
        super().train(mode)
        self._features.eval()
        return self

    def load_weights(self, weights: str | None) -> None:
        """Load the weights of the network.

        Args:
            weights: ``None`` for timm's published weights (needs its hub or a filled cache), ``"random"`` to keep the
                random ones, or the path of a local ``.pth`` or ``.safetensors`` file.

        Raises:
            ValueError: If a file does not fit, naming the first keys.
            RuntimeError: If the hub cannot be reached.
        """
        if weights == "random":
            return
        if weights is not None:
            state = read_state_dict(weights)
            whole: Any = timm.create_model(self.name, pretrained=False)
            heads = whole.pretrained_cfg.get("classifier") or ()
            heads = (heads,) if isinstance(heads, str) else tuple(heads)
            needed = {n: v for n, v in whole.state_dict().items() if not n.startswith(tuple(f"{h}." for h in heads))}
            optional = {n for n in needed if n.endswith("num_batches_tracked")}
            expected = {n: v for n, v in needed.items() if n not in optional}
            check_state_dict(state, expected, str(weights), self.name)
            source: dict[str, Any] = {"pretrained_cfg_overlay": {"state_dict": state}}
        else:
            source = {}
        try:
            loaded = timm.create_model(
                self.name, pretrained=True, features_only=True, out_indices=self._indices, **source
            )
        except Exception as error:
            msg = (
                f"The weights of {self.name} could not be fetched ({type(error).__name__}); give a local file in "
                "backbone_weights / structural_backbone_weights, or 'random' for untrained ones."
            )
            raise RuntimeError(msg) from error
        self._features.load_state_dict(loaded.state_dict())
        self.freeze()

    @torch.no_grad()
    def rectified(self) -> tuple[bool, ...]:
        """Whether each level ends in a rectifier, so that its features are never negative.

        Read from one pass of noise; the decoder ends its levels alike.
        """
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, 3, 64, 64, generator=generator)
        return tuple(bool((feature >= 0).all()) for feature in self(noise))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the feature maps.

        Args:
            image: Normalised images, [B, 3, H, W].

        Returns:
            One map [B, C_k, H/2^k, W/2^k] for each of ``levels``, finest first.
        """
        with torch.no_grad():
            return list(self._features(image))
