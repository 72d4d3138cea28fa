"""Category filled_vials: three vials contain the same amount of the same liquid."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from . import parts
from .scene import DefectKind, Layout, Scene
from .shapes import bevel, box, disc
from .surface import Camera, Frame, Surface

if TYPE_CHECKING:
    from .surface import Array, Mask

_LIQUIDS = ((0.66, 0.36, 0.10), (0.20, 0.42, 0.50), (0.50, 0.18, 0.30))
_COLUMNS = (50.0, 128.0, 206.0)
_HALF_WIDTH = 24.0
_TOP, _BOTTOM = -74.0, 84.0
"""Ends of the space for the liquid, scene units below the vial's middle."""


class FilledVials(Scene):
    """Three vials with the same random fill level and liquid; in a logical anomaly one has clearly less or more."""

    name: ClassVar[str] = "filled_vials"
    logical: ClassVar[tuple[DefectKind, ...]] = (
        DefectKind("underfilled", "logical_anomalies"),
        DefectKind("overfilled", "logical_anomalies"),
    )
    damages: ClassVar[tuple[str, ...]] = ("scratch", "cracked_glass", "stain", "fibre", "crumb")
    damage_size: ClassVar[float] = 0.55

    def arrange(self, image_size: tuple[int, int], rng: np.random.Generator, defect: str | None) -> Layout:
        """Arrange the vials; see :meth:`Scene.arrange`."""
        colour = np.asarray(_LIQUIDS[rng.integers(len(_LIQUIDS))], np.float32)
        low, high = 0.25, 0.80
        # The deviating vial's level is in the range of normal ones: only the comparison with the others reveals it.
        change = rng.uniform(0.22, 0.36) * {"underfilled": -1, "overfilled": 1}.get(defect or "", 0)
        level = rng.uniform(low - min(change, 0), high - max(change, 0))
        levels = level + rng.uniform(-0.012, 0.012, 3)
        odd = int(rng.integers(3))
        levels[odd] += change

        surface = Surface(image_size, Camera.random(rng, shift=4, degrees=2, zoom=0.03))
        parts.ground(surface, (0.74, 0.74, 0.72), (9, 9), 0.015, rng)
        background = surface.copy()
        drawn: list[Mask] = []
        masks: list[Mask] = []
        for index, x in enumerate(_COLUMNS):
            frame = surface.frame(x + rng.uniform(-4, 4), 130 + rng.uniform(-3, 3), rng.uniform(-0.02, 0.02), (30, 110))
            drawn.append(_vial(surface, frame, float(levels[index]), colour))
            _droplets(surface, frame, rng)
            if change and index == odd:
                masks = [_between(surface, frame, level, level + change)]
            if defect == "cracked_glass" and index == odd:
                masks = [_crack(surface, frame, rng)]
        return Layout(surface, background, drawn, masks)


def _depth(level: float) -> float:
    """Position of a liquid's surface below the vial's middle, scene units."""
    return _BOTTOM + level * (_TOP - _BOTTOM)


def _vial(surface: Surface, frame: Frame, level: float, colour: Array) -> Mask:
    """Draw an upright vial (axis along v) and return the points of its glass."""
    x, y = frame.u, frame.v
    glass = box(x, y - 4, _HALF_WIDTH, 86, 9)
    round_body = np.sqrt(np.maximum(1 - (x / (_HALF_WIDTH + 1)) ** 2, 0))
    behind = surface.albedo[frame.window].copy()
    # Glass is seen edge-on near its sides: thicker, hence darker.
    clear = behind * (0.62 + 0.34 * round_body[..., None]) * np.array([0.95, 1.0, 0.98], np.float32)
    mask = surface.stamp(frame, glass, clear, 1 + 9 * round_body, gloss=0.30)
    surface_line = _depth(level) - 2.0 * (1 - round_body)  # the meniscus climbs the wall
    liquid = np.maximum(box(x, y - 5, _HALF_WIDTH - 2.5, 82, 7), surface_line - y)
    tone = colour * (0.70 + 0.30 * round_body[..., None])
    tone = np.where((y < surface_line + 2.2)[..., None], tone * 0.72, tone)
    surface.stamp(frame, liquid, tone, 1 + 9 * round_body, gloss=0.30)
    cap = box(x, y + 92, _HALF_WIDTH - 3, 12, 3)
    ridges = 0.5 * np.cos(x * (2 * np.pi / 4.0))
    surface.stamp(frame, cap, (0.22, 0.23, 0.25), 2 + 11 * round_body + ridges + bevel(cap, 1.5, 2), gloss=0.12)
    return mask


def _droplets(surface: Surface, frame: Frame, rng: np.random.Generator) -> None:
    """Draw a few drops and air bubbles on the glass."""
    for _ in range(rng.integers(1, 8)):
        x, y = rng.uniform(-17, 17), rng.uniform(_TOP, _BOTTOM - 6)
        body = disc(frame.u - x, frame.v - y, rng.uniform(1.2, 2.8))
        tone = np.minimum(surface.albedo[frame.window] * 1.3 + 0.06, 1)
        height = surface.height[frame.window] + bevel(body, 1.5, 2.0)
        surface.stamp(frame, body, tone, height, gloss=0.5)


def _between(surface: Surface, frame: Frame, first: float, second: float) -> Mask:
    """Points of the vial between two fill levels."""
    middle, half = (_depth(first) + _depth(second)) / 2, abs(_depth(first) - _depth(second)) / 2
    mask = np.zeros(surface.height.shape, bool)
    mask[frame.window] = box(frame.u, frame.v - middle, _HALF_WIDTH - 2.5, half) < 0
    return mask


def _crack(surface: Surface, frame: Frame, rng: np.random.Generator) -> Mask:
    """Draw a jagged crack with a branch into the glass."""
    start = rng.uniform(-50, 40)
    knots = np.linspace(-18, 18, 7)
    jag = np.interp(frame.u, knots, start + rng.uniform(-7, 7, 7) + knots * rng.uniform(-0.6, 0.6))
    distance = np.maximum(np.abs(frame.v - jag) * 0.8 - 0.6, np.abs(frame.u) - rng.uniform(7, 13))
    tone = surface.albedo[frame.window] * 0.6 + 0.3
    return surface.stamp(frame, distance, tone, surface.height[frame.window] - 0.5, gloss=0.4)
