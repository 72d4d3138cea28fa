"""Category tablet_dish: four round tablets and three capsules at random positions in a dish."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from . import parts
from .scatter import Outline, scatter
from .scene import DefectKind, Layout, Scene
from .shapes import bevel, capsule, disc
from .surface import Camera, Surface

if TYPE_CHECKING:
    from .surface import Mask

_TABLET_AREA = 585.0
_CAPSULE_AREA = 700.0
_LID = (0.60, 0.34, 0.16)
_SHELL = (0.74, 0.58, 0.30)


class TabletDish(Scene):
    """Four round tablets and three capsules at random positions; a logical anomaly has one too few or too many."""

    name: ClassVar[str] = "tablet_dish"
    logical: ClassVar[tuple[DefectKind, ...]] = (
        DefectKind("missing_tablet", "logical_anomalies", _TABLET_AREA),
        DefectKind("extra_tablet", "logical_anomalies", _TABLET_AREA),
        DefectKind("missing_capsule", "logical_anomalies", _CAPSULE_AREA),
        DefectKind("extra_capsule", "logical_anomalies", _CAPSULE_AREA),
    )
    damages: ClassVar[tuple[str, ...]] = ("crumb", "chip", "stain", "scratch", "fibre")
    damage_size: ClassVar[float] = 1.5

    def arrange(self, image_size: tuple[int, int], rng: np.random.Generator, defect: str | None) -> Layout:
        """Arrange the dish; see :meth:`Scene.arrange`."""
        tablets = 4 + (defect == "extra_tablet") - (defect == "missing_tablet")
        capsules = 3 + (defect == "extra_capsule") - (defect == "missing_capsule")
        surface = Surface(image_size, Camera.random(rng, shift=5, degrees=20, zoom=0.03))
        parts.ground(surface, (0.34, 0.40, 0.36), (5, 5), 0.04, rng)
        floor = _dish(surface, rng)
        background = surface.copy()

        # The square inside the round floor; its corners touch the wall.
        places = scatter([Outline(13.5, 13)] * capsules + [Outline(0, 18)] * tablets, 80, 80, rng)
        drawn = [_capsule(surface, p.x, p.y, p.angle) for p in places[:capsules]]
        drawn += [_tablet(surface, p.x, p.y, p.angle) for p in places[capsules:]]

        masks: list[Mask] = []
        if defect in ("missing_tablet", "missing_capsule"):
            masks = [floor]  # the part could lie anywhere in the dish
        elif defect == "extra_capsule":
            masks = [np.logical_or.reduce(drawn[:capsules])]  # any of them may be the one too many
        elif defect == "extra_tablet":
            masks = [np.logical_or.reduce(drawn[capsules:])]
        return Layout(surface, background, drawn, masks)


def _dish(surface: Surface, rng: np.random.Generator) -> Mask:
    frame = surface.frame(128, 128)
    outer, inner = disc(frame.u, frame.v, 119), disc(frame.u, frame.v, 110)
    tone = np.array([0.55, 0.56, 0.58], np.float32) * rng.uniform(0.92, 1.08)
    # Turned on a lathe: fine rings around the middle.
    ring = np.sin(np.hypot(frame.u, frame.v) * rng.uniform(1.4, 1.8))[..., None]
    surface.stamp(frame, outer, tone * (1 + 0.012 * ring), 0.03 * ring[..., 0], gloss=0.12)
    rim = np.maximum(outer, -inner)
    surface.stamp(frame, rim, tone, bevel(rim, 6.0, 4.5), gloss=0.25)
    mask = np.zeros(surface.height.shape, bool)
    mask[frame.window] = inner < 0
    return mask


def _tablet(surface: Surface, x: float, y: float, angle: float) -> Mask:
    frame = surface.frame(x, y, angle, 18)
    body = disc(frame.u, frame.v, 13.5)
    score = np.exp(-((frame.v / 0.9) ** 2))
    return surface.stamp(frame, body, (0.86, 0.84, 0.80), 1 + bevel(body, 5.0, 4.0) - 0.8 * score, gloss=0.1)


def _capsule(surface: Surface, x: float, y: float, angle: float) -> Mask:
    frame = surface.frame(x, y, angle, (25, 12))
    body = capsule(frame.u, frame.v, 13.5, 8.5)
    lid = (frame.u > 1)[..., None]
    tone = np.where(lid, np.array(_LID, np.float32), np.array(_SHELL, np.float32))
    relief = 1 + np.sqrt(np.clip(-body * (17 + body), 0, None)) * 0.9 + 0.5 * lid[..., 0]
    return surface.stamp(frame, body, tone, relief, gloss=0.45)
