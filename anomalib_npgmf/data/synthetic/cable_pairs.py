"""Category cable_pairs: the two plugs of a cable have the same colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from . import parts
from .scene import DefectKind, Layout, Scene
from .shapes import bevel, box
from .surface import Camera, Surface

if TYPE_CHECKING:
    from .surface import Mask

_COLOURS = ((0.66, 0.14, 0.12), (0.14, 0.30, 0.62), (0.80, 0.62, 0.12), (0.16, 0.46, 0.24))
_PLUG_AREA = 1800.0
_ROWS = (76.0, 180.0)
_ENDS = (42.0, 214.0)


class CablePairs(Scene):
    """Two cables; each has plugs of one colour at both ends, the two cables differ.

    The logical anomaly is a wrong colour at one end: a third colour ("wrong_plug"), or the colours of the two cables
    exchanged ("crossed_plugs"). Each plug alone is normal at its position.
    """

    name: ClassVar[str] = "cable_pairs"
    logical: ClassVar[tuple[DefectKind, ...]] = (
        DefectKind("wrong_plug", "logical_anomalies", _PLUG_AREA),
        DefectKind("crossed_plugs", "logical_anomalies", _PLUG_AREA),
    )
    damages: ClassVar[tuple[str, ...]] = ("scratch", "dent", "chip", "stain", "crumb")

    def arrange(self, image_size: tuple[int, int], rng: np.random.Generator, defect: str | None) -> Layout:
        """Arrange the cables; see :meth:`Scene.arrange`."""
        first, second, other = (int(c) for c in rng.permutation(len(_COLOURS))[:3])
        left, right = [first, second], [first, second]
        wrong: list[int] = []
        if defect == "wrong_plug":
            wrong = [int(rng.integers(2))]
            (right if rng.random() < 0.5 else left)[wrong[0]] = other
        elif defect == "crossed_plugs":
            wrong, right = [0, 1], right[::-1]

        surface = Surface(image_size, Camera.random(rng, shift=4, degrees=3, zoom=0.03))
        parts.ground(surface, (0.62, 0.60, 0.56), (4, 4), 0.035, rng)
        background = surface.copy()
        drawn: list[Mask] = []
        masks: list[Mask] = []
        for row, y in enumerate(_ROWS):
            ends = [(x + rng.uniform(-5, 5), y + rng.uniform(-9, 9)) for x in _ENDS]
            _cable(surface, ends[0], ends[1], rng)
            tilts = rng.uniform(-0.1, 0.1, 2)
            plugs = [
                _plug(surface, *ends[0], np.pi + tilts[0], left[row]),
                _plug(surface, *ends[1], tilts[1], right[row]),
            ]
            drawn += plugs
            if row in wrong:
                masks.append(plugs[0] | plugs[1])  # either end may be the wrong one
        return Layout(surface, background, drawn, masks)


def _plug(surface: Surface, x: float, y: float, angle: float, colour: int) -> Mask:
    """Draw a plug whose contacts point along its axis."""
    frame = surface.frame(x, y, angle, 50)
    for offset in (-9.0, 0.0, 9.0):
        pin = box(frame.u - 27, frame.v - offset, 8, 2.2, 1)
        surface.stamp(frame, pin, parts.BRASS, 4 + bevel(pin, 2.5, 2.0), gloss=0.5)
    body = box(frame.u, frame.v, 23, 19.5, 5)
    grip = np.cos(frame.u * (2 * np.pi / 5.0)) * (np.abs(frame.u + 6) < 10)
    tone = np.asarray(_COLOURS[colour], np.float32) * (1 + 0.05 * grip[..., None])
    return surface.stamp(frame, body, tone, 2 + bevel(body, 8.0, 5.0) + 0.5 * grip, gloss=0.2)


def _cable(surface: Surface, start: tuple[float, float], end: tuple[float, float], rng: np.random.Generator) -> None:
    """Draw a black cable between two plugs, with a free bend."""
    middle, half = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2), (end[0] - start[0]) / 2
    frame = surface.frame(*middle, float(np.arctan2(end[1] - start[1], end[0] - start[0])), half + 8)
    phase = np.clip(frame.u / half, -1, 1) * np.pi / 2
    sag, swing = rng.uniform(-16, 16), rng.uniform(-9, 9)
    path = sag * np.cos(phase) ** 2 + swing * np.sin(2 * phase)
    slope = (-sag * np.sin(2 * phase) + 2 * swing * np.cos(2 * phase)) * np.pi / 2 / half
    across = (frame.v - path) / np.hypot(1, slope)
    distance = np.maximum(np.abs(across) - 4.0, np.abs(frame.u) - half)
    relief = 1 + np.sqrt(np.maximum(4.0**2 - across**2, 0)) * 1.3
    surface.stamp(frame, distance, (0.10, 0.10, 0.11), relief, gloss=0.2)
