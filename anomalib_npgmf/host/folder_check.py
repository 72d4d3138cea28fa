"""Checks of the images before a run: unreadable files, sizes, duplicates in training and test, split, number."""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from anomalib.data import Folder
from anomalib.data.utils import TestSplitMode, ValSplitMode
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, UnidentifiedImageError

from anomalib_npgmf.host.compat import upright_size
from anomalib_npgmf.host.quiet import processors
from anomalib_npgmf.host.splits import held_out

logger = logging.getLogger(__name__)

ADVISED = 20  # good images; of fewer, less than five are set aside for the threshold
NAMED = 20  # files that a warning names; an error names all


@dataclass(frozen=True)
class PictureFile:
    """An image file and what was found in it.

    Attributes:
        path: The file.
        size: Width and height of the upright image, pixels.
        mode: Its mode, as PIL names it, such as ``RGB``, ``L`` or ``I;16``.
        digest: Hash of its content.
        error: Why it cannot be read; "" if it can.
    """

    path: str
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    digest: str = ""
    error: str = ""


def look_at(paths: Iterable[str]) -> list[PictureFile]:
    """Read and decode image files completely, several at a time.

    Args:
        paths: Their files.
    """
    with ThreadPoolExecutor(processors()) as pool:
        return list(pool.map(_look_at_file, paths))


def _look_at_file(path: str) -> PictureFile:
    try:
        status = Path(path).stat()
    except OSError as error:
        return PictureFile(path, error=error.strerror or str(error))
    return _read(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=100_000)
def _read(path: str, _changed: int, _bytes: int) -> PictureFile:
    """Read a file once; time and size are in the cache's key, so that a changed file is read again."""
    try:
        content = Path(path).read_bytes()
        with Image.open(BytesIO(content)) as picture:
            picture.load()
            digest = hashlib.blake2b(content, digest_size=16).hexdigest()
            return PictureFile(path, upright_size(picture), picture.mode, digest)
    except UnidentifiedImageError:
        return PictureFile(path, error="no picture" if content else "the file is empty")
    except Exception as error:  # PIL passes on any error of its decoders
        return PictureFile(path, error=str(error) or type(error).__name__)


class CheckPictures(Callback):
    """Checks all images before a run.

    Before a training it stops and names unreadable files, or leaves them out with ``skip_unreadable``. It warns of
    images that are in both training and test, and prints which images are used for what. In a test or a prediction
    unreadable images are left out with a warning; the report names them.

    Args:
        skip_unreadable: Whether a training leaves unreadable images out.

    Attributes:
        unreadable: Unreadable files of the present run.
    """

    def __init__(self, *, skip_unreadable: bool = False) -> None:
        self.skip_unreadable = skip_unreadable
        self.unreadable: list[PictureFile] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the images of a stage.

        Raises:
            ValueError: If a training has unreadable images without ``skip_unreadable``, or no image can be read.
        """
        module: Any = pl_module
        datamodule = getattr(trainer, "datamodule", None)
        names = {"fit": ("train_data", "val_data", "test_data"), "test": ("test_data",), "predict": ("test_data",)}
        datasets = {name: getattr(datamodule, name, None) for name in names.get(stage, ())}
        if datamodule is None and stage in ("test", "predict"):
            loop = trainer.test_loop if stage == "test" else trainer.predict_loop
            loaders = loop._data_source.instance
            loaders = loaders if isinstance(loaders, (list, tuple)) else [loaders]
            datasets = {str(i): getattr(loader, "dataset", None) for i, loader in enumerate(loaders)}
        files = {name: look_at(paths_of(dataset)) for name, dataset in datasets.items() if paths_of(dataset)}
        torn = {file.path: file for found in files.values() for file in found if file.error}
        self.unreadable = sorted(torn.values(), key=lambda file: file.path)
        if self.unreadable:
            self._leave_out(datasets, files, stage)
        if stage == "fit" and "train_data" in files:
            others = {file.path: file for name in ("test_data", "val_data") for file in files.get(name, [])}
            for line in duplicates(files["train_data"], [*others.values()]):
                logger.warning(line)
            if trainer.is_global_zero:
                used = bool(getattr(module.evaluator, "val_metrics", None))
                print("\n".join(describe(datamodule, files["train_data"], validation_is_used=used)))

    def _leave_out(self, datasets: dict[str, Any], files: dict[str, list[PictureFile]], stage: str) -> None:
        number = f"{len(self.unreadable)} picture{'s' if len(self.unreadable) > 1 else ''}"
        if stage == "fit" and not self.skip_unreadable:
            named = ", ".join(f"{file.path} ({file.error})" for file in self.unreadable)
            msg = f"{number} cannot be read: {named}. Replace or remove, or set skip_unreadable to leave them out."
            raise ValueError(msg)
        if all(file.error for found in files.values() for file in found):
            msg = f"None of the {number} can be read, the first is {self.unreadable[0].path}; check the folder."
            raise ValueError(msg)
        named = ", ".join(f"{file.path} ({file.error})" for file in self.unreadable[:NAMED])
        rest = f", and {len(self.unreadable) - NAMED} more" if len(self.unreadable) > NAMED else ""
        logger.warning("%s cannot be read and will be left out: %s%s.", number, named, rest)
        for name, found in files.items():
            keep(datasets[name], [index for index, file in enumerate(found) if not file.error])


def paths_of(dataset: Any) -> list[str]:
    """Files of an anomalib dataset, for training or for prediction; empty for other datasets."""
    if hasattr(dataset, "image_filenames"):
        return [str(path) for path in dataset.image_filenames]
    samples = getattr(dataset, "_samples", None)
    return [] if samples is None else [str(path) for path in samples.image_path]


def keep(dataset: Any, indices: Sequence[int]) -> None:
    """Reduce an anomalib dataset, in place, to the images at some indices."""
    if hasattr(dataset, "image_filenames"):
        dataset.image_filenames = [dataset.image_filenames[index] for index in indices]
    else:
        dataset.subsample(list(indices), inplace=True)


def duplicates(training: Sequence[PictureFile], other: Sequence[PictureFile]) -> list[str]:
    """A sentence if other images have the content of training images; else an empty list.

    Example:
        >>> duplicates([PictureFile("good/a.png", digest="1")], [PictureFile("bad/b.png", digest="1")])
        ['1 picture for test or validation has the content of a training picture, so ... bad/b.png = good/a.png.']
    """
    known = {file.digest: file.path for file in training if not file.error}
    pairs = [(file.path, known[file.digest]) for file in other if not file.error and file.digest in known]
    if not pairs:
        return []
    named = ", ".join(f"{path} = {original}" for path, original in pairs[:NAMED])
    rest = f", and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    have = "picture for test or validation has" if len(pairs) == 1 else "pictures for test or validation have"
    says = "the content of a training picture, so the result may be too good"
    return [f"{len(pairs)} {have} {says}: {named}{rest}."]


def describe(datamodule: Any, training: Sequence[PictureFile], *, validation_is_used: bool) -> list[str]:
    """Lines that say which images are used for what, and their sizes and modes.

    Args:
        datamodule: A data module that has been set up.
        training: Files of its training pictures.
        validation_is_used: Whether the evaluator has metrics for the validation set.
    """
    readable = [file for file in training if not file.error]
    validation, test = (_counts(getattr(datamodule, name, None)) for name in ("val_data", "test_data"))
    mode = getattr(datamodule, "val_split_mode", None)
    own = mode in (ValSplitMode.FROM_DIR, ValSplitMode.FROM_TRAIN) and validation[0] > 0
    calibrating = validation[0] if own else held_out(max(2, len(readable)))
    fitted = len(readable) - (0 if own else calibrating)
    lines = [
        f"Training: {fitted} good pictures, and {calibrating} that the threshold is set on. "
        f"Test: {test[0]} good and {test[1]} bad ones."
    ]
    lines += [f"Sizes: {_most_common(f'{w} x {h}' for w, h in (file.size for file in readable))}; "]
    lines[-1] += f"modes: {_most_common(file.mode for file in readable)}."
    if mode == ValSplitMode.FROM_TEST and any(validation) and not validation_is_used:
        lines.append(
            f"Not used: {validation[0]} good and {validation[1]} bad pictures, because anomalib sets them aside for "
            "validation; with --data.val_split_mode none the test has them."
        )
    if isinstance(datamodule, Folder) and datamodule.seed is None and (is_drawn(datamodule) or any(validation)):
        lines.append(
            "Which pictures are for training and which for the test is drawn anew in each run; --data.seed 0 keeps it."
        )
    if len(readable) < ADVISED:
        lines.append(f"{len(readable)} good pictures are few; the threshold becomes reliable from {ADVISED} on.")
    return lines


def is_drawn(datamodule: Folder) -> bool:
    """Whether the good test images are a random sample of the folder of training images."""
    return not datamodule.normal_test_dir and datamodule.test_split_mode != TestSplitMode.NONE


def require_pictures(trainer: Trainer) -> None:
    """Raise unless a folder has enough good pictures for anomalib to split.

    Args:
        trainer: A trainer that is about to fit.

    Raises:
        ValueError: If there are too few, where anomalib says «not enough values to unpack».
    """
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, Folder) or not is_drawn(datamodule):
        return
    datamodule._setup()  # lists the files
    number, ratio = len(datamodule.train_data), datamodule.test_split_ratio
    if len(datamodule.test_data) == 0 and math.floor(number * ratio) == 0:
        least = math.ceil(1 / ratio)
        plural = "" if number == 1 else "s"
        msg = (
            f"{datamodule.normal_dir} has {number} good picture{plural}; at least {least} are needed, "
            f"of which {ratio:.0%} are kept for the test, and {ADVISED} or more make the threshold reliable."
        )
        raise ValueError(msg)


def _counts(dataset: Any) -> tuple[int, int]:
    """Numbers of good and bad pictures of a dataset."""
    samples = getattr(dataset, "_samples", None)
    labels: Counter[int] = Counter(() if samples is None else samples.label_index)
    return labels[0], labels[1]


def _most_common(values: Iterable[str]) -> str:
    found = Counter(values).most_common()
    named = [value if len(found) == 1 else f"{value} ({number})" for value, number in found[:3]]
    return ", ".join(named) + (f" and {len(found) - 3} others" if len(found) > 3 else "")
