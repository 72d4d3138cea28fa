"""Codebooks of normal features: an atrous block, then vector quantisation (paper, section III-A3, eqs. 1 and 2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn

from anomalib_npgmf.distributed import rank_offset, sum_over_processes
from anomalib_npgmf.logical.blocks import make_norm
from anomalib_npgmf.precision import in_single_precision

_MAX_VECTORS = 20_000  # sample size of k-means; a larger one changes the centres less than another seed does


def dilations_of(level: int, image_size: tuple[int, int], rule: str) -> tuple[int, ...]:
    """Dilations of the atrous block of a level.

    Args:
        level: The level, of stride 2^level.
        image_size: Height and width of the image.
        rule: ``"map"`` or ``"level"``, see `anomalib_npgmf.logical.config.LogicalConfig`.

    Example:
        >>> dilations_of(3, (256, 256), "map"), dilations_of(3, (128, 128), "map"), dilations_of(3, (128, 128), "level")
        ((6, 12, 18), (2, 4, 6), (6, 12, 18))
    """
    # Where a dilation exceeds the map, all taps of a kernel but the centre see padding.
    small = level >= 4 if rule == "level" else min(image_size) >> level < 32
    return (2, 4, 6) if small else (6, 12, 18)


class AtrousBlock(nn.Module):
    """Atrous spatial pyramid pooling of an encoder level (DeepLab); its last layer has no ReLU: codes may be negative.

    Args:
        in_channels: Channels of the level.
        width: Channels of each parallel branch.
        out_channels: Channels of the result, the dimension of a code.
        dilations: Dilation of each 3x3 branch; where it reaches the side of the map, all taps but the
            centre see padding.
        norm: See `make_norm`. The pooled branch has none: its map is 1 x 1.

    Example:
        >>> AtrousBlock(8, 16, 4, (2, 4), "gn")(torch.zeros(2, 8, 16, 16)).shape
        torch.Size([2, 4, 16, 16])
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, dilations: Sequence[int], norm: str) -> None:
        super().__init__()

        def branch(size: int, dilation: int) -> nn.Sequential:
            padding = dilation * (size // 2)
            return nn.Sequential(
                nn.Conv2d(in_channels, width, size, padding=padding, dilation=dilation, bias=False),
                make_norm(norm, width),
                nn.ReLU(inplace=True),
            )

        self.branches = nn.ModuleList([branch(1, 1), *(branch(3, dilation) for dilation in dilations)])
        self.pooled = nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.ReLU(inplace=True))
        # One 1x1 convolution of the concatenation, written as a sum so that the pooled branch is not expanded.
        self.project = nn.Conv2d(width * len(self.branches), out_channels, 1)
        self.project_pooled = nn.Conv2d(width, out_channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, C, H, W] to z, [B, d_q, H, W]."""
        pooled = self.project_pooled(self.pooled(features.mean(dim=(-2, -1), keepdim=True)))
        out: Tensor = self.project(torch.cat([branch(features) for branch in self.branches], dim=1)) + pooled
        return out


class Codebook(nn.Module):
    """K codes that represent the normal features of one level, trained by gradient descent (VQ-VAE).

    Args:
        size: Number of codes K.
        dim: Channels d_q of a code.
        commitment: Weight beta of the commitment term in eq. 2.

    Example:
        >>> book = Codebook(4, 2)
        >>> with torch.no_grad():
        ...     _ = book.codes.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        >>> z = torch.tensor([0.9, 0.2]).view(1, 2, 1, 1)
        >>> book.indices(z).item()
        1
        >>> quantised, loss = book.eval()(z)
        >>> quantised.flatten().tolist()
        [1.0, 0.0]
    """

    usage: Tensor

    def __init__(self, size: int, dim: int, commitment: float = 1.0) -> None:
        super().__init__()
        self.commitment = commitment
        self.codes = nn.Parameter(torch.randn(size, dim))
        # Number of vectors assigned to each code since the last reset, summed over processes; not in the state dict,
        # but checkpoints have it, see `LogicalBranch.training_state`.
        self.register_buffer("usage", torch.zeros(size), persistent=False)

    @in_single_precision
    def indices(self, z: Tensor) -> Tensor:
        """Index of the nearest code (eq. 1).

        Args:
            z: Features, [B, d_q, H, W].

        Returns:
            Integers, [B, H, W].
        """
        # argmin_n ||z - c_n||^2 = argmin_n ||c_n||^2 - 2 <z, c_n>: a 1x1 convolution, which every exporter supports.
        scores = F.conv2d(z, -2 * self.codes[:, :, None, None]) + self.codes.square().sum(1)[:, None, None]
        return scores.argmin(dim=1)

    @in_single_precision
    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise.

        Args:
            z: Features, [B, d_q, H, W].

        Returns:
            The quantised features [B, d_q, H, W] (in training with the gradient of ``z``, the straight-through
            estimator) and the scalar loss of eq. 2.
        """
        indices = self.indices(z)
        quantised = F.embedding(indices, self.codes).permute(0, 3, 1, 2)
        if not self.training:
            return quantised, z.new_zeros(())
        # Eq. 2: ||sg(z) - q||^2 + beta ||z - sg(q)||^2, as means over the elements.
        loss = F.mse_loss(quantised, z.detach()) + self.commitment * F.mse_loss(z, quantised.detach())
        with torch.no_grad():
            # Not bincount: its data-dependent shape breaks the graph of torch.compile.
            chosen = indices.flatten()
            counts = torch.zeros_like(self.usage).index_add_(0, chosen, torch.ones_like(chosen, dtype=self.usage.dtype))
            self.usage += sum_over_processes(counts)
        return z + (quantised - z).detach(), loss

    def perplexity(self) -> Tensor:
        """Effective number of codes in use since the last reset: exp of the entropy of ``usage``."""
        share = self.usage / self.usage.sum().clamp(min=1)
        return torch.special.entr(share).sum().exp()

    def dead(self) -> Tensor:
        """Mask [K] of the codes chosen by fewer than one in a thousand vectors since the last reset."""
        return self.usage < 1e-3 * self.usage.sum()

    def reset_usage(self) -> None:
        """Reset the counts of `usage`."""
        self.usage.zero_()

    @torch.no_grad()
    def fit(self, z: Tensor, iterations: int = 20, seed: int = 0) -> None:
        """Set the codes to k-means centres of ``z`` (k-means++ initialisation); deterministic for a seed.

        Args:
            z: Features, [B, d_q, H, W]. If there are fewer distinct vectors than codes, they are used as codes,
                repeated.
            iterations: Maximum number of iterations of Lloyd's algorithm.
            seed: Random seed.
        """
        vectors = z.permute(0, 2, 3, 1).flatten(0, 2)
        generator = torch.Generator("cpu").manual_seed(seed)
        sample = torch.randperm(len(vectors), generator=generator, device="cpu")[:_MAX_VECTORS]
        # float64, because scikit-learn's threads add in no fixed order: in float32 the result would vary between runs.
        points = vectors[sample.to(vectors.device)].double().cpu()
        means, size = points.unique(dim=0), len(self.codes)
        if len(means) > size:
            kmeans = KMeans(size, n_init=1, max_iter=iterations, random_state=seed).fit(points.numpy())
            means = torch.from_numpy(kmeans.cluster_centers_)
        self.codes.copy_(means[torch.arange(size, device=means.device) % len(means)])
        self.reset_usage()

    @torch.no_grad()
    def renew(self, z: Tensor, generator: torch.Generator, *, restart: bool) -> int:
        """Reset the usage counts and, if ``restart``, first replace dead codes by random vectors of ``z``.

        In a distributed run vectors of all processes are drawn, and all processes get the same codes.

        Args:
            z: Features, [B, d_q, H, W].
            generator: Random generator on the CPU, in the same state in every process.
            restart: Whether to replace dead codes.

        Returns:
            Number of replaced codes.
        """
        dead = self.dead().nonzero().flatten().tolist() if restart else []
        if dead:
            points = z.permute(0, 2, 3, 1).flatten(0, 2)
            start, total = rank_offset(len(points))
            rows = torch.randint(total, (len(dead),), generator=generator, device="cpu")
            rows = (rows - start).to(points.device)
            own = (rows >= 0) & (rows < len(points))
            chosen = self.codes.new_zeros(len(dead), self.codes.shape[1])
            chosen[own] = points[rows[own]].to(chosen)
            self.codes[dead] = sum_over_processes(chosen)
        self.reset_usage()
        return len(dead)
