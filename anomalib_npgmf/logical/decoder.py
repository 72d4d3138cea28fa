"""Decoder that reconstructs every level of the encoder and the image (paper, section III-A4)."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from anomalib_npgmf.logical.blocks import Bottleneck
from anomalib_npgmf.logical.config import LogicalConfig
from anomalib_npgmf.logical.fusion import Fusion


def decoder_widths(channels: Sequence[int], limit: int | None) -> list[int]:
    """Channels that the decoder uses at each level.

    Args:
        channels: Channels of each level of the encoder.
        limit: Maximum number of channels; ``None`` for no limit.

    Example:
        >>> decoder_widths([64, 256, 1024], 256)
        [64, 256, 256]
    """
    return [min(count, limit or count) for count in channels]


def decoding_block(
    in_channels: int, out_channels: int, doublings: int, blocks: int, norm: str, *, rectify: bool
) -> nn.Sequential:
    """``doublings`` upsampling bottlenecks, then ordinary ones; at least ``blocks`` in total.

    Args:
        in_channels: Channels of the fused feature.
        out_channels: Channels of the result.
        doublings: Number of times that the resolution doubles.
        blocks: Number of bottlenecks.
        norm: See `anomalib_npgmf.logical.blocks.make_norm`.
        rectify: Whether the last bottleneck ends in a ReLU. It must not where the result is compared with features
            that may be negative.
    """
    count = max(blocks, doublings)
    chain: list[nn.Module] = [
        Bottleneck(
            in_channels if i == 0 else out_channels,
            out_channels,
            norm,
            up=i < doublings,
            rectify=rectify or i < count - 1,
        )
        for i in range(count)
    ]
    return nn.Sequential(*chain)


class Decoder(nn.Module):
    """Fusion and decoding blocks from the one-class embedding up to the finest level, then an image head.

    ``h = Fuse([OCE ; g])``, ``f_D^top = D(h)``, then ``f_D^(k-1) = D(Fuse([f_D^k ; g ; z_q^k]))`` down to the finest
    level. Where ``config.decoder_channels`` makes a level narrower than the encoder's, the recursion continues with the
    narrow feature, and f_D^k is a 1x1 convolution of it; a level that is not in eq. 4 stays narrow.

    Args:
        levels: Levels of the encoder, ascending.
        channels: Channels of each level.
        rectified: Whether each level's features are non-negative.
        embedding_channels: Channels of the one-class embedding.
        image_size: Height and width of the image.
        prior_dim: Channels of the global context; 0 for none.
        vq_levels: Levels with a codebook.
        config: Remaining settings.

    Raises:
        ValueError: If ``config.decoder_blocks`` does not have one number per level, or windows cannot tile a map.
    """

    def __init__(
        self,
        levels: Sequence[int],
        channels: Sequence[int],
        rectified: Sequence[bool],
        embedding_channels: int,
        image_size: tuple[int, int],
        prior_dim: int,
        vq_levels: Sequence[int],
        config: LogicalConfig,
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        top = self.levels[-1]
        widths = decoder_widths(channels, config.decoder_channels)
        each = config.decoder_blocks
        blocks = (each,) * len(self.levels) if isinstance(each, int) else each
        if len(blocks) != len(self.levels):
            msg = f"decoder_blocks must be one number, or one for each of the {len(self.levels)} levels, not {each}."
            raise ValueError(msg)
        # Two stride-2 steps of the embedding lie between its map and the deepest level.
        inputs = [(embedding_channels, top + 2, top, 0)]
        for position in range(len(self.levels) - 1, 0, -1):
            level = self.levels[position]
            code_dim = config.code_dim if level in vq_levels else 0
            inputs.append((widths[position], level, self.levels[position - 1], code_dim))
        self.fusions = nn.ModuleList()
        self.stages = nn.ModuleList()
        self.outputs = nn.ModuleList()
        for in_channels, level, target, code_dim in inputs:
            fusion = Fusion(
                in_channels,
                prior_dim,
                code_dim,
                (image_size[0] >> level, image_size[1] >> level),
                mode=config.fusion,
                depth=config.fusion_depth,
                window=config.window,
                head_dim=config.head_dim,
                modulator=config.modulator,
            )
            self.fusions.append(fusion)
            position = self.levels.index(target)
            width, count = widths[position], channels[position]
            narrow = width < count and (config.loss_levels is None or target in config.loss_levels)
            self.stages.append(
                decoding_block(
                    fusion.out_channels,
                    width,
                    level - target,
                    blocks[position],
                    config.norm,
                    rectify=width < count or rectified[position],
                )
            )
            output: nn.Module = nn.Identity()
            if narrow:
                widen = nn.Conv2d(width, count, 1)
                output = nn.Sequential(widen, nn.ReLU(inplace=True)) if rectified[position] else widen
            self.outputs.append(output)
        # Sub-pixel convolution: the convolutions run at the finest level, cheaper than at the size of the image.
        width, scale = max(widths[0], 32), 2 ** self.levels[0]
        self.head = nn.Sequential(
            nn.Conv2d(widths[0], width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 3 * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
        )

    def forward(
        self, embedding: Tensor, prior: Tensor | None, codes: Mapping[int, Tensor], finest: int | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Reconstruct the encoder's features and the image.

        Args:
            embedding: One-class embedding, [B, C_o, H/2^(top+2), W/2^(top+2)].
            prior: Global context, [1 or B, d_T, s0, s0], or ``None``.
            codes: Quantised features by level, [B, d_q, H/2^k, W/2^k].
            finest: Level at which to stop; ``None`` continues to the image.

        Returns:
            f_D^k for every level down to ``finest``, finest first, in the shape of the encoder's map if eq. 4 compares
            it; and the reconstructed image [B, 3, H, W], ``None`` if ``finest`` is given.
        """
        decoded: list[Tensor] = []
        x = embedding
        for i, (fusion, stage, output) in enumerate(zip(self.fusions, self.stages, self.outputs, strict=True)):
            level_codes = codes.get(self.levels[-i]) if i else None
            x = stage(fusion(x, prior, level_codes))
            decoded.insert(0, output(x))
            if self.levels[-1 - i] == finest:
                return decoded, None
        return decoded, self.head(x)
