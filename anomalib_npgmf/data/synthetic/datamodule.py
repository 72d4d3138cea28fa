"""Data module that draws a category once and then reads it like MVTec LOCO AD."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from anomalib.data import AnomalibDataModule
from anomalib.data.datasets.image.mvtec_loco import MVTecLOCODataset
from anomalib.data.utils import Split, TestSplitMode, ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from torchvision.transforms.v2 import Transform

from anomalib_npgmf.fields import Range, check_arguments, checked
from anomalib_npgmf.host.command_line import speak_plainly

from .writer import DrawingPlan, ensure_drawn


class SyntheticLOCO(AnomalibDataModule):
    """Drawn images with logical and structural anomalies, in the layout of MVTec LOCO AD.

    Light, colour temperature, texture, pose and position vary at random in normal images. Images with a logical anomaly
    show only normal parts, but violate the rule of the category:

    - ``loose_screws``, ``tablet_dish``: number. There is a fixed number of two kinds of parts, at random positions.
    - ``cable_pairs``: combination. The two plugs of a cable have the same colour.
    - ``sorting_tray``: position. Each kind of part has its compartment; the tray may be turned by 180 degrees.
    - ``filled_vials``: amount. Three vials are filled to the same level, which varies between images.

    Structural anomalies are local damage: scratch, dent, chip, stain, crumb, fibre, bent screw, cracked glass.
    ``anomalib.data.MVTecLOCO(root, category)`` reads the folder as well.

    Args:
        root: Folder of all categories; None means anomalib's cache of data sets.
        category: One of the names above.
        image_size: Side of the drawn images, or their height and width, pixels.
        num_train: Number of normal training images.
        num_validation: Number of normal validation images.
        num_test_good: Number of normal test images.
        num_test_logical: Number of test images with a logical anomaly; the category's defect types alternate.
        num_test_structural: Number of test images with a structural anomaly; likewise.
        train_batch_size: Training batch size.
        eval_batch_size: Validation and test batch size.
        num_workers: Number of worker processes that read images.
        train_augmentations: Augmentations of the training images.
        val_augmentations: Augmentations of the validation images.
        test_augmentations: Augmentations of the test images.
        augmentations: Augmentations where no more specific ones are given.
        seed: Random seed of the images. Another seed needs another root.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is out of range, or, when the images are needed, if the folder was drawn with others.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     datamodule = SyntheticLOCO(
        ...         root, "cable_pairs", image_size=64, num_train=2, num_validation=1,
        ...         num_test_good=1, num_test_logical=1, num_test_structural=1,
        ...     )
        ...     datamodule.prepare_data()
        ...     datamodule.setup()
        ...     batch = next(iter(datamodule.train_dataloader()))
        >>> batch.image.shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/SyntheticLOCO",
        category: str = "loose_screws",
        image_size: int | tuple[int, int] = 256,
        num_train: int = 60,
        num_validation: int = 20,
        num_test_good: int = 20,
        num_test_logical: int = 20,
        num_test_structural: int = 20,
        train_batch_size: int = 8,
        eval_batch_size: int = 8,
        num_workers: int = 0,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        seed: int = 0,
    ) -> None:
        given: dict[str, Any] = dict(locals())
        with speak_plainly():
            check_arguments(SyntheticLOCO.__init__, given)
            for name, least in (("train_batch_size", 1), ("eval_batch_size", 1), ("num_workers", 0)):
                checked(name, given[name], Annotated[int, Range(least)])
            plan = DrawingPlan(
                category=category,
                image_size=image_size,  # type: ignore[arg-type]  # one side stands for both
                num_train=num_train,
                num_validation=num_validation,
                num_test_good=num_test_good,
                num_test_logical=num_test_logical,
                num_test_structural=num_test_structural,
                seed=seed,
            )
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=TestSplitMode.FROM_DIR,
            val_split_mode=ValSplitMode.FROM_DIR,
            seed=seed,
        )
        self.root = resolve_dataset_root(root, "SyntheticLOCO")
        self.category = category
        self.plan = plan

    def prepare_data(self) -> None:
        """Draw the images unless they exist."""
        ensure_drawn(self.root, self.plan)

    def _setup(self, _stage: str | None = None) -> None:
        """Read the three splits; draws the images first if :meth:`prepare_data` was not called."""
        self.prepare_data()
        self.train_data, self.val_data, self.test_data = (
            MVTecLOCODataset(root=self.root, category=self.category, split=split)
            for split in (Split.TRAIN, Split.VAL, Split.TEST)
        )
