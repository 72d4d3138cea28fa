"""Category loose_screws: three screws and four nuts at random positions in a tray."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from . import parts
from .scatter import Outline, scatter
from .scene import DefectKind, Layout, Scene
from .surface import Camera, Surface

if TYPE_CHECKING:
    from .surface import Mask


class LooseScrews(Scene):
    """Three screws and four nuts at random positions and angles; a logical anomaly has one too few or too many."""

    name: ClassVar[str] = "loose_screws"
    logical: ClassVar[tuple[DefectKind, ...]] = (
        DefectKind("missing_screw", "logical_anomalies", parts.SCREW_AREA),
        DefectKind("extra_screw", "logical_anomalies", parts.SCREW_AREA),
        DefectKind("missing_nut", "logical_anomalies", parts.NUT_AREA),
        DefectKind("extra_nut", "logical_anomalies", parts.NUT_AREA),
    )
    damages: ClassVar[tuple[str, ...]] = ("bent_screw", "chip", "stain", "crumb", "fibre")
    damage_size: ClassVar[float] = 1.4

    def arrange(self, image_size: tuple[int, int], rng: np.random.Generator, defect: str | None) -> Layout:
        """Arrange the tray; see :meth:`Scene.arrange`."""
        screws = 3 + (defect == "extra_screw") - (defect == "missing_screw")
        nuts = 4 + (defect == "extra_nut") - (defect == "missing_nut")
        surface = Surface(image_size, Camera.random(rng, shift=4, degrees=4, zoom=0.03))
        parts.ground(surface, (0.50, 0.42, 0.33), (2, 30), 0.06, rng)
        floor = parts.tray(surface, 110, 110, (0.30, 0.34, 0.38), rng)
        background = surface.copy()

        outlines = [Outline(22, 13)] * screws + [Outline(0, parts.NUT_RADIUS + 5)] * nuts
        places = scatter(outlines, 108, 108, rng)
        bend = rng.choice((-1, 1)) * rng.uniform(0.012, 0.018) if defect == "bent_screw" else 0.0
        drawn: list[Mask] = [
            parts.screw(surface, p.x, p.y, p.angle, bend if i == 0 else 0.0) for i, p in enumerate(places[:screws])
        ]
        drawn += [parts.nut(surface, p.x, p.y, p.angle) for p in places[screws:]]

        masks: list[Mask] = []
        if defect in ("missing_screw", "missing_nut"):
            masks = [floor]  # the part could lie anywhere in the tray
        elif defect == "extra_screw":
            masks = [np.logical_or.reduce(drawn[:screws])]  # any of them may be the one too many
        elif defect == "extra_nut":
            masks = [np.logical_or.reduce(drawn[screws:])]
        elif defect == "bent_screw":
            masks = [drawn[0]]
        return Layout(surface, background, drawn, masks)
