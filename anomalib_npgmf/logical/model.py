"""The logical branch M_LAD: reconstruction of features under normal priors (paper, section III-A)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anomalib_npgmf.distributed import broadcast_from_rank0
from anomalib_npgmf.logical.codebook import AtrousBlock, Codebook, dilations_of
from anomalib_npgmf.logical.config import LogicalConfig
from anomalib_npgmf.logical.decoder import Decoder, decoder_widths
from anomalib_npgmf.logical.embedding import OneClassEmbedding
from anomalib_npgmf.logical.loss import LogicalLoss, logical_map
from anomalib_npgmf.logical.text_prior import TEXT_DIM, TEXT_PRIORS, TextPrior, text_dim_of
from anomalib_npgmf.precision import at_least_single, in_single_precision, single_precision


class LogicalOutput(NamedTuple):
    """Result of a forward pass.

    Attributes:
        decoded: f_D^k, [B, C_k, H/2^k, W/2^k], finest first. If the image is not reconstructed, levels finer
            than the finest one of eq. 7 are left out.
        reconstruction: Reconstructed image, [B, 3, H, W]; ``None`` if it was not requested.
        codebook_loss: Eq. 2 summed over levels; zero in evaluation mode.
    """

    decoded: list[Tensor]
    reconstruction: Tensor | None
    codebook_loss: Tensor


class LogicalBranch(nn.Module):
    """One-class embedding, text prior, codebooks and fusion decoder over given encoder features.

    The frozen encoder is not part of it, so that another branch can share its pass.

    Args:
        levels: Levels of the encoder, ascending (level k has stride 2^k).
        channels: Channels of each level.
        rectified: Whether each level's features are non-negative.
        image_size: Height and width of the image that the encoder sees.
        text_prior: ``"clip"``, ``"learned"``, ``"random"`` or ``"none"``.
        text_dim: Length of the embedding; ``None`` for that of ``config.clip_model``, or 512 where no CLIP is used.
        config: Architecture and loss.

    Raises:
        ValueError: If windows cannot tile the maps, a level is unknown, or the sides of the image are no multiples of
            four times the stride of the deepest level.

    Example:
        >>> branch = LogicalBranch((3, 4, 5), (8, 16, 32), (True,) * 3, (128, 128), "none",
        ...                        config=LogicalConfig(vq_levels=(4,), code_dim=8, atrous_width=8))
        >>> features = [torch.rand(1, c, 128 >> k, 128 >> k) for k, c in ((3, 8), (4, 16), (5, 32))]
        >>> branch.anomaly_map(features, branch.eval()(features)).shape
        torch.Size([1, 1, 128, 128])
    """

    def __init__(
        self,
        levels: Sequence[int],
        channels: Sequence[int],
        rectified: Sequence[bool],
        image_size: tuple[int, int],
        text_prior: str,
        text_dim: int | None = None,
        config: LogicalConfig | None = None,
    ) -> None:
        super().__init__()
        config = config or LogicalConfig()
        if text_prior not in TEXT_PRIORS:
            msg = f"text_prior must be one of {TEXT_PRIORS}, not {text_prior!r}."
            raise ValueError(msg)
        unit = 4 << levels[-1]  # the embedding halves the deepest map twice
        if image_size[0] % unit or image_size[1] % unit:
            msg = (
                f"The logical branch takes images whose sides are multiples of {unit} (four times the stride of the "
                f"deepest level), not {image_size[0]} x {image_size[1]}; 128, 256 and 512 work."
            )
            raise ValueError(msg)
        self.config = config
        self.levels = tuple(levels)
        self.image_size = image_size
        self.vq_levels = config.vq_levels
        for name, chosen in (("vq_levels", config.vq_levels), ("loss_levels", config.loss_levels or ())):
            if unknown := [level for level in chosen if level not in self.levels]:
                msg = f"{name} {unknown} are not among the encoder's levels {self.levels}."
                raise ValueError(msg)
        scored = config.loss_levels or self.levels
        self._scored = [i for i, level in enumerate(self.levels) if level in scored]
        width = config.embedding_channels or channels[-1]
        widths = decoder_widths(channels, config.decoder_channels)
        self.embedding = OneClassEmbedding(
            channels[-1], width, config.norm, widths[-1], rectified=config.rectify_embedding
        )
        text_dim = text_dim or (text_dim_of(config.clip_model) if text_prior == "clip" else TEXT_DIM)
        self.text_prior = (
            TextPrior(text_prior, config.prior_dim, config.prior_grid, text_dim) if text_prior != "none" else None
        )
        self.atrous = nn.ModuleDict()
        self.codebooks = nn.ModuleDict()
        for level in self.vq_levels:
            dilations = dilations_of(level, image_size, config.dilations)
            count, narrow = (of[self.levels.index(level)] for of in (channels, widths))
            block: nn.Module = AtrousBlock(narrow, config.atrous_width, config.code_dim, dilations, config.norm)
            if narrow < count:
                block = nn.Sequential(nn.Conv2d(count, narrow, 1), block)
            self.atrous[str(level)] = block
            self.codebooks[str(level)] = Codebook(config.codebook_size, config.code_dim, config.commitment_weight)
        for level, count in zip(self.levels, channels, strict=True):
            self.register_buffer(f"mean_{level}", torch.zeros(1, count, 1, 1))
            self.register_buffer(f"std_{level}", torch.ones(1, count, 1, 1))
        self.decoder = Decoder(
            self.levels,
            channels,
            [False] * len(self.levels) if config.standardise else rectified,
            width,
            image_size,
            config.prior_dim if self.text_prior is not None else 0,
            self.vq_levels,
            config,
        )
        self.loss = LogicalLoss(config)
        self._renew = False  # whether an epoch has ended, so that the next training pass renews the codes
        self._generator = torch.Generator("cpu").manual_seed(0)

    def standardise(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Normalise each channel to mean 0 and standard deviation 1 over training images, if ``config.standardise``.

        All other methods but `initialise` expect the result.

        Args:
            features: f_E^k of the backbone, [B, C_k, H/2^k, W/2^k], finest first.
        """
        if not self.config.standardise:
            return list(features)
        return [
            (feature - getattr(self, f"mean_{level}")) / getattr(self, f"std_{level}")
            for level, feature in zip(self.levels, features, strict=True)
        ]

    def pre_codes(self, features: Sequence[Tensor]) -> dict[int, Tensor]:
        """z^k = A^k(f_E^k) for each level with a codebook, [B, d_q, H_k, W_k]."""
        found = [self.atrous[str(k)](features[self.levels.index(k)]) for k in self.vq_levels]
        return dict(zip(self.vq_levels, at_least_single(found), strict=True))

    def code_maps(self, features: Sequence[Tensor]) -> dict[int, Tensor]:
        """Index of the code at each position for each level with a codebook, integers [B, H_k, W_k]."""
        return {k: self._codebook(k).indices(z) for k, z in self.pre_codes(features).items()}

    def _codebook(self, level: int) -> Codebook:
        book = self.codebooks[str(level)]
        assert isinstance(book, Codebook)
        return book

    def forward(
        self, features: Sequence[Tensor], *, reconstruct: bool = True, embedding: Tensor | None = None
    ) -> LogicalOutput:
        """Reconstruct the features.

        Args:
            features: f_E^k, [B, C_k, H/2^k, W/2^k], finest first.
            reconstruct: Whether to reconstruct the image as well, and the levels that only the image needs.
            embedding: Text embedding of each image, [B, d], for images of several categories; ``None`` uses the
                model's own.

        Returns:
            Reconstructed features and image, and the codebook loss.
        """
        codes: dict[int, Tensor] = {}
        loss = features[0].new_zeros(())
        renew = self.training and self._renew
        for level, z in self.pre_codes(features).items():
            if renew:
                self._codebook(level).renew(z.detach(), self._generator, restart=self.config.codebook_restart)
            codes[level], level_loss = self._codebook(level)(z)
            loss = loss + level_loss
        if renew:
            self._renew = False
        prior = self.text_prior(embedding) if self.text_prior is not None else None
        finest = None if reconstruct else self.levels[self._scored[0]]
        decoded, image = self.decoder(self.embedding(features[-1]), prior, codes, finest)
        rebuilt = None if image is None else at_least_single([image])[0]
        return LogicalOutput(at_least_single(decoded), rebuilt, loss)

    def losses(self, features: Sequence[Tensor], image: Tensor, embedding: Tensor | None = None) -> dict[str, Tensor]:
        """All losses of one batch (eq. 6).

        Args:
            features: See `forward`.
            image: The normalised image that the features came from, [B, 3, H, W].
            embedding: See `forward`.

        Returns:
            ``loss`` and its parts ``feature``, ``image`` and ``codebook``, scalars.
        """
        out = self(features, embedding=embedding)
        assert out.reconstruction is not None
        out_of = [out.decoded[i] for i in self._scored]
        into = [features[i] for i in self._scored]
        with single_precision():
            result: dict[str, Tensor] = self.loss(into, out_of, image, out.reconstruction, out.codebook_loss)
        return result

    @in_single_precision
    def anomaly_map(self, features: Sequence[Tensor], output: LogicalOutput) -> Tensor:
        """S_log of eq. 7, [B, 1, H, W], from the features given to `forward` and what it returned."""
        left_out = len(self.levels) - len(output.decoded)
        decoder = [output.decoded[i - left_out] for i in self._scored]
        return logical_map([features[i] for i in self._scored], decoder, self.image_size)

    @torch.no_grad()
    def initialise(self, features: Sequence[Tensor]) -> None:
        """Prepare for training: channel statistics, and codes at k-means centres (with ``codebook_init="data"``).

        In a distributed run every process must call this; all get the result of rank 0.

        Args:
            features: f_E^k of some training images, not standardised, [B, C_k, H/2^k, W/2^k], finest first.
        """
        for level, feature in zip(self.levels, features, strict=True):
            std, mean = torch.std_mean(feature, dim=(0, 2, 3), keepdim=True)
            getattr(self, f"mean_{level}").copy_(mean)
            getattr(self, f"std_{level}").copy_(std.clamp(min=1e-6))
        if self.config.codebook_init == "data":
            for level, z in self.pre_codes(self.standardise(features)).items():
                self._codebook(level).fit(z)
        statistics = [getattr(self, f"{name}_{level}") for level in self.levels for name in ("mean", "std")]
        broadcast_from_rank0([*statistics, *(self._codebook(level).codes for level in self.vq_levels)])

    def codebook_statistics(self) -> dict[str, float]:
        """Perplexity and number of dead codes per level since the last reset.

        Marks the end of an epoch: after this call the next training pass replaces dead codes and resets the counts.
        """
        statistics: dict[str, float] = {}
        for level in self.vq_levels:
            book = self._codebook(level)
            statistics[f"perplexity_{level}"] = book.perplexity().item()
            statistics[f"dead_codes_{level}"] = float(book.dead().sum())
        self._renew = True
        return statistics

    def training_state(self) -> dict[str, Any]:
        """Usage of the codes, random state and renewal flag: what exact resuming needs beside the state dict."""
        usage = {str(level): self._codebook(level).usage.cpu() for level in self.vq_levels}
        return {"renew": self._renew, "generator": self._generator.get_state(), "usage": usage}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take what `training_state` returned."""
        self._renew = state["renew"]
        self._generator.set_state(state["generator"].cpu())
        for level in self.vq_levels:
            self._codebook(level).usage.copy_(state["usage"][str(level)])
