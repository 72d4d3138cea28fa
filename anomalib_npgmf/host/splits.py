"""Calibration images: never a test image, never one that a branch was fitted on."""

from collections.abc import Iterator
from typing import Any

import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import ValSplitMode
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize

from anomalib_npgmf.host.compat import restore_pictures

_SHARE, _LEAST, _LARGEST_SHARE = 0.1, 10, 0.25
_FULL = "_npgmf_full_train_data"


def normal_images(dataset: Any) -> Any:
    """The normal images of an anomalib dataset, as a dataset."""
    samples = dataset.samples
    return dataset.subsample(list(samples.index[samples.label_index == 0]))


def sample_images(dataset: Any, count: int) -> Any:
    """A random sample of an anomalib dataset, with a fixed seed: files are often sorted by shift or variant.

    Args:
        dataset: The dataset.
        count: Size of the sample; of a smaller dataset all images are taken.

    Returns:
        The same images in every call and process, in the order of the dataset, as a dataset.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    order = torch.randperm(len(dataset), generator=generator, device="cpu").tolist()
    return dataset.subsample(sorted(order[:count]))


def plain(dataset: Any, size: tuple[int, int]) -> Any:
    """A view of a dataset without augmentations, resized so that its images form batches."""
    view = dataset.subsample(list(range(len(dataset))))
    view.augmentations = Resize(size, antialias=True)
    return view


def held_out(number: int) -> int:
    """Number of training images set aside for calibration where there is no separate validation set.

    A tenth, but at least ten or, of fewer than 40, a quarter: the fewer images, the higher the threshold has to be.

    Args:
        number: Number of training images, at least 2.

    Example:
        >>> [held_out(number) for number in (2, 20, 50, 300)]
        [1, 5, 10, 30]
    """
    return max(1, min(max(round(_SHARE * number), _LEAST), int(_LARGEST_SHARE * number)))


def split_for_calibration(datamodule: AnomalibDataModule) -> Any:
    """Set aside the calibration images of a data module.

    A validation set in a folder of its own (MVTec LOCO AD) or split from the training images serves as it is.
    Otherwise, and also where anomalib takes the validation set from the test set, a sample of `held_out` training
    images, by the data module's seed, is taken out of ``datamodule.train_data``; `restore_training_data` undoes that.

    Args:
        datamodule: A data module that has been set up.

    Returns:
        The normal calibration images, an anomalib dataset.

    Raises:
        ValueError: If there is no normal validation image and fewer than two normal training images.
    """
    restore_training_data(datamodule)
    own = datamodule.val_split_mode in (ValSplitMode.FROM_DIR, ValSplitMode.FROM_TRAIN)
    if own and getattr(datamodule, "val_data", None) is not None and datamodule.val_data.has_normal:
        return normal_images(datamodule.val_data)
    train = normal_images(datamodule.train_data)
    if len(train) < 2:
        msg = (
            f"There are no normal validation images and only {len(train)} training image(s) to set some aside from; "
            "add normal images to the validation folder or to the training set."
        )
        raise ValueError(msg)
    count = held_out(len(train))
    generator = torch.Generator("cpu").manual_seed(datamodule.seed or 0)
    order = torch.randperm(len(train), generator=generator, device="cpu").tolist()
    setattr(datamodule, _FULL, datamodule.train_data)
    datamodule.train_data = train.subsample(sorted(order[count:]))
    return train.subsample(sorted(order[:count]))


def restore_training_data(datamodule: AnomalibDataModule) -> None:
    """Undo what `split_for_calibration` did to the data module."""
    full = getattr(datamodule, _FULL, None)
    if full is not None:
        datamodule.train_data = full
        delattr(datamodule, _FULL)


def calibration_loader(datamodule: AnomalibDataModule, size: tuple[int, int]) -> Iterator[Any]:
    """Batches of the calibration images of a data module, which is set up here and keeps its training images.

    Args:
        datamodule: Data of the category.
        size: Height and width of the images.
    """
    datamodule.setup("fit")
    view = plain(split_for_calibration(datamodule), size)
    restore_training_data(datamodule)
    return map(restore_pictures, DataLoader(view, batch_size=datamodule.eval_batch_size, collate_fn=view.collate_fn))
