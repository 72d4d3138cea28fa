"""Grey images of 16 bits: anomalib's reader cuts every value above 255 to white."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from PIL import Image
from torchvision.transforms.v2.functional import resize

_SUFFIXES = {".png", ".tif", ".tiff", ".pgm"}
_MODES = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
_WHITE = 65535.0


def restore_deep_images(batch: Any) -> Any:
    """Replace the images of a batch whose files are grey and deep by what the files hold, 65535 being white.

    They are resized to the size of the batch; random augmentations of the data set do not apply to them.

    Args:
        batch: An anomalib batch with ``image`` [B, 3, H, W] in [0, 1] and B paths; one without paths stays as it is.

    Returns:
        The batch.

    Example:
        >>> restore_deep_images({"image_path": None})
        {'image_path': None}
    """
    paths = getattr(batch, "image_path", None)
    images = getattr(batch, "image", None)
    if not paths or not isinstance(images, torch.Tensor) or images.ndim != 4:
        return batch
    for index, path in enumerate(paths):
        if not _is_deep(str(path)):
            continue
        with Image.open(path) as file:
            grey = torch.from_numpy(np.asarray(file).astype(np.float32) / _WHITE)
        deep = grey.clamp(0, 1).expand(1, 3, *grey.shape)
        images[index] = resize(deep, list(images.shape[-2:]), antialias=True)[0].to(images)
    return batch


@lru_cache(maxsize=100_000)
def _is_deep(path: str) -> bool:
    """Whether the file is grey and deep; looked up once, not in every epoch."""
    if Path(path).suffix.lower() not in _SUFFIXES:
        return False
    with Image.open(path) as file:
        return file.mode in _MODES


class DeepImages(Callback):
    """Calls `restore_deep_images` before any other callback sees a batch."""

    def on_train_batch_start(self, *arguments: Any, **_options: Any) -> None:
        """Restore the batch, the third argument of this and the following hooks."""
        restore_deep_images(arguments[2])

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start
