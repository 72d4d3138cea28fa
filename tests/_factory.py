"""Small image sets and small models for the tests of the whole."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from anomalib.data import Folder, MVTecAD
from anomalib.engine import Engine

from anomalib_npgmf import Npgmf

SIDE = 128
SLIM_LOGICAL = {
    "embedding_channels": 16,
    "prior_dim": 8,
    "code_dim": 8,
    "atrous_width": 8,
    "fusion_depth": 1,
    "decoder_blocks": 1,
}


def draw(path: Path, seed: int, *, defect: bool = False) -> None:
    """A noisy grey square on a darker ground; a defect is a bright blot on it, with a mask beside the test images."""
    rng = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE, 3), 60, np.float32)
    image[32:96, 32:96] = 140
    image += rng.normal(0, 12, image.shape)
    mask = np.zeros(image.shape[:2], np.uint8)
    if defect:
        y, x = rng.integers(40, 70, 2)
        image[y : y + 18, x : x + 18] = (20, 240, 240)
        mask[y : y + 18, x : x + 18] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8))
    if defect:
        mask_path = path.parents[2] / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        mask_path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(mask_path), mask)


def draw_category(root: Path, category: str = "square_plate", *, train: int = 10, validation: int = 0) -> Path:
    """A category in the layout of MVTec AD, with `validation/good` where asked for."""
    folder = root / category
    for i in range(train):
        draw(folder / "train" / "good" / f"{i:03}.png", i)
    for i in range(validation):
        draw(folder / "validation" / "good" / f"{i:03}.png", 50 + i)
    for i in range(4):
        draw(folder / "test" / "good" / f"{i:03}.png", 100 + i)
        draw(folder / "test" / "blot" / f"{i:03}.png", 200 + i, defect=True)
    return folder


def mvtec(root: Path, category: str = "square_plate", **changes: Any) -> MVTecAD:
    """anomalib's data module over it, whose validation set is the test set."""
    options: dict[str, Any] = {"train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0} | changes
    return MVTecAD(root=root, category=category, **options)


def folder_of(folder: Path, **changes: Any) -> Folder:
    """anomalib's general data module over it, which has a name in place of a category."""
    options: dict[str, Any] = {"train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0} | changes
    places = {"normal_dir": "train/good", "abnormal_dir": "test/blot", "normal_test_dir": "test/good"}
    return Folder(name="plates", root=folder, **(places | options))


def make_model(**changes: Any) -> Npgmf:
    """The small preset over timm's smallest network with five levels, slimmer still."""
    logical = SLIM_LOGICAL | changes.pop("logical", {})
    network = {"backbone": "test_resnet", "backbone_weights": "random"}
    options: dict[str, Any] = {"preset": "small", "logical_image_size": SIDE} | network | changes
    return Npgmf(logical=logical, **options)


def make_engine(root: Path, **changes: Any) -> Engine:
    """A quiet engine on the CPU."""
    options: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [],
    } | changes
    return Engine(default_root_dir=root, **options)
