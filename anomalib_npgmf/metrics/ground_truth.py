"""Ground truth of MVTec LOCO AD: kinds of images, masks of defects and their saturation thresholds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomalib_npgmf.metrics.files import reading

GOOD = "good"
LOGICAL = "logical_anomalies"
STRUCTURAL = "structural_anomalies"
KINDS = (LOGICAL, STRUCTURAL)
CONFIG_NAME = "defects_config.json"


@dataclass(frozen=True)
class DefectType:
    """One entry of ``defects_config.json``.

    Attributes:
        name: Name of the defect type.
        saturation_threshold: Pixels, or a fraction of the defect's area if ``relative``.
        relative: Whether the threshold is a fraction.

    Example:
        >>> DefectType("missing_screw", 0.5, relative=True).saturation_area(31)
        15
        >>> DefectType("additional_screw", 100, relative=False).saturation_area(31)
        31
    """

    name: str
    saturation_threshold: float
    relative: bool

    def saturation_area(self, area: int) -> int:
        """Number of pixels at which a defect counts as found (Bergmann et al. 2022, section 4).

        At least one, also where the fraction of a small defect rounds down to zero.

        Args:
            area: Pixels of the defect.

        Returns:
            Saturation area in pixels, at least 1.
        """
        saturation = int(self.saturation_threshold * area) if self.relative else min(self.saturation_threshold, area)
        return max(int(saturation), 1)


@dataclass(frozen=True)
class Defect:
    """One annotated defect of a test image.

    Attributes:
        name: Name of its defect type.
        mask: ``(H, W)`` boolean.
        saturation_area: In pixels.
        path: File of the mask.
        undersized: Whether it has fewer pixels than its absolute saturation threshold; its area is then used.
    """

    name: str
    mask: npt.NDArray[np.bool_]
    saturation_area: int
    path: Path
    undersized: bool


def kind_of(image_path: Path) -> str | None:
    """Kind of a LOCO test image by its path ``<category>/test/<kind>/<name>``.

    Args:
        image_path: Path of an image.

    Returns:
        ``"good"``, ``"logical_anomalies"``, ``"structural_anomalies"``, or None for another layout.

    Example:
        >>> kind_of(Path("loco/pushpins/test/logical_anomalies/000.png"))
        'logical_anomalies'
        >>> kind_of(Path("mvtec/screw/test/scratch/000.png")) is None
        True
    """
    kind = image_path.parent.name
    return kind if kind in (GOOD, *KINDS) and image_path.parent.parent.name == "test" else None


def category_of(image_path: Path) -> Path:
    """Folder of the category that a test image belongs to.

    Args:
        image_path: ``<category>/test/<kind>/<name>``.

    Returns:
        ``<category>``.
    """
    return image_path.parents[2]


def list_test_images(category_dir: Path) -> list[Path]:
    """List the test images of a category: good ones, and the kinds of anomalies that it has.

    Args:
        category_dir: Folder with ``test/<kind>/*.png``.

    Returns:
        Sorted paths of each kind, good images first.

    Raises:
        FileNotFoundError: If there are no good images, or no anomalous ones.
    """
    test = category_dir / "test"
    found = {kind: sorted((test / kind).glob("*.png")) for kind in (GOOD, *KINDS)}
    for kinds in ((GOOD,), KINDS):
        if not any(found[kind] for kind in kinds):
            raise FileNotFoundError(
                f"No {' or '.join(kinds)} test images in {test}; sPRO and AUROC need good and anomalous ones, check "
                "the dataset root and the category."
            )
    return [path for paths in found.values() for path in paths]


def read_defects_config(category_dir: Path) -> dict[int, DefectType]:
    """Read ``defects_config.json`` of a category.

    Args:
        category_dir: Folder of the category.

    Returns:
        Defect types by the pixel value that marks them.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is no JSON, or an entry lacks a field, has one of another type or a threshold that is
            not positive, not finite or, where it is relative, above 1, or repeats a pixel value.
    """
    path = category_dir / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it holds the saturation thresholds and comes with MVTec LOCO AD.")
    types: dict[int, DefectType] = {}
    with reading(path, "JSON"):
        entries: Any = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin it with a byte-order mark
    for entry in entries if isinstance(entries, list) else [entries]:
        value, defect = _defect_type(path, entry)
        if value in types:
            raise ValueError(f"{path} gives pixel value {value} to two defect types; restore the original file.")
        types[value] = defect
    return types


def _defect_type(path: Path, entry: Any) -> tuple[int, DefectType]:
    """Pixel value and defect type of an entry; types are compared exactly, as JSON has no others."""
    fields = {"defect_name": (str,), "pixel_value": (int,), "saturation_threshold": (int, float)}
    fields["relative_saturation"] = (bool,)
    if not isinstance(entry, dict) or any(type(entry.get(name)) not in types for name, types in fields.items()):
        raise ValueError(
            f"{path} has an entry {entry!r} without defect_name (text), pixel_value (integer), saturation_threshold "
            "(number) and relative_saturation (true or false); restore the original file."
        )
    name, value, threshold, relative = (entry[field] for field in fields)
    if not 0 < threshold < math.inf:
        raise ValueError(f"{path}: the saturation threshold of {name!r} must be positive and finite, not {threshold}.")
    if relative and threshold > 1:
        raise ValueError(
            f"{path}: the relative saturation threshold of {name!r} is {threshold}, but a fraction of the area is at "
            "most 1; restore the original file."
        )
    return value, DefectType(name, threshold, relative)


def read_defects(image_path: Path, config: dict[int, DefectType]) -> list[Defect]:
    """Read all defects of an anomalous test image, one per PNG of its ground-truth folder.

    Args:
        image_path: ``<category>/test/<kind>/NNN.png``.
        config: Defect types by pixel value.

    Returns:
        The defects in the order of their file names.

    Raises:
        FileNotFoundError: If the image has no ground truth.
        ValueError: If a mask is not single-channel, is empty, holds two values or one that the config lacks, or has
            another size than the image.
    """
    folder = category_of(image_path) / "ground_truth" / image_path.parent.name / image_path.stem
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"No ground truth for {image_path}: {folder} holds no PNG; restore the dataset.")
    size = image_size(image_path)
    return [_read_defect(path, size, config) for path in paths]


def image_size(image_path: Path) -> tuple[int, int]:
    """Height and width of an image file, from its header alone.

    Args:
        image_path: Image file.

    Returns:
        ``(height, width)``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image.
    """
    with reading(image_path, "an image"), Image.open(image_path) as image:
        return image.height, image.width


def _read_defect(path: Path, size: tuple[int, int], config: dict[int, DefectType]) -> Defect:
    with reading(path, "an image"), Image.open(path) as image:
        pixels = np.asarray(image)  # without conversion: the values are the defect types
    if pixels.ndim != 2 or pixels.shape != size:
        raise ValueError(f"Mask {path} has shape {pixels.shape}, but its image is {size}; restore the ground truth.")
    mask = pixels > 0
    area = int(np.count_nonzero(mask))
    if not area:
        raise ValueError(f"Mask {path} marks no pixel; remove it or restore the ground truth.")
    value = int(pixels.max())
    if int(pixels.min(where=mask, initial=value)) != value:
        raise ValueError(f"Mask {path} holds more than one positive value; each defect needs a PNG of its own.")
    if value not in config:
        raise ValueError(f"Mask {path} holds pixel value {value}, which {CONFIG_NAME} does not list; restore either.")
    defect = config[value]
    undersized = bool(not defect.relative and area < defect.saturation_threshold)
    return Defect(defect.name, mask, defect.saturation_area(area), path, undersized)
