"""Frozen features of training images, kept on disk between epochs."""

import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import Compose, Resize

from anomalib_npgmf.disk import reserve

logger = logging.getLogger(__name__)

LIMIT_BYTES = 16 << 30


def open_cache(folder: str | Path | None, dataset: Any) -> "FeatureCache | None":
    """A cache for the training images of an anomalib dataset; none without a folder or with augmentations.

    Args:
        folder: Where the cache goes, or ``None``.
        dataset: The training images.
    """
    if folder is None:
        return None
    if changes_images(getattr(dataset, "augmentations", None)):
        logger.warning("feature_cache is ignored: augmentations make every training image new in every epoch.")
        return None
    return FeatureCache(folder, len(dataset))


def changes_images(transform: Any) -> bool:
    """Whether a torchvision transform does more than resize; resizing gives the same image in every epoch.

    Example:
        >>> from torchvision.transforms.v2 import RandomInvert
        >>> changes_images(Compose([Resize(64)])), changes_images(Compose([RandomInvert(), Resize(64)]))
        (False, True)
    """
    if isinstance(transform, Compose):
        return any(changes_images(part) for part in transform.transforms)
    return transform is not None and not isinstance(transform, Resize)


class FeatureCache:
    """Memory-mapped features of as many images as fit, computed for each at most once.

    The file lives as long as the object, one per process, without a name where the system allows that: no
    features of other weights or images can be left from an earlier run. Values are kept in float32, without loss.

    Args:
        folder: Where the file goes; made if need be.
        images: How many images there are at most.
        limit: Bytes that the file may take; images beyond it are computed every time.

    Example:
        >>> computed = []
        >>> def encode(images):
        ...     computed.append(len(images))
        ...     return [2 * images]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = FeatureCache(folder, images=3)
        ...     _ = cache.features(["a", "b"], torch.ones(2, 3, 4, 4), encode)
        ...     features = cache.features(["b", "c"], torch.ones(2, 3, 4, 4), encode)
        ...     cache.close()
        >>> computed, features[0].unique().item()
        ([2, 1], 2.0)
    """

    def __init__(self, folder: str | Path, images: int, limit: int = LIMIT_BYTES) -> None:
        self._folder, self._images, self._limit = Path(folder), images, limit
        self._rows: dict[str, int] = {}
        self._shapes: list[torch.Size] = []
        self._layouts: list[torch.memory_format] = []  # memory format of each map, the same for cached features
        self._dtype = torch.float32
        self._file: IO[bytes] | None = None
        self._values: Any = None  # [capacity, numbers per image]

    def features(
        self, keys: Sequence[str], images: Tensor, compute: Callable[[Tensor], Sequence[Tensor]]
    ) -> list[Tensor]:
        """Features of a batch: cached ones are read, missing ones computed and, while there is room, cached.

        Args:
            keys: Paths of the B images.
            images: The images, [B, 3, H, W], of one size in all batches.
            compute: The frozen network; gives maps [b, C_k, H_k, W_k] of b images.

        Returns:
            Maps [B, C_k, H_k, W_k] on the device of the images.

        Raises:
            OSError: If the disk has no room for the file.
        """
        missing = [i for i, key in enumerate(keys) if key not in self._rows]
        computed = list(compute(images[missing])) if missing else []
        if missing and self._values is None:
            self._open(computed)
        rows = images.new_empty(len(keys), self._values.shape[1], dtype=torch.float32)
        for i, key in enumerate(keys):
            if key in self._rows:
                rows[i] = torch.from_numpy(self._values[self._rows[key]])
        if missing:
            rows[missing] = torch.cat([level.flatten(1).float() for level in computed], dim=1)
        for i in missing[: len(self._values) - len(self._rows)]:
            self._rows[keys[i]] = len(self._rows)
            self._values[self._rows[keys[i]]] = rows[i].cpu().numpy()
        parts = rows.split([shape.numel() for shape in self._shapes], dim=1)
        return [
            part.unflatten(1, shape).to(self._dtype, memory_format=layout)
            for part, shape, layout in zip(parts, self._shapes, self._layouts, strict=True)
        ]

    def _open(self, computed: Sequence[Tensor]) -> None:
        """Make the file once the size of an image's features is known."""
        self._shapes, self._dtype = [level.shape[1:] for level in computed], computed[0].dtype
        self._layouts = [
            torch.channels_last if level.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
            for level in computed
        ]
        numbers = sum(shape.numel() for shape in self._shapes)
        capacity = min(self._images, self._limit // (4 * numbers))
        size = 4 * numbers * capacity / 1e9
        logger.info("Feature cache in %s: %.2f GB for %d of %d images", self._folder, size, capacity, self._images)
        if capacity == 0:
            self._values = np.empty((0, numbers), np.float32)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  # closed by `close`
        reserve(self._file, 4 * numbers * capacity, self._folder)
        self._values = np.memmap(self._file, np.float32, "r+", shape=(capacity, numbers))

    def close(self) -> None:
        """Give the disk space back."""
        self._rows, self._values = {}, None
        if self._file is not None:
            self._file.close()
            self._file = None
