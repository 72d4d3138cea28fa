"""The gallery of a report: pictures that the cells kept, one sheet per model and category."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from anomalib_npgmf.benchmark.report_records import Group, Results, record_key

_TEXT = (
    "Per model and category the cell of the first seed: of each kind of anomaly the image that is told best from the "
    "good ones; then of the good and of the anomalous images the one on the wrong side or nearest to it (worst), and "
    "the one nearest to the cut (borderline). The cut lies half way between the median scores of both and serves these "
    "pictures alone. Each map has one colour scale per cell: blue is the mean over the good images, red the median of "
    "the maxima of the anomalous ones. Ground truth is outlined in red."
)
_QUALITY = 85  # of JPEG


def write_gallery_sheets(results: Results, folder: Path, images: Path, stem: str) -> str:
    """Put the pictures of each model and category one below the other.

    Args:
        results: The records.
        folder: Output folder of the run, which holds the pictures beside the records.
        images: Folder that the sheets are written to; those of an earlier report are removed.
        stem: What their names start with.

    Returns:
        The section as Markdown, its pictures relative to the folder above ``images``; empty if no picture was kept.
    """
    for old in images.glob(f"{stem}_gallery_*.jpg"):
        old.unlink()
    parts = []
    for group in results.groups:
        for category in group.measured_categories:
            pictures = _pictures(group, category, folder)
            if pictures:
                name = f"{stem}_gallery_{group.name.replace('/', '_')}_{category}.jpg"
                _stack(pictures).save(images / name, quality=_QUALITY)
                title = f"{group.name}: {category}"
                parts.append(f"### {title}\n\n![{title}, best, worst and borderline images]({images.name}/{name})\n")
    return "\n".join([f"\n## Gallery\n\n{_TEXT}\n", *parts]) if parts else ""


def _pictures(group: Group, category: str, folder: Path) -> list[Path]:
    """Kept pictures of the first seed that has any."""
    for seed in group.seeds:
        record = group.records.get((category, seed))
        if record is not None:
            place = (folder / record_key(record)).parent
            found = [place / name for name in record.get("gallery", {}).values() if (place / name).is_file()]
            if found:
                return found
    return []


def _stack(paths: list[Path]) -> Image.Image:
    pictures = []
    for path in paths:
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return Image.fromarray(np.concatenate(padded))
