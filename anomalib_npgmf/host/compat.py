"""Workarounds for the host, anomalib 2.7 and Lightning 2.6. Check this list when you support a new version.

| what the host does | since when, issue | workaround |
|---|---|---|
| anomalib has no entry points for models | 2.0 to 2.7, no issue known | `anomalib_npgmf.host.plugin` |
| ``trainer_arguments`` overrides what the user gave; Lightning replaces missing epochs with 1000 before any hook | \
anomalib#1968, anomalib#2871 | `set_default_epochs` |
| no validation set: ``val_dataloader`` fails | anomalib#1629 | `limit_validation` |
| a module without gradients cannot be trained with DDP; all buffers are sent before every step | lightning#17556 | \
`adapt_strategy` |
| 16-bit grey images are clipped at 255; the orientation that a camera notes in a file is ignored | 2.0 to 2.7, no \
issue known | `restore_pictures`, `RestorePictures` |
| ``Engine.train`` tests the checkpoint that it resumed from; ``Engine.export`` ignores the model's arguments and \
writes to ``results``; a failed run leaves its folder | 2.0 to 2.7, no issue known | `anomalib_npgmf.host.engine` |
| data modules resize to the size of the model before its checkpoint is loaded | 2.7, no issue known | \
`anomalib_npgmf.host.rebuild.resize_data` |
| pictures of images in folders of the same name overwrite each other | 2.0 to 2.7, no issue known | \
`anomalib_npgmf.host.places` |
| checkpoints are written into the system's temporary folder and moved, which is copying between file systems: a kill \
meanwhile leaves half a file | Lightning 2.6, no issue known | `anomalib_npgmf.host.checkpoint_file` |
| exported files resize without antialiasing | 2.0 to 2.7, no issue known | `keep_antialiasing` |
| the post-processor calibrates on validation images, which may be test images | by design | \
`anomalib_npgmf.host.post_processor` |
| INFO of every library, twice; warnings that no user can act on | 2.0 to 2.7 | `anomalib_npgmf.host.quiet` |
| ``MVTecLOCO``, ``MVTecAD2`` and ``Tabular`` need pandas 2 | 2.7, no issue known | the bound in pyproject.toml |
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.transform import get_exportable_transform
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn
from torchvision.transforms.v2 import Compose, InterpolationMode, Resize, Transform
from torchvision.transforms.v2.functional import resize

from anomalib_npgmf.backbone.resize import AntialiasedResize
from anomalib_npgmf.distributed import broadcast_from_rank0

# ------------------------------------------------------------------ epochs, validation, strategy


def set_default_epochs(trainer: Trainer, epochs: int) -> None:
    """Limit a fit to a number of epochs, unless the user limits it by epochs, steps or time.

    Lightning replaces a missing number with 1000 before it calls any hook of the model, and that 1000 cannot be told
    from a user's. So this has to be called before, when the trainer is attached to the model.

    Args:
        trainer: The trainer, before its fit starts.
        epochs: The model's number of epochs; a larger ``min_epochs`` of the user takes precedence.

    Example:
        >>> without, given = Trainer(logger=False), Trainer(logger=False, max_epochs=7)
        >>> for trainer in (without, given):
        ...     set_default_epochs(trainer, 50)
        >>> without.max_epochs, given.max_epochs
        (50, 7)
    """
    loop = trainer.fit_loop
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning's connector sets it
    timed = any(isinstance(callback, Timer) for callback in callbacks)  # the trainer's max_time is one
    if loop.max_epochs is None and loop.max_steps == -1 and not timed:
        loop.max_epochs = max(epochs, loop.min_epochs or 0)


def limit_validation(trainer: Trainer) -> None:
    """Skip the sanity check, which would predict before there is a memory bank, and a missing validation set.

    Args:
        trainer: The trainer, during ``setup``.
    """
    trainer.num_sanity_val_steps = 0
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is not None and getattr(datamodule, "val_data", None) is None:
        trainer.limit_val_batches = 0


def adapt_strategy(strategy: Strategy, module: nn.Module, *, unchanging: Iterable[str]) -> None:
    """Prepare a fit with DistributedDataParallel; without effect for other strategies.

    Args:
        strategy: The trainer's strategy, before it wraps the module.
        module: The module that is trained.
        unchanging: Names of buffers that are equal in all processes and that training steps leave alone.
            DistributedDataParallel would broadcast them from rank 0 before every step.
    """
    if not isinstance(strategy, DDPStrategy):
        return
    if any(parameter.requires_grad for parameter in module.parameters()):
        module._ddp_params_and_buffers_to_ignore = list(unchanging)  # type: ignore[assignment]  # torch's own switch
        return

    def share_weights() -> None:
        broadcast_from_rank0(chain(module.parameters(), module.buffers()))

    # A memory bank alone trains nothing, and DistributedDataParallel refuses a module without gradients.
    strategy.configure_ddp = share_weights  # type: ignore[method-assign]


# ------------------------------------------------------------------ images of 16 bits, EXIF orientation

_MODES_16_BIT = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
_WHITE = 65535.0
_ORIENTATION, _UPRIGHT, _SIDEWAYS = 0x0112, 1, {5, 6, 7, 8}  # EXIF


def restore_pictures(batch: Any) -> Any:
    """Reload, in place, those images of a batch that anomalib's reader decodes differently from an image viewer.

    These are 16-bit grey images, which are scaled by 1/65535, and images with an EXIF orientation. They are resized to
    the size of the batch; but a single image without a mask, in the size of its file, gets its upright size. Random
    augmentations of the data set do not apply to reloaded images.

    Args:
        batch: An anomalib batch with ``image`` [B, 3, H, W] in [0, 1] and B paths; one without paths stays as it is.

    Returns:
        The same batch.

    Example:
        >>> restore_pictures({"image_path": None})
        {'image_path': None}
    """
    paths = getattr(batch, "image_path", None)
    images = getattr(batch, "image", None)
    if not paths or not isinstance(images, torch.Tensor) or images.ndim != 4:
        return batch
    for index, path in enumerate(paths):
        if not _is_read_otherwise(str(path), Path(path).stat().st_mtime_ns):
            continue
        with Image.open(path) as file:
            channels = torch.from_numpy(pixels_of(file))[None]
            unchanged = images.shape[-2:] == (file.height, file.width)
        if unchanged and len(paths) == 1 and getattr(batch, "gt_mask", None) is None:
            batch.image = channels.to(images)
        else:
            images[index] = resize(channels, list(images.shape[-2:]), antialias=True)[0].to(images)
    return batch


def pixels_of(file: Image.Image) -> NDArray[np.float32]:
    """Pixels of an image as a viewer shows it: upright RGB in [0, 1], [3, H, W].

    Example:
        >>> pixels_of(Image.new("I;16", (2, 1), 65535)).tolist()
        [[[1.0, 1.0]], [[1.0, 1.0]], [[1.0, 1.0]]]
    """
    upright = ImageOps.exif_transpose(file)
    if upright.mode in _MODES_16_BIT:
        grey = (np.asarray(upright).astype(np.float32) / _WHITE).clip(0, 1)
        return np.repeat(grey[None], 3, axis=0)
    colours = np.asarray(upright.convert("RGB"), dtype=np.float32) / 255
    return np.ascontiguousarray(colours.transpose(2, 0, 1))


def upright_size(file: Image.Image) -> tuple[int, int]:
    """Width and height of an image as a viewer shows it, from its header."""
    width, height = file.size
    return (height, width) if _orientation(file) in _SIDEWAYS else (width, height)


def _orientation(file: Image.Image) -> int:
    """EXIF orientation from the file's header, 1 for upright; also 1 for TIFF files, which PIL itself turns."""
    return int(file.getexif().get(_ORIENTATION, _UPRIGHT)) if "exif" in file.info else _UPRIGHT


@lru_cache(maxsize=100_000)
def _is_read_otherwise(path: str, _changed: int) -> bool:
    """Whether anomalib's reader decodes the file differently from a viewer; cached until the file changes."""
    try:
        with Image.open(path) as file:
            return file.mode in _MODES_16_BIT or _orientation(file) != _UPRIGHT
    except UnidentifiedImageError:  # a custom reader of the user may know the format
        return False


class RestorePictures(Callback):
    """Calls `restore_pictures` before any other callback sees a batch."""

    def on_train_batch_start(self, *arguments: Any, **_options: Any) -> None:
        """Restore the batch, the third argument of this and the following hooks."""
        restore_pictures(arguments[2])

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start


# ------------------------------------------------------------------ antialiasing in exported files


def keep_antialiasing(pre_processor: nn.Module | None) -> None:
    """Make ``forward`` and exported files resize with antialiasing, as training does.

    Args:
        pre_processor: anomalib's; another one stays as it is.
    """
    if isinstance(pre_processor, PreProcessor):
        pre_processor.export_transform = exportable(pre_processor.transform)


def exportable(transform: Transform | None) -> nn.Module | None:
    """A pre-processing transform in operators that the exporters support, antialiasing included.

    Args:
        transform: Deterministic torchvision transform.

    Returns:
        anomalib's exportable version of it, in which antialiased resizes to a fixed size stay antialiased.

    Example:
        >>> exportable(Compose([Resize((32, 32), antialias=True)]))(torch.ones(1, 3, 50, 50)).shape
        torch.Size([1, 3, 32, 32])
    """
    if isinstance(transform, Compose):
        return Compose([exportable(part) for part in transform.transforms])
    if isinstance(transform, Resize) and transform.antialias:
        # torchvision keeps the mode as it was given: a member, its name or PIL's number.
        bilinear = transform.interpolation in (InterpolationMode.BILINEAR, "bilinear", 2)
        if bilinear and transform.size is not None and len(transform.size) == 2:
            return AntialiasedResize((int(transform.size[0]), int(transform.size[1])))
    result: nn.Module | None = get_exportable_transform(transform)
    return result
