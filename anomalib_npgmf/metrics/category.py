"""AU-sPRO curves of a whole category, image by image: the maps are never all in memory.

Two passes over the images. The first keeps the scores of the few defect pixels that can raise the sPRO. The second
counts, a few images at a time, the negative pixels above each of them; it is repeated if an estimate was too high.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from anomalib_npgmf.metrics.annotation import AnnotatedImage, LoadMap, annotate
from anomalib_npgmf.metrics.curve import Hits, SproCurve, add_counts, merge_hits
from anomalib_npgmf.metrics.ground_truth import (
    read_defects_config,
)
from anomalib_npgmf.metrics.scores import FloatArray

T = TypeVar("T")


class Progress(Protocol):
    """Wraps an iterable of known length to show how far it got."""

    def __call__(self, items: Iterable[T], text: str, total: int, /) -> Iterable[T]:
        """Yield the items and show progress."""


# Pixels sorted at a time: few lookups of all thresholds, and 128 MB per worker for the pixels.
_CHUNK = 1 << 25
_NAMED = 3  # names in a warning

UNDERSIZED = "Smaller than the saturation threshold, so the whole defect has to be found"
ENTIRELY_DEFECTIVE = "Every pixel is marked as defective, so the image adds no false positives"
CONSTANT = "Constant anomaly maps, which locate nothing"


class CategoryCurves(NamedTuple):
    """Curves of a category, and the images behind them.

    Attributes:
        curves: Curve by ``"logical_anomalies"``, ``"structural_anomalies"`` or name of a defect type.
        anomalous: Anomalous images of each curve; the good images are part of all.
    """

    curves: dict[str, SproCurve]
    anomalous: dict[str, list[Path]]


@dataclass
class _Subset:
    """Hits of one kind or defect type, the number of negative pixels, and running counts of those above each hit."""

    name: str
    hits: Hits
    negatives: int
    kept: int = 0

    def __post_init__(self) -> None:
        dtype = np.uint32 if self.negatives < 2**32 else np.uint64
        self.above = np.zeros(len(self.hits.scores), dtype=dtype)
        self.at_least = np.zeros(len(self.hits.scores), dtype=dtype)
        self.lock = threading.Lock()

    def count(self, negatives: FloatArray) -> None:
        with self.lock:
            self.kept += len(negatives)
            add_counts(negatives, self.hits.scores, self.above, self.at_least)

    def curve(self) -> SproCurve:
        return SproCurve(self.hits.gains, self.above, self.at_least, self.negatives)


def spro_curves(
    images: Sequence[Path],
    load_map: LoadMap,
    limit: float = 1.0,
    per_defect: bool = False,
    progress: Progress | None = None,
) -> CategoryCurves:
    """Exact curves of mean sPRO over false positive rate, per kind of anomaly and optionally per defect type.

    Each subset is compared on the good images and those that hold one of its defects. Its own defects count for the
    sPRO; no defect of an image counts as false positive.

    Memory: the hits (at most the sum of all saturation areas, 20 bytes each) and about 256 MB per worker thread, for
    any number of images. Time: one sort of all negative pixels, or of about the highest ``limit`` of them.

    Args:
        images: Test images in the layout of MVTec LOCO AD.
        load_map: Returns the ``(H, W)`` map of an image at its original size; called from several threads.
        limit: Largest false positive rate of interest. The curves are only valid up to it.
        per_defect: Add a curve per defect type.
        progress: Wraps an iterable, given a description and a length, to show progress.

    Returns:
        The curves; kinds without an image are left out.

    Raises:
        FileNotFoundError: If a config or a ground truth is missing.
        ValueError: If a ground truth is invalid or leaves no negative pixel.
    """
    show = progress or _silent
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 4)
    config = lru_cache(read_defects_config)
    with ThreadPoolExecutor(workers) as pool:
        annotated = list(
            show(
                pool.map(lambda path: annotate(path, load_map, config, sample=limit < 1), images),
                "ground truth",
                len(images),
            )
        )
        _warn_of([name for image in annotated for name in image.undersized], UNDERSIZED)
        _warn_of([str(image.path) for image in annotated if not image.negatives], ENTIRELY_DEFECTIVE)
        names = sorted({label[0] for image in annotated for label in image.labels})
        if per_defect:
            names += sorted({label[1] for image in annotated for label in image.labels} - set(names))
        cut = _estimate_cut(annotated, names, limit)
        while True:
            subsets = [_make_subset(name, annotated, cut) for name in names]
            _count_negatives(annotated, subsets, load_map, cut, pool, show)
            # the counts prove the estimate: every omitted hit has a false positive rate beyond the limit
            if cut == -np.inf or all(subset.kept >= limit * subset.negatives for subset in subsets):
                return CategoryCurves(
                    {subset.name: subset.curve() for subset in subsets},
                    {name: [image.path for image in annotated if image.holds(name)] for name in names},
                )
            cut = -np.inf


def _estimate_cut(images: Sequence[AnnotatedImage], names: Sequence[str], limit: float) -> float:
    """Estimated threshold that more than a fraction ``limit`` of the negative pixels of each subset should exceed."""
    share = 1.25 * limit + 0.005
    if share >= 1:
        return -np.inf
    cuts = []
    for name in names:
        pooled = np.concatenate(
            [image.sample for image in images if image.in_subset(name) and image.sample is not None]
        )
        cuts.append(float(np.quantile(pooled, 1 - share)) if len(pooled) else -np.inf)
    return min(cuts, default=-np.inf)


def _make_subset(name: str, images: Sequence[AnnotatedImage], cut: float) -> _Subset:
    hits, areas = [], []
    for image in images:
        for labels, scores, area in zip(image.labels, image.hits, image.areas, strict=True):
            if name in labels:
                hits.append(scores[scores > cut])
                areas.append(area)
    negatives = sum(image.negatives for image in images if image.in_subset(name))
    if not negatives:
        raise ValueError(f"No pixel of the images for {name} is free of defects; false positives need good images.")
    return _Subset(name, merge_hits(hits, areas), negatives)


def _count_negatives(
    images: Sequence[AnnotatedImage],
    subsets: Sequence[_Subset],
    load_map: LoadMap,
    cut: float,
    pool: ThreadPoolExecutor,
    show: Progress,
) -> None:
    def members(image: AnnotatedImage) -> list[int]:
        return [index for index, subset in enumerate(subsets) if image.in_subset(subset.name)]

    chunks: list[tuple[list[int], list[AnnotatedImage]]] = []
    for group, together in groupby(sorted(images, key=members), key=members):
        pixels = _CHUNK
        for image in together:
            if pixels + image.negatives > _CHUNK:
                chunks.append((group, []))
                pixels = 0
            chunks[-1][1].append(image)
            pixels += image.negatives
    constant: list[str] = []

    def count(chunk: tuple[list[int], list[AnnotatedImage]]) -> None:
        # One array to fill: arrays of many sizes from several threads would fragment the heap.
        pooled: FloatArray = np.empty(sum(image.negatives for image in chunk[1]), dtype=np.float32)
        end = 0
        for image in chunk[1]:
            scores = load_map(image.path)
            if scores.min() == scores.max():
                constant.append(str(image.path))
            if scores.dtype != pooled.dtype:
                pooled = pooled.astype(np.result_type(scores, pooled))
            negatives = image.negatives_of(scores)
            negatives = negatives[negatives > cut] if cut > -np.inf else negatives
            pooled[end : end + len(negatives)] = negatives
            end += len(negatives)
        pooled = pooled[:end]
        pooled.sort()
        for index in chunk[0]:
            subsets[index].count(pooled)

    for _ in show(pool.map(count, chunks), "false positives", len(chunks)):
        pass
    _warn_of(sorted(constant), CONSTANT)


def _warn_of(names: Sequence[str], text: str) -> None:
    """Warn once for all images with the same problem, naming the first few."""
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        warnings.warn(f"{text}: {', '.join(names[:_NAMED])}{more}.", stacklevel=2)


def _silent(items: Iterable[T], _text: str, _total: int, /) -> Iterable[T]:
    return items
