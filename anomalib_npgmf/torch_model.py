"""NPGMF in pure torch: backbones, the two branches and their merging."""

from collections.abc import Collection, Mapping

import torch
from anomalib.data import InferenceBatch
from anomalib.models.components import GaussianBlur2d
from torch import Tensor, nn

from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.backbone.resize import AntialiasedResize
from anomalib_npgmf.composition import CompositionBranch
from anomalib_npgmf.config import ModelConfig
from anomalib_npgmf.logical.model import LogicalBranch
from anomalib_npgmf.merging.rule import MapMerger
from anomalib_npgmf.outputs import BranchMaps, Features
from anomalib_npgmf.precision import at_least_single
from anomalib_npgmf.structural.model import StructuralBranch

PARTS = ("logical", "structural", "composition")
SMOOTHING_SIGMA = 4.0  # pixels of a map of 256 x 256


class NpgmfModel(nn.Module):
    """The whole model. In training mode `forward` gives losses, in evaluation mode an anomalib ``InferenceBatch``.

    Backbones start with random weights: call `load_weights` or load a state dict. Before maps can be merged, structural
    and composition branch must be fitted (``collect``, then ``finish``) and the merger must be calibrated
    (`anomalib_npgmf.merging.calibrate`).

    Args:
        config: What to build; a level that a network lacks gives a ValueError.

    Attributes:
        mean: Mean of each channel by which input images are normalised: that of the logical branch's network, or of the
            structural branch's where that is the only one.
        std: Standard deviation of each channel, likewise.

    Example:
        >>> from anomalib_npgmf.config import resolve
        >>> model = NpgmfModel(resolve("small", {"logical_image_size": 128, "branches": "logical"}))
        >>> sorted(model.train()(torch.randn(1, 3, 128, 128)))
        ['codebook', 'feature', 'image', 'loss']
        >>> model.merger.calibrate({"logical": (1.0, 1.0)})
        >>> model.eval()(torch.randn(2, 3, 128, 128)).anomaly_map.shape
        torch.Size([2, 1, 128, 128])
    """

    mean: tuple[float, ...] = Backbone.mean  # default for .pt files of old versions, which stored no mean
    std: tuple[float, ...] = Backbone.std

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.logical: LogicalBranch | None = None
        self.structural: StructuralBranch | None = None
        self.composition: CompositionBranch | None = None
        self.encoder: Backbone | None = None
        self.structural_encoder: Backbone | None = None
        if config.branches != "structural":
            self.encoder = Backbone(config.backbone, config.encoder_levels, config.logical_image_size)
            used = config.logical.levels or self.encoder.levels
            self._logical_inputs = self.encoder.positions(used, "logical")
            rectified = self.encoder.rectified()
            self.logical = LogicalBranch(
                used,
                [self.encoder.channels[i] for i in self._logical_inputs],
                [rectified[i] for i in self._logical_inputs],
                config.logical_image_size,
                config.text_prior,
                config=config.logical,
            )
        if config.branches != "logical" and not config.shares_backbone:
            # The composition branch reads this network too.
            levels = sorted({*config.structural.levels, *config.composition_levels})
            name = config.structural_backbone or config.backbone
            self.structural_encoder = Backbone(name, levels, config.structural_image_size)
        source = self.structural_encoder or self.encoder
        assert source is not None
        if config.branches != "logical":
            self._structural_inputs = source.positions(config.structural.levels, "structural")
            channels = [source.channels[i] for i in self._structural_inputs]
            self.structural = StructuralBranch(channels, config.structural)
        if config.composition is not None:
            self._composition_inputs = source.positions(config.composition_levels, "composition")
            channels = [source.channels[i] for i in self._composition_inputs]
            self.composition = CompositionBranch(config.composition_levels, channels, config.composition)
        self.mean, self.std = config.normalisation
        self.resize_logical = self._resize_to(config.logical_image_size)
        self.resize_structural = self._resize_to(config.structural_image_size)
        self.merger = MapMerger(
            config.logical_image_size,
            config.logical_weight,
            config.structural_weight,
            blur=gaussian_blur(config.logical_image_size),
            maximum=config.merging == "maximum",
            composition=None if self.composition is None else self.composition.grids,
            output_size=config.image_size,
        )

    @property
    def backbone(self) -> str:
        """Name of the first network in use, as timm knows it; anomalib's web application reads it."""
        alone = self.config.structural_backbone if self.config.branches == "structural" else None
        return alone or self.config.backbone

    def _resize_to(self, size: tuple[int, int]) -> nn.Module:
        return nn.Identity() if size == self.config.image_size else AntialiasedResize(size)

    def load_weights(self) -> None:
        """Load the backbones' weights as the configuration says; see `Backbone.load_weights`."""
        if self.encoder is not None:
            self.encoder.load_weights(self.config.backbone_weights)
        if self.structural_encoder is not None:
            shared = self.config.structural_backbone is None
            weights = self.config.backbone_weights if shared else self.config.structural_backbone_weights
            self.structural_encoder.load_weights(weights)

    def features(self, image: Tensor, parts: Collection[str] = PARTS) -> Features:
        """Frozen features for each part, from one backbone pass where it is shared.

        Args:
            image: Normalised images, [B, 3, *config.image_size].
            parts: Parts to compute features for, among ``"logical"``, ``"structural"`` and ``"composition"``.

        Returns:
            Maps for each part; none for a part that the model lacks or that was not asked for.
        """
        bank = self.structural is not None and "structural" in parts
        composition = self.composition is not None and "composition" in parts
        shared = self.structural_encoder is None and (bank or composition)
        raw = self._encoded(image) if self.encoder is not None and ("logical" in parts or shared) else []
        source = raw
        if self.structural_encoder is not None and (bank or composition):
            source = at_least_single(self.structural_encoder(self._renormalised(self.resize_structural(image))))
        levels: list[Tensor] = []
        if self.logical is not None and "logical" in parts:
            levels = self.logical.standardise([raw[i] for i in self._logical_inputs])
        return Features(
            levels,
            [source[i] for i in self._structural_inputs] if bank else [],
            [source[i] for i in self._composition_inputs] if composition else [],
        )

    def _encoded(self, image: Tensor) -> list[Tensor]:
        """All levels of the encoder, in float32 even where the network runs in lower precision."""
        assert self.encoder is not None
        return at_least_single(self.encoder(self.resize_logical(image)))

    def _renormalised(self, image: Tensor) -> Tensor:
        """Bring images from the normalisation of the model's input to that of the structural branch's network."""
        network = self.structural_encoder
        assert network is not None
        if (network.mean, network.std) == (self.mean, self.std):
            return image
        given, own = ([image.new_tensor(v).view(-1, 1, 1) for v in (n.mean, n.std)] for n in (self, network))
        return (image * given[1] + given[0] - own[0]) / own[1]

    @torch.no_grad()
    def initialise(self, images: Tensor) -> None:
        """Prepare the logical branch for training; see `LogicalBranch.initialise`.

        Args:
            images: Some normalised training images, [B, 3, *config.image_size].
        """
        if self.logical is not None and self.encoder is not None:
            parts = [self._encoded(part) for part in images.split(8)]
            levels = [torch.cat(level) for level in zip(*parts, strict=True)]
            self.logical.initialise([levels[i] for i in self._logical_inputs])

    def branch_maps(
        self, image: Tensor, known: Mapping[str, Tensor] | None = None, *, details: bool = False
    ) -> BranchMaps:
        """Raw anomaly maps of the parts (eqs. 7 and 10).

        Args:
            image: Normalised images, [B, 3, *config.image_size].
            known: Maps computed before, by part; these parts are not run, and give no details.
            details: Whether to reconstruct the image and to explain the composition as well, which no map needs.

        Returns:
            The maps and, where asked for, reconstruction and explanations.
        """
        maps = dict(known or {})
        features = self.features(image, [part for part in PARTS if part not in maps])
        reconstruction, explanations = None, []
        if self.logical is not None and "logical" not in maps:
            output = self.logical(features.logical, reconstruct=details)
            maps["logical"] = self.logical.anomaly_map(features.logical, output)
            reconstruction = output.reconstruction
        if self.structural is not None and "structural" not in maps:
            maps["structural"] = self.structural(features.structural)
        if self.composition is not None and "composition" not in maps:
            mask_size = self.config.image_size if details else None
            found = self.composition(features.composition, self.merger.size, mask_size)
            maps |= {"composition": found.surplus, "composition_scores": found.scores}
            explanations = found.explanations
        return BranchMaps(maps, reconstruction, explanations)

    def merge(self, maps: dict[str, Tensor]) -> InferenceBatch:
        """Merged map at the size of the input, and image scores (section III-C).

        Without a composition branch the score is the maximum of the merged map.

        Args:
            maps: Raw maps by part, as `branch_maps` gives them.

        Returns:
            ``pred_score`` [B] and ``anomaly_map`` [B, 1, *config.image_size].
        """
        score, merged = self.merger(maps)
        return InferenceBatch(pred_score=score, anomaly_map=merged)

    def forward(self, image: Tensor) -> dict[str, Tensor] | InferenceBatch:
        """Losses in training mode, scores and maps in evaluation mode.

        Args:
            image: Normalised images, [B, 3, *config.image_size].

        Raises:
            ValueError: If the images have another size.
            RuntimeError: If the model has not been trained and calibrated.
        """
        if image.shape[-2:] != self.config.image_size:
            size, given = self.config.image_size, tuple(image.shape[-2:])
            msg = f"The model takes images of {size[0]} x {size[1]}, not {given[0]} x {given[1]}; resize them first."
            raise ValueError(msg)
        if self.training:
            if self.logical is None:
                return {"loss": image.new_zeros((), requires_grad=True)}  # a memory bank has no loss
            return self.logical.losses(self.features(image, ["logical"]).logical, self.resize_logical(image))
        if not torch.compiler.is_compiling():
            self.merger.require_calibration()
        return self.merge(self.branch_maps(image).maps)


def gaussian_blur(size: tuple[int, int]) -> GaussianBlur2d:
    """Filter that smooths merged maps (section III-C): a standard deviation of 4 pixels at 256 x 256, in proportion.

    Args:
        size: Height and width of the maps.
    """
    return GaussianBlur2d(sigma=SMOOTHING_SIGMA * min(size) / 256)
