"""Draw a category into a folder, in the layout of MVTec LOCO AD."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from anomalib_npgmf.disk import write_bytes, write_picture
from anomalib_npgmf.fields import Range, check_fields

from .cable_pairs import CablePairs
from .draft import draft_folder
from .filled_vials import FilledVials
from .loose_screws import LooseScrews
from .sorting_tray import SortingTray
from .tablet_dish import TabletDish

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .scene import Scene

SCENES: dict[str, type[Scene]] = {
    scene.name: scene for scene in (LooseScrews, TabletDish, CablePairs, SortingTray, FilledVials)
}
"""Class of each category, by name."""

MIN_SIDE = 64
"""Shortest side of an image, pixels: below it a scratch is thinner than a pixel."""

_Side = Annotated[int, Range(MIN_SIDE, 8192)]
_Count = Annotated[int, Range(1, 1_000_000)]

_VERSION = 1
"""Increase it when the same arguments draw other images."""

_RECORD = "drawing.json"


@dataclass(frozen=True)
class DrawingPlan:
    """What to draw; two equal plans draw equal images.

    Args:
        category: Key of :data:`SCENES`.
        image_size: Height and width, pixels.
        num_train: Images in `train/good`.
        num_validation: Images in `validation/good`.
        num_test_good: Images in `test/good`.
        num_test_logical: Images in `test/logical_anomalies`; the category's defect types alternate.
        num_test_structural: Images in `test/structural_anomalies`; likewise.
        seed: Random seed. Image k of a folder does not depend on the number of images.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If the category is unknown, the images are too small, a count is below one or the seed negative.

    Example:
        >>> DrawingPlan("loose_screws", (256, 256), 60, 20, 20, 20, 0, seed=0)
        Traceback (most recent call last):
        ValueError: num_test_structural must be a whole number from 1 to 1000000, not 0.
    """

    category: str
    image_size: tuple[_Side, _Side]
    num_train: _Count
    num_validation: _Count
    num_test_good: _Count
    num_test_logical: _Count
    num_test_structural: _Count
    seed: Annotated[int, Range(0)]

    def __post_init__(self) -> None:
        check_fields(self)
        if self.category not in SCENES:
            msg = f"Unknown category {self.category!r}; choose one of {', '.join(SCENES)}."
            raise ValueError(msg)

    def folders(self) -> dict[str, tuple[int, str]]:
        """Image folder to (number of images, type of anomaly or "good")."""
        return {
            "train/good": (self.num_train, "good"),
            "validation/good": (self.num_validation, "good"),
            "test/good": (self.num_test_good, "good"),
            "test/logical_anomalies": (self.num_test_logical, "logical_anomalies"),
            "test/structural_anomalies": (self.num_test_structural, "structural_anomalies"),
        }


def ensure_drawn(root: Path, plan: DrawingPlan) -> Path:
    """Draw the category unless the folder contains it already.

    The images are drawn into a temporary folder, which is then renamed. So an interrupted run leaves no incomplete
    category, and several processes may call this at the same time. What a killed process left is removed by the next
    one that draws.

    Args:
        root: Folder of all categories.
        plan: What to draw.

    Returns:
        The category's folder.

    Raises:
        ValueError: If the ``drawing.json`` of the folder is of another plan, or there is none.
    """
    target = root / plan.category
    if target.exists():
        _check(target, plan)
        return target
    root.mkdir(parents=True, exist_ok=True)
    with draft_folder(root, f".{plan.category}-") as draft:
        try:
            _draw(draft, plan)
            draft.chmod(0o755)  # the draft is private
            draft.rename(target)
        except OSError:
            if not target.exists():
                raise
            _check(target, plan)  # another process was faster
    return target


def _record(plan: DrawingPlan) -> dict[str, Any]:
    return {"version": _VERSION, **asdict(plan), "image_size": list(plan.image_size)}


def _check(target: Path, plan: DrawingPlan) -> None:
    record = target / _RECORD
    if not record.is_file():
        msg = f"{target} exists but was not drawn by SyntheticLOCO; choose another root or remove that folder."
        raise ValueError(msg)
    try:
        there, here = dict(json.loads(record.read_text(encoding="utf-8-sig"))), _record(plan)
    except (ValueError, TypeError, RecursionError) as error:
        msg = f"{record} is damaged, so what was drawn is unknown; choose another root or remove that folder."
        raise ValueError(msg) from error
    other = [f"{key} {there.get(key)} instead of {here[key]}" for key in here if there.get(key) != here[key]]
    if other:
        msg = f"{target} was drawn with {', '.join(other)}; choose another root or remove that folder."
        raise ValueError(msg)


def _draw(folder: Path, plan: DrawingPlan) -> None:
    scene = SCENES[plan.category]()
    kinds = scene.defect_kinds()
    values = {kind.name: 255 - number for number, kind in enumerate(kinds)}
    config = []
    for kind in kinds:
        threshold, relative = kind.saturation(plan.image_size)
        config.append(
            {
                "defect_name": kind.name,
                "pixel_value": values[kind.name],
                "saturation_threshold": threshold,
                "relative_saturation": relative,
            }
        )
    for stream, (name, (count, anomaly_type)) in enumerate(plan.folders().items()):
        names = [kind.name for kind in kinds if kind.anomaly_type == anomaly_type]
        for index in range(count):
            defect = names[index % len(names)] if names else None
            rng = np.random.default_rng([plan.seed, zlib.crc32(plan.category.encode()), stream, index])
            drawing = scene.draw(plan.image_size, rng, defect)
            _write(folder / name / f"{index:03d}.png", drawing.image[..., ::-1])
            for k, mask in enumerate(drawing.masks):
                truth = folder / "ground_truth" / anomaly_type / f"{index:03d}" / f"{k:03d}.png"
                _write(truth, mask.astype(np.uint8) * np.uint8(values[str(defect)]))
    write_bytes(folder / "defects_config.json", json.dumps(config, indent=2).encode())
    write_bytes(folder / _RECORD, json.dumps(_record(plan), indent=2).encode())


def _write(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, image)
