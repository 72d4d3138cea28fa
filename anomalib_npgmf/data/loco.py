"""MVTec LOCO AD for anomalib, with errors that name the missing files."""

from __future__ import annotations

from pathlib import Path

from anomalib.data import MVTecLOCO

from anomalib_npgmf.host.command_line import speak_plainly


class LOCO(MVTecLOCO):
    """MVTec LOCO AD, or any category in its layout, as an anomalib data module.

    Takes the arguments of ``anomalib.data.MVTecLOCO`` and yields the same batches. It checks the folder first, where
    anomalib's class fails with an error of pandas. Setting up raises a ``FileNotFoundError`` if the category has no
    images or an anomalous image has no mask.

    Example:
        >>> from anomalib_npgmf.data.loco import LOCO
        >>> datamodule = LOCO(root="./datasets/MVTec_LOCO", category="pushpins", eval_batch_size=8)
        >>> datamodule.category
        'pushpins'
    """

    def _setup(self, _stage: str | None = None) -> None:
        with speak_plainly():
            check_category(Path(self.root) / self.category)
        super()._setup(_stage)


def check_category(category_dir: Path) -> None:
    """Check that a category has images, and a mask for every anomalous image.

    Args:
        category_dir: Folder with ``train``, ``validation``, ``test`` and ``ground_truth``.

    Raises:
        FileNotFoundError: If there are no images, or an anomalous image has no mask.
    """
    images = [image for split in ("train", "validation", "test") for image in category_dir.glob(f"{split}/*/*.png")]
    if not images:
        raise FileNotFoundError(
            f"No images in {category_dir}; set root to the folder that holds the categories of MVTec LOCO AD and "
            "category to one of them."
        )
    for image in images:
        masks = category_dir / "ground_truth" / image.parent.name / image.stem
        if image.parent.name != "good" and not any(masks.glob("*.png")):
            raise FileNotFoundError(f"No mask for {image} in {masks}; restore the dataset.")
