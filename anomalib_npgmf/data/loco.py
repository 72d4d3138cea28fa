"""MVTec LOCO AD for anomalib, with any version of pandas.

``anomalib.data.MVTecLOCO`` of anomalib 2.7 assigns lists of mask paths to a column of strings, which pandas 3 refuses.
Here the same table is built in one go.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from anomalib.data import MVTecLOCO
from anomalib.data.datasets.base import AnomalibDataset
from anomalib.data.datasets.image.mvtec_loco import MVTecLOCODataset
from anomalib.data.utils import LabelName, Split
from torchvision.transforms.v2 import Transform

SPLIT_FOLDERS = {Split.TRAIN: "train", Split.VAL: "validation", Split.TEST: "test"}


class LOCODataset(MVTecLOCODataset):
    """One split of a category in the layout of MVTec LOCO AD.

    Args:
        root: Folder of the categories.
        category: Name of the category; any folder name, not only the five of MVTec LOCO AD.
        augmentations: Applied to image and mask.
        split: ``"train"``, ``"val"`` or ``"test"``; all of them if None.

    Raises:
        FileNotFoundError: If the category has no images, or an anomalous image no mask.
    """

    def __init__(
        self,
        root: Path | str,
        category: str,
        augmentations: Transform | None = None,
        split: str | Split | None = None,
    ) -> None:
        # not the constructor of MVTecLOCODataset, which builds the table that pandas 3 refuses
        AnomalibDataset.__init__(self, augmentations=augmentations)
        self.root_category = Path(root) / category
        self.category = category
        self.split = split
        self.samples = make_loco_samples(self.root_category, split)


class LOCO(MVTecLOCO):
    """MVTec LOCO AD, or any category in its layout, as an anomalib data module.

    Takes the arguments of ``anomalib.data.MVTecLOCO`` and yields the same batches, also with pandas 3.

    Example:
        >>> from anomalib_npgmf.data.loco import LOCO
        >>> datamodule = LOCO(root="./datasets/MVTec_LOCO", category="pushpins", eval_batch_size=8)
        >>> datamodule.category
        'pushpins'
    """

    def _setup(self, _stage: str | None = None) -> None:
        self.train_data = LOCODataset(self.root, self.category, split=Split.TRAIN)
        self.val_data = LOCODataset(self.root, self.category, split=Split.VAL)
        self.test_data = LOCODataset(self.root, self.category, split=Split.TEST)


def make_loco_samples(category_dir: Path, split: str | Split | None = None) -> pd.DataFrame:
    """List the images of a category with their labels and masks.

    Args:
        category_dir: Folder with ``train``, ``validation``, ``test`` and ``ground_truth``.
        split: Split to list; all of them if None.

    Returns:
        One row per image, sorted by path, with the columns of ``anomalib.data.MVTecLOCO``: ``path``, ``split``,
        ``label``, ``image_path``, ``label_index`` and ``mask_path`` (a list for an anomalous image, else ``""``).

    Raises:
        FileNotFoundError: If there are no images, or an anomalous image has no mask.
    """
    rows = []
    for chosen in SPLIT_FOLDERS if split is None else [Split(split)]:
        for image in sorted((category_dir / SPLIT_FOLDERS[chosen]).glob("*/*.png")):
            label = image.parent.name
            normal = label == "good"
            masks = sorted((category_dir / "ground_truth" / label / image.stem).glob("*.png"))
            if not normal and not masks:
                raise FileNotFoundError(
                    f"No mask for {image} in {category_dir / 'ground_truth' / label / image.stem}; restore the dataset."
                )
            rows.append({
                "path": str(category_dir),
                "split": chosen.value,
                "label": label,
                "image_path": str(image),
                "label_index": int(LabelName.NORMAL if normal else LabelName.ABNORMAL),
                "mask_path": "" if normal else [str(mask) for mask in masks],
            })  # fmt: skip
    if not rows:
        raise FileNotFoundError(
            f"No images in {category_dir}; set root to the folder that holds the categories of MVTec LOCO AD and "
            "category to one of them."
        )
    samples = pd.DataFrame(rows).sort_values("image_path", ignore_index=True)
    samples.attrs["task"] = "segmentation" if any(row["mask_path"] for row in rows) else "classification"
    return samples
