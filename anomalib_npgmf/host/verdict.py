"""The result for one image: score, label, the branch that determined it, its reason, and regions."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from torch import Tensor

from anomalib_npgmf.host.compat import upright_size
from anomalib_npgmf.host.visualizer import dominant_part, maps_of
from anomalib_npgmf.merging.rule import MapMerger

DIGITS = 9  # decimals of scores; float32 values near 1 stay distinct
_REASONS = {
    "logical": "not what good pictures have there",
    "structural": "unlike anything in the good pictures",
}


@dataclass(frozen=True)
class Region:
    """Bounding box of a connected region whose pixels exceed the pixel threshold, in pixels of the upright picture.

    Attributes:
        x: Left edge.
        y: Upper edge.
        width: Width.
        height: Height.
        score: Largest score in it.
    """

    x: int
    y: int
    width: int
    height: int
    score: float


@dataclass(frozen=True)
class Verdict:
    """The result for one image.

    Attributes:
        path: The image's file.
        score: Image score, after the post-processor.
        anomalous: Its label; ``None`` without a threshold.
        threshold: Threshold of the image score, on its scale; ``None`` without one.
        parts: Score of each branch alone, on the scale of ``score``. With ``merging: sum`` it is the score of the
            branch's weighted term, so that two branches below the threshold can exceed it together.
        part: The branch that determines the score; "" if not known.
        reason: What this branch found, one line; "" for a normal image.
        regions: Regions above the pixel threshold, the highest score first.
        truth: Whether the image is anomalous by the ground truth; ``None`` where there is none.
        error: Why the image could not be read, in which case nothing else is known; else "".

    Example:
        >>> Verdict("a.png", 0.2, anomalous=False, threshold=0.5, truth=True).outcome
        'miss'
    """

    path: str
    score: float = float("nan")
    anomalous: bool | None = None
    threshold: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    part: str = ""
    reason: str = ""
    regions: tuple[Region, ...] = ()
    truth: bool | None = None
    error: str = ""

    @property
    def label(self) -> str:
        """``anomalous``, ``normal``, ``unreadable`` or, without a threshold, ""."""
        if self.error:
            return "unreadable"
        return "" if self.anomalous is None else ("anomalous" if self.anomalous else "normal")

    @property
    def outcome(self) -> str:
        """``false alarm``, ``miss`` or ``right``; "" where the truth or the label is not known."""
        if self.truth is None or self.anomalous is None:
            return ""
        if self.truth == self.anomalous:
            return "right"
        return "miss" if self.truth else "false alarm"

    @property
    def is_wrong(self) -> bool:
        """Whether this is a false alarm or a miss."""
        return self.outcome in ("false alarm", "miss")


def verdicts_of(module: Any, batch: Any) -> list[Verdict]:
    """Results for the images of a batch.

    Args:
        module: The `anomalib_npgmf.Npgmf` model.
        batch: The batch after the post-processor; with the maps of the branches where the step attached them.

    Returns:
        One verdict per image.
    """
    count = len(batch.pred_score)
    carried, post = maps_of(batch), module.post_processor
    known = getattr(post, "normalized_image_threshold", None) if batch.pred_label is not None else None
    threshold = None if known is None else float(known)
    deciding, parts = [""] * count, [{} for _ in range(count)]  # type: list[str], list[dict[str, float]]
    if carried is not None:
        merger = module.model.merger
        deciding = dominant_part(merger, carried.maps)
        parts = _rows({name: _normalised(post, raw) for name, raw in part_scores(merger, carried.maps).items()})
    found = []
    for index in range(count):
        path = "" if batch.image_path is None else str(batch.image_path[index])
        plane = batch.anomaly_map[index].squeeze().float().cpu()
        scale = _scale(path, plane)
        anomalous = None if batch.pred_label is None else bool(batch.pred_label[index])
        reason = ""
        if anomalous is not False and deciding[index] == "composition" and carried is not None and carried.explanations:
            reason = carried.explanations[index].reason
        elif anomalous is not False and deciding[index] in _REASONS:
            reason = f"{_REASONS[deciding[index]]}: {_place(plane, scale)}"
        mask = None if batch.pred_mask is None else batch.pred_mask[index].squeeze().bool().cpu()
        verdict = Verdict(
            path=path,
            score=round(float(batch.pred_score[index]), DIGITS),
            anomalous=anomalous,
            threshold=threshold,
            parts=parts[index],
            part=deciding[index],
            reason=reason,
            regions=() if mask is None else regions_of(mask, plane, scale),
            truth=None if getattr(batch, "gt_label", None) is None else bool(batch.gt_label[index]),
        )
        found.append(verdict)
    return found


def part_scores(merger: MapMerger, maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Image score of each branch alone: the maximum of its term; of the composition its standardised score.

    Args:
        merger: A calibrated merger.
        maps: Raw maps by branch, see `anomalib_npgmf.outputs.BranchMaps`.

    Returns:
        [B] by branch, on the scale of the merged score.

    Example:
        >>> import torch
        >>> merger = MapMerger((64, 64), 1.0, 1.0, blur=torch.nn.Identity())
        >>> part_scores(merger, {"logical": torch.full((1, 1, 64, 64), 2.0)})
        {'logical': tensor([2.])}
    """
    if merger.composition is None or "composition_scores" not in maps:
        return {name: part.amax(dim=(1, 2, 3)) for name, part in merger.calibrated_maps(maps).items()}
    scores = {name: merger.composition.of_peaks(part.amax((1, 2, 3))) for name, part in merger.smoothed(maps).items()}
    return scores | {"composition": merger.composition.of_composition(maps["composition_scores"])}


def scores_of_calibration(post: Any) -> list[float]:
    """Scores of the good pictures that the threshold was set on, on the scale of all scores; empty if not known."""
    known = getattr(post, "normal_scores", None)
    return [] if known is None else [float(value) for value in _normalised(post, known[:, 0]).cpu()]


def regions_of(mask: Tensor, scores: Tensor, scale: tuple[float, float] = (1.0, 1.0)) -> tuple[Region, ...]:
    """Connected regions of a mask.

    Args:
        mask: Boolean, [H, W].
        scores: Scores of the pixels, [H, W].
        scale: Pixels of the picture per pixel of the map, in x and in y.

    Returns:
        Their boxes, the highest score first.

    Example:
        >>> import torch
        >>> mask = torch.zeros(8, 8, dtype=torch.bool)
        >>> mask[2:4, 1:6] = True
        >>> regions_of(mask, mask.float(), (2.0, 1.0))
        (Region(x=2, y=2, width=10, height=2, score=1.0),)
    """
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.numpy().astype(np.uint8), connectivity=8)
    values, found = scores.numpy(), []
    for number, (x, y, width, height, _) in enumerate(boxes[1:].tolist(), start=1):
        inside = labels[y : y + height, x : x + width] == number
        left, upper = round(x * scale[0]), round(y * scale[1])
        right, lower = round((x + width) * scale[0]), round((y + height) * scale[1])
        score = round(float(values[y : y + height, x : x + width][inside].max()), DIGITS)
        found.append(Region(left, upper, max(1, right - left), max(1, lower - upper), score))
    return tuple(sorted(found, key=lambda region: -region.score))


def picture_size(path: str) -> tuple[int, int] | None:
    """Height and width of a picture as a viewer shows it, from its file's header; ``None`` without a file."""
    if not Path(path).is_file():
        return None
    with Image.open(path) as file:
        width, height = upright_size(file)
    return height, width


def _normalised(post: Any, scores: Tensor) -> Tensor:
    if not getattr(post, "enable_normalization", False):
        return scores
    result: Tensor = post._normalize(scores, post.image_min, post.image_max, post.image_threshold)
    return result


def _rows(columns: dict[str, Tensor]) -> list[dict[str, float]]:
    values = [[round(value, DIGITS) for value in column.float().cpu().tolist()] for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def _scale(path: str, plane: Tensor) -> tuple[float, float]:
    """Pixels of the picture's file per pixel of the map, in x and in y; 1 without a file."""
    height, width = picture_size(path) or plane.shape
    return width / plane.shape[1], height / plane.shape[0]


def _place(plane: Tensor, scale: tuple[float, float]) -> str:
    """Where a map has its maximum, in words and in pixels of the picture."""
    row, column = divmod(int(plane.argmax()), plane.shape[1])
    where = third_of(row, column, *plane.shape)
    return f"{where} (x {round((column + 0.5) * scale[0])}, y {round((row + 0.5) * scale[1])})"


def third_of(row: int, column: int, height: int, width: int) -> str:
    """Name the third of a plane, vertically and horizontally, in which a position lies.

    Args:
        row: Its row, from the top.
        column: Its column, from the left.
        height: Rows.
        width: Columns.

    Example:
        >>> third_of(0, 99, 100, 100), third_of(50, 50, 100, 100)
        ('upper right', 'centre')
    """
    vertical = ("upper", "middle", "lower")[3 * row // height]
    horizontal = ("left", "centre", "right")[3 * column // width]
    return "centre" if (vertical, horizontal) == ("middle", "centre") else f"{vertical} {horizontal}"


def printable(name: str) -> str:
    """The name of a file as any terminal prints it; bytes that are no UTF-8 become escapes."""
    return name.encode(errors="backslashreplace").decode()
