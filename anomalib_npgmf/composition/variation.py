"""Mean and shrunk covariance of the code histograms of normal images, and the Mahalanobis distance from them."""

from __future__ import annotations

import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

_MOST_FOLDS = 60


class NormalVariation(nn.Module):
    """Gaussians over the code histograms of normal images, one for each codebook.

    The covariance is shrunk as in Ledoit and Wolf (J. Multivar. Anal. 88, 2004), because training images are few
    compared with the length of a histogram. Its inverse is scaled so that training images have a mean squared distance
    of one: then all codebooks have the same weight in a mean.

    Args:
        books: Number R of codebooks.
        size: Length L of a histogram: codes per codebook times cells.

    Attributes:
        mean: Mean histogram, [R, L].
        precision: Scaled inverse covariance, [R, L, L].

    Example:
        >>> variation = NormalVariation(1, 2)
        >>> generator = torch.Generator().manual_seed(0)
        >>> normal = torch.randn(200, 1, 2, generator=generator) * torch.tensor([1.0, 0.1])
        >>> variation.fit(normal)
        >>> difference, gradient = variation(normal)
        >>> round((difference * gradient).sum(-1).mean().item(), 3)
        1.0
        >>> difference, gradient = variation(torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]]))
        >>> squared = (difference * gradient).sum(-1).flatten()
        >>> bool(squared[0] > 20 * squared[1])
        True
    """

    mean: Tensor
    precision: Tensor

    def __init__(self, books: int, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(books, size))
        self.register_buffer("precision", torch.zeros(books, size, size))

    def fit(self, vectors: Tensor) -> None:
        """Fit to normal images.

        Args:
            vectors: Their code histograms, [N, R, L].

        Raises:
            ValueError: If there are fewer than two images.
        """
        if len(vectors) < 2:
            msg = f"The variation of normal images cannot be learnt from {len(vectors)} image(s); give at least two."
            raise ValueError(msg)
        for book, block in enumerate(vectors.double().cpu().unbind(dim=1)):
            model = LedoitWolf().fit(block.numpy())
            squared = model.mahalanobis(block.numpy()).mean()
            self.mean[book] = torch.from_numpy(model.location_)
            self.precision[book] = torch.from_numpy(model.precision_ / max(squared, 1e-12))

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Difference from the mean, and half the gradient of the squared Mahalanobis distance.

        Args:
            vectors: [B, R, L].

        Returns:
            ``x = v - mean`` and ``P x``, both [B, R, L]; the sum of their product over L is the squared distance.
        """
        difference = vectors - self.mean
        gradient = (self.precision @ difference.unsqueeze(-1)).squeeze(-1)
        return difference, gradient


def cross_validated(vectors: Tensor) -> Tensor:
    """Squared distance of each normal image from mean and covariance of the others (cross-validation).

    Args:
        vectors: Code histograms, [N, R, L]. Of more than sixty images, several are left out at a time.

    Returns:
        Mean over the codebooks, [N]; zero for less than three images.

    Example:
        >>> vectors = torch.randn(200, 1, 2, generator=torch.Generator().manual_seed(0))
        >>> bool(0.9 < cross_validated(vectors).mean() < 1.2)
        True
    """
    count, books, size = vectors.shape
    squared = vectors.new_zeros(count)
    if count < 3:
        return squared
    with vectors.device:
        variation = NormalVariation(books, size).to(vectors)
    folds = min(count, _MOST_FOLDS)
    fold_of = torch.arange(count, device=vectors.device) % folds
    for fold in range(folds):
        chosen = fold_of == fold
        variation.fit(vectors[~chosen])
        difference, gradient = variation(vectors[chosen])
        squared[chosen] = (difference * gradient).sum(dim=2).mean(dim=1)
    return squared
