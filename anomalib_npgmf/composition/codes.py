"""Soft codes of frozen features: to which of a few clusters of normal patches each patch belongs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn

_MAX_PATCHES = 20_000  # sample size of k-means; larger samples change the centres less than a new seed
_RIDGE = 0.2  # times the mean variance: added to each eigenvalue of the covariance before whitening, to limit noise


class SoftCodes(nn.Module):
    """Several codebooks for one feature level, each the k-means centres of normal patches.

    Soft assignment: patch x belongs to code c with the posterior probability of a mixture of equally weighted Gaussians
    with means c and covariance ``(t / 2) I``, ``a_c(x) = softmax_c(-|x - c|^2 / t)``. The temperature t is the median
    squared distance of a normal patch to its nearest code. Unlike with hard assignment, the histogram does not jump
    when a patch lies between two codes.
    Since ``|x|^2`` cancels in the softmax, all codebooks together are one 1x1 convolution.

    Args:
        channels: Channels C of the features.
        size: Codes K per codebook.
        books: Number R of codebooks.
        whiten: Whether to whiten features (similar variance in all directions), so that small differences, such as
            colour, count.

    Attributes:
        weight: ``2 c / t``, [R, K, C].
        bias: ``-|c|^2 / t``, [R, K].

    Example:
        >>> codes = SoftCodes(2, size=2, books=1)
        >>> codes.fit(torch.tensor([[0.0, 0.0], [0.0, 0.2], [4.0, 4.0], [4.0, 4.2]]))
        >>> assignment = codes(torch.tensor([[0.0, 4.0], [0.0, 4.0]]).view(1, 2, 1, 2))
        >>> assignment.shape, assignment.amax(dim=2).flatten().tolist()
        (torch.Size([1, 1, 2, 1, 2]), [1.0, 1.0])
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, channels: int, size: int, books: int, *, whiten: bool = False) -> None:
        super().__init__()
        self._whiten = whiten
        self.register_buffer("weight", torch.zeros(books, size, channels))
        self.register_buffer("bias", torch.zeros(books, size))

    def fit(self, patches: Tensor, projection: Tensor | None = None) -> None:
        """Fit the codebooks; deterministic in the patches and their order.

        Args:
            patches: Normal patches, [N, C], or [N, d] in the coordinates of ``projection``.
            projection: Orthonormal directions [C, d] onto which the patches were projected, ``None`` if they were not.

        Raises:
            ValueError: If there are fewer patches than codes.
        """
        books, size, _ = self.weight.shape
        if len(patches) < size:
            names = "codebook_sizes or grid_codebook_sizes"
            msg = f"{size} codes need as many patches, but there are {len(patches)}; lower {names}."
            raise ValueError(msg)
        # <A x, c> = <x, A' c>: whitening and projection are folded into the codes, so that `forward` needs neither.
        whitening = _whitening(_sample(patches, 0)) if self._whiten else None
        for book in range(books):
            sample = _sample(patches, book)
            if whitening is not None:
                mean, back = whitening
                sample = (sample - mean) @ back
            # In float64, for which the result does not depend on the order in which threads add.
            means = KMeans(size, n_init=1, max_iter=50, random_state=book).fit(sample.double().numpy()).cluster_centers_
            centres = torch.from_numpy(means).to(sample)
            nearest = torch.cdist(sample, centres).amin(dim=1).square()
            temperature = nearest.median().clamp_min(torch.finfo(torch.float32).eps)
            bias = -centres.square().sum(dim=1)
            if whitening is not None:
                mean, back = whitening
                centres = centres @ back
                bias = bias - 2 * centres @ mean
            self.bias[book] = bias / temperature
            weight = 2 * centres / temperature
            self.weight[book] = weight if projection is None else weight @ projection.to(weight).T

    def forward(self, features: Tensor) -> Tensor:
        """Assign every patch to the codes.

        Args:
            features: [B, C, H, W].

        Returns:
            Memberships, [B, R, K, H, W], that add up to one over the codes of each codebook.
        """
        books, size, channels = self.weight.shape
        kernel = self.weight.reshape(books * size, channels, 1, 1)
        logits = F.conv2d(features.float(), kernel, self.bias.flatten())
        return logits.unflatten(1, (books, size)).softmax(dim=2)


def _sample(patches: Tensor, seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.randperm(len(patches), generator=generator, device="cpu")[:_MAX_PATCHES]
    return patches[order.to(patches.device)].float().cpu()


def _whitening(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C] and regularised inverse square root [C, C] of the covariance."""
    covariance, mean = torch.atleast_2d(torch.cov(sample.double().T)), sample.mean(dim=0)
    variances, directions = torch.linalg.eigh(covariance)
    scale = (variances.clamp_min(0) + _RIDGE * variances.mean().clamp_min(1e-12)).rsqrt()
    return mean, (directions * scale @ directions.T).to(sample)
