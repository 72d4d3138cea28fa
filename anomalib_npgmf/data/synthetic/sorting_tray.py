"""Category sorting_tray: four kinds of parts, each in its own compartment."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from . import parts
from .scene import DefectKind, Layout, Scene
from .shapes import bevel, box
from .surface import Camera, Surface

if TYPE_CHECKING:
    from .surface import Mask

_HALF = 54.0
"""Distance of a compartment's centre from the tray's, scene units."""
_KINDS = (parts.washer, parts.spring, parts.fuse, parts.nut)
_PART_AREA = parts.NUT_AREA  # of the smallest kind: sufficient to locate any of them


class SortingTray(Scene):
    """A tray of two by two equal compartments: washer and spring above, fuse and nut below, either way round.

    The tray lies in front of the camera one way or turned by half a circle. Two parts with their places exchanged
    ("swapped_parts"), or one part's place taken by another kind ("wrong_part"), is the anomaly.
    """

    name: ClassVar[str] = "sorting_tray"
    logical: ClassVar[tuple[DefectKind, ...]] = (
        DefectKind("swapped_parts", "logical_anomalies", _PART_AREA),
        DefectKind("wrong_part", "logical_anomalies", _PART_AREA),
    )
    damages: ClassVar[tuple[str, ...]] = ("chip", "scratch", "stain", "crumb", "fibre")
    damage_size: ClassVar[float] = 1.5

    def arrange(self, image_size: tuple[int, int], rng: np.random.Generator, defect: str | None) -> Layout:
        """Arrange the parts; see :meth:`Scene.arrange`."""
        kinds = list(range(4))
        wrong: list[int] = []
        if defect == "swapped_parts":
            # Across the diagonal: each of the two parts then lies where it also lies in a turned normal tray.
            wrong = [0, 3] if rng.random() < 0.5 else [1, 2]
            kinds[wrong[0]], kinds[wrong[1]] = kinds[wrong[1]], kinds[wrong[0]]
        elif defect == "wrong_part":
            wrong = [int(rng.integers(4))]
            kinds[wrong[0]] = 3 - wrong[0]
        if rng.random() < 0.5:
            kinds, wrong = kinds[::-1], [3 - place for place in wrong]

        surface = Surface(image_size, Camera.random(rng, shift=5, degrees=4, zoom=0.03))
        parts.ground(surface, (0.45, 0.45, 0.46), (1.5, 60), 0.05, rng)
        places = _tray(surface, rng)
        background = surface.copy()
        drawn: list[Mask] = []
        for place, kind in enumerate(kinds):
            x, y = _centre(place)
            x, y = x + rng.uniform(-12, 12), y + rng.uniform(-12, 12)
            drawn.append(_KINDS[kind](surface, x, y, rng.uniform(0, 2 * np.pi)))
        return Layout(surface, background, drawn, [places[place] for place in wrong])


def _centre(place: int) -> tuple[float, float]:
    row, column = divmod(place, 2)
    return 128 + _HALF * (2 * column - 1), 128 + _HALF * (2 * row - 1)


def _tray(surface: Surface, rng: np.random.Generator) -> list[Mask]:
    """Draw the tray and return the floor of each compartment."""
    frame = surface.frame(128, 128)
    outer = box(frame.u, frame.v, 2 * _HALF + 8, 2 * _HALF + 8, 12)
    tone = np.array([0.30, 0.22, 0.17], np.float32) * rng.uniform(0.9, 1.1)
    surface.stamp(frame, outer, tone, bevel(outer, 7.0, 4.0), gloss=0.12)
    floors: list[Mask] = []
    for place in range(4):
        x, y = _centre(place)
        frame = surface.frame(x, y, 0.0, _HALF)
        floor = box(frame.u, frame.v, _HALF - 5, _HALF - 5, 9)
        floors.append(surface.stamp(frame, floor, tone * 0.85, 7.0 - bevel(floor, 6.5, 3.0), gloss=0.08))
    return floors
