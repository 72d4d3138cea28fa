"""Writes ``report.html``, one file that opens without a server."""

import base64
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader

from anomalib_npgmf.disk import write_bytes
from anomalib_npgmf.host.drawing import Picture, heat_map, to_rgb
from anomalib_npgmf.host.verdict import Verdict, picture_size
from anomalib_npgmf.torch_model import PARTS

THUMBNAIL = 160  # pixels of the longer side
LISTED = 3000  # rows of the page, highest scores first; browsers get slow with more
BINS = 50
MEANINGS = {  # of the branches, for readers of the page
    "structural": "looks for what no good picture has anywhere, such as scratches, cracks and dirt",
    "logical": "looks for what good pictures do not have at that place, such as something misplaced or missing",
    "composition": "counts what is in the picture, and finds what is too much or too little",
}


@dataclass(frozen=True)
class Thumbnails:
    """Thumbnails of an image, encoded as JPEG.

    Attributes:
        plain: The image.
        overlay: The image under its anomaly map.
        picture: Path of the visualizer's file with every map; "" for none.
    """

    plain: bytes
    overlay: bytes
    picture: str = ""

    def linked_to(self, picture: str) -> "Thumbnails":
        """A copy that links to a file of the visualizer."""
        return replace(self, picture=picture)


def thumbnails_of(module: Any, batch: Any, verdicts: Sequence[Verdict]) -> list[Thumbnails]:
    """Thumbnails of a batch.

    Args:
        module: The `anomalib_npgmf.Npgmf` model.
        batch: The batch after the post-processor.
        verdicts: Results for its images.
    """
    normalised = bool(getattr(module.post_processor, "enable_normalization", False))
    found = []
    for index, verdict in enumerate(verdicts):
        image = to_rgb(batch.image[index], module.model.mean, module.model.std)
        height, width = _thumbnail_size(verdict.path, image)
        small = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        plane = batch.anomaly_map[index].squeeze().float().cpu().numpy()
        scores = np.asarray(cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA), dtype=np.float32)
        overlay = heat_map(small, scores, threshold=0.5 if normalised else None)
        found.append(Thumbnails(_jpeg(small), _jpeg(overlay)))
    return found


def write_page(
    verdicts: Sequence[Verdict],
    thumbnails: dict[str, Thumbnails],
    path: Path,
    *,
    summary: str,
    statement: str = "",
    checkpoint: str = "",
    calibration: Sequence[float] = (),
) -> None:
    """Write the page.

    Args:
        verdicts: Results for all images, highest scores first.
        thumbnails: Thumbnails by path of the image, for some of the images.
        path: The page.
        summary: Head of the page.
        statement: A sentence on the false alarms that the threshold allows.
        checkpoint: File of the model.
        calibration: Scores of the good pictures that the threshold was set on.
    """
    environment = Environment(
        loader=PackageLoader("anomalib_npgmf.host"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    scored = [verdict for verdict in verdicts if not verdict.error and math.isfinite(verdict.score)]
    values = [*(verdict.score for verdict in scored), *calibration]
    low, high = (0.0, 1.0) if all(0 <= value <= 1 for value in values) else (min(values), max(values))
    page = environment.get_template("report.html").render(
        rows=[_row(verdict, thumbnails.get(verdict.path), path.parent) for verdict in verdicts[:LISTED]],
        total=len(verdicts),
        summary=summary,
        statement=statement,
        parts=sorted({verdict.part for verdict in scored if verdict.part}),
        meanings={name: MEANINGS[name] for name in PARTS if any(name in verdict.parts for verdict in scored)},
        threshold=next((verdict.threshold for verdict in scored if verdict.threshold is not None), None),
        # of all pictures, also those without a row: score, and 1 for a bad one, 0 for a good one, null if unknown
        scores=[[v.score, None if v.truth is None else int(v.truth)] for v in scored],
        with_truth=any(verdict.truth is not None for verdict in scored),
        low=low,
        high=high,
        bars=histogram(scored, low, high),
        calibration=histogram([Verdict("", score) for score in calibration], low, high),
        calibration_size=len(calibration),
        checkpoint=checkpoint,
    )
    write_bytes(path, page.encode(errors="backslashreplace"))  # names of files may be no UTF-8


def histogram(verdicts: Sequence[Verdict], low: float, high: float) -> list[dict[str, float]]:
    """Bars of the histogram: good and bad pictures, by the truth where it is known, else by the label.

    Args:
        verdicts: Pictures with a score.
        low: Lower end of the scale.
        high: Upper end.

    Returns:
        For each bar its ``left`` edge as a share of the scale, the heights of ``good`` and ``bad`` as shares of the
        highest bar, and the ``number`` of images.

    Example:
        >>> bars = histogram([Verdict("a.png", 0.1), Verdict("b.png", 0.9, truth=True)], 0.0, 1.0)
        >>> [(bar["left"], bar["good"], bar["bad"]) for bar in bars if bar["good"] or bar["bad"]]
        [(0.1, 1.0, 0.0), (0.9, 0.0, 1.0)]
    """
    bad = [bool(v.truth if v.truth is not None else v.anomalous) for v in verdicts]
    scores = np.array([v.score for v in verdicts], dtype=np.float64)
    flags = np.array(bad, dtype=bool)
    edges = (low, high if high > low else low + 1)
    counts = [np.histogram(scores[chosen], BINS, edges)[0] for chosen in (~flags, flags)]
    highest = max(1, int((counts[0] + counts[1]).max()))
    return [
        {"left": i / BINS, "good": float(good / highest), "bad": float(poor / highest), "number": int(good + poor)}
        for i, (good, poor) in enumerate(zip(*counts, strict=True))
    ]


def _row(verdict: Verdict, thumbnails: Thumbnails | None, folder: Path) -> dict[str, Any]:
    """What the template shows of a picture."""
    images = [] if thumbnails is None else [_data_uri(thumbnails.plain), _data_uri(thumbnails.overlay)]
    picture = thumbnails.picture if thumbnails is not None else ""
    link = Path(os.path.relpath(Path(picture).resolve(), folder.resolve())).as_posix() if picture else ""
    return {"verdict": verdict, "images": images, "link": quote(os.fsencode(link)), "name": Path(verdict.path).name}


def _thumbnail_size(path: str, image: Picture) -> tuple[int, int]:
    """Height and width with the proportions of the picture's file, which the model's input does not keep."""
    height, width = picture_size(path) or image.shape[:2]
    longer = max(height, width)
    return max(1, round(THUMBNAIL * height / longer)), max(1, round(THUMBNAIL * width / longer))


def _jpeg(picture: Picture) -> bytes:
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1])


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
