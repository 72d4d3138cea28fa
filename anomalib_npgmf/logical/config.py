"""Configuration of the logical branch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from anomalib_npgmf.fields import Items, Range, check_fields
from anomalib_npgmf.logical.text_prior import CLIP_MODEL

_Level = Annotated[int, Range(1, 16)]
_Levels = Annotated[tuple[_Level, ...], Items(at_least=1)]
_Channels = Annotated[int, Range(1, 16384)]
_Depth = Annotated[int, Range(1, 64)]
_Weight = Annotated[float, Range(0)]


@dataclass(frozen=True)
class LogicalConfig:
    """Architecture and loss of the logical branch (paper, section III-A).

    The defaults are the paper's values where it states them; other choices are explained at each field.

    Args:
        levels: Levels of the encoder that are used; ``None`` means every level of the backbone. The one-class embedding
            reads the deepest, the decoder ends at the finest.
        vq_levels: Levels with a codebook. The paper does not name them; middle levels represent parts rather than
            texture or the whole scene. Empty: no codebooks.
        loss_levels: Levels of eq. 4 and eq. 7; ``None`` means all of ``levels``.
        standardise: Whether the channels of the encoder's features are normalised to mean 0 and standard deviation 1
            over a sample of training images. The paper does not; but where features may be negative (MobileNet,
            EfficientNet) the means of the channels would dominate the cosine of eq. 3.
        embedding_channels: Channels of the one-class embedding; ``None`` means those of the deepest level.
        rectify_embedding: Whether normalisation and ReLU follow the second convolution of the one-class embedding, as
            they follow the first, and as in RD4AD.
        clip_model: open_clip's name of the CLIP whose text tower embeds the caption. OpenAI's weights need
            an architecture with QuickGELU, as the default has; most others need one without, such as ``ViT-B-32``.
        captions: Prompt templates for CLIP; ``{}`` stands for the class name, which is ``prompt`` of the model or the
            category's name. The embeddings of several are averaged.
        prior_dim: Channels of the global context g, the output of a linear layer on the text embedding.
        prior_grid: Side s0 of the grid to which g is reshaped before upsampling; 1 broadcasts it.
        codebook_size: Codes per codebook; 16 in the paper.
        code_dim: Channels of a code.
        atrous_width: Channels of each branch of the atrous block that feeds a codebook.
        dilations: Dilations of the atrous blocks: 6, 12 and 18, or 2, 4 and 6 on small maps, where larger kernels see
            little but padding around the centre. ``"map"`` counts a map with a side below 32 as small, ``"level"``
            every map from level 4 on. At 256 pixels both agree.
        codebook_init: ``"data"`` starts the codes at k-means centres of features of a sample of training images,
            ``"normal"`` at standard normal vectors (the literal reading, with which most codes stay unused).
        codebook_restart: Whether dead codes, those nearest to fewer than one in a thousand vectors, are replaced by
            random features after each epoch.
        fusion: ``"proj"`` projects the concatenation to the level's channels before the LeWin blocks, ``"concat"``
            (the literal reading) runs them at the concatenated width.
        fusion_depth: LeWin blocks per fusion; every second one has shifted windows.
        window: Side of the attention windows.
        head_dim: Channels per attention head, at least; a narrower map has one head.
        modulator: Whether windows of full size carry a learned embedding, as in Uformer's decoder.
        decoder_blocks: Bottlenecks per decoding block, or one number for each level, finest first.
        decoder_channels: Maximum number of channels inside the embedding, the atrous blocks and the decoder. 1x1
            convolutions project a wider level to it, and the decoder's features back for eq. 4. ``None``: as many as
            the encoder, as in RD4AD. The embedding itself has ``embedding_channels``.
        norm: ``"gn"`` is group normalisation, independent of the batch size; ``"bn"`` batch normalisation, the literal
            reading.
        cosine: ``"local"`` compares feature vectors per position (eq. 3), ``"flat"`` whole maps (RD4AD's code).
        feature_loss_weight: Weight of eq. 4 in eq. 6.
        image_loss_weight: Weight of eq. 5 in eq. 6.
        codebook_loss_weight: Weight of eq. 2 in eq. 6.
        commitment_weight: Weight beta of the commitment term in eq. 2.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If a value is outside its range.

    Example:
        >>> LogicalConfig(codebook_size=32).codebook_size
        32
        >>> LogicalConfig(fusion="sum")
        Traceback (most recent call last):
        ...
        ValueError: logical.fusion must be 'proj' or 'concat', not 'sum'.
    """

    levels: _Levels | None = None
    vq_levels: Annotated[tuple[_Level, ...], Items()] = (2, 3, 4)
    loss_levels: _Levels | None = None
    standardise: bool = False
    embedding_channels: _Channels | None = None
    rectify_embedding: bool = True
    clip_model: str = CLIP_MODEL
    captions: Annotated[tuple[str, ...], Items(at_least=1)] = ("{}",)
    prior_dim: Annotated[int, Range(1, 4096)] = 512
    prior_grid: Annotated[int, Range(1, 32)] = 1
    codebook_size: Annotated[int, Range(1, 16384)] = 16
    code_dim: _Channels = 256
    atrous_width: _Channels = 256
    dilations: Literal["map", "level"] = "map"
    codebook_init: Literal["data", "normal"] = "data"
    codebook_restart: bool = True
    fusion: Literal["proj", "concat"] = "proj"
    fusion_depth: _Depth = 2
    window: Annotated[int, Range(1, 64)] = 8
    head_dim: _Channels = 32
    modulator: bool = True
    decoder_blocks: _Depth | Annotated[tuple[_Depth, ...], Items(at_least=1, distinct=False)] = 3
    decoder_channels: _Channels | None = None
    norm: Literal["gn", "bn"] = "gn"
    cosine: Literal["local", "flat"] = "local"
    feature_loss_weight: _Weight = 1.0
    image_loss_weight: _Weight = 1.0
    codebook_loss_weight: _Weight = 1.0
    commitment_weight: _Weight = 1.0

    def __post_init__(self) -> None:
        """Check types and ranges, and sort the levels."""
        check_fields(self, "logical.")
        for name in ("levels", "vq_levels", "loss_levels"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(sorted(getattr(self, name))))
