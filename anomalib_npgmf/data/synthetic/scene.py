"""Base class of a category of drawn images: its rule and its defects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from . import damage
from .surface import UNITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .surface import Mask, Surface

AnomalyType = Literal["logical_anomalies", "structural_anomalies"]


@dataclass(frozen=True)
class DefectKind:
    """One entry of a category's `defects_config.json`.

    Args:
        name: Name of the defect.
        anomaly_type: Folder of the images that show it.
        area: Saturation area in square scene units, or None where the whole mask has to be found (relative
            saturation of 1).
    """

    name: str
    anomaly_type: AnomalyType
    area: float | None = None

    def saturation(self, image_size: tuple[int, int]) -> tuple[float, bool]:
        """Saturation threshold and whether it is relative to the mask's area.

        Args:
            image_size: Height and width of the drawn images, pixels.

        Returns:
            (1.0, True), or the saturation area in pixels and False.

        Example:
            >>> DefectKind("extra_nut", "logical_anomalies", area=100.0).saturation((512, 512))
            (400, False)
        """
        if self.area is None:
            return 1.0, True
        return round(self.area * (min(image_size) / UNITS) ** 2), False


@dataclass(frozen=True)
class Drawing:
    """A finished image.

    Args:
        image: RGB image of shape (H, W, 3).
        masks: One boolean mask (H, W) per defect; empty for a normal image.
    """

    image: NDArray[np.uint8]
    masks: list[NDArray[np.bool_]]


@dataclass
class Layout:
    """A scene before damage and light.

    Args:
        surface: The scene.
        background: The same without its parts.
        parts: Mask of each part that damage may hit, (H, W) of the surface each.
        masks: Mask of each defect shown so far, likewise.
    """

    surface: Surface
    background: Surface
    parts: list[Mask]
    masks: list[Mask]


class Scene(ABC):
    """A category: its normal images, logical anomalies and damages.

    Attributes:
        name: Name of the category, words joined by underscores.
        logical: Its logical defects. They show normal parts only, drawn by the same code as in normal images.
        damages: Names of the structural defects it can show, those of :data:`damage.DAMAGES` or its own.
        damage_size: Relative size of the damage, larger where parts are small and at random poses.
    """

    name: ClassVar[str]
    logical: ClassVar[tuple[DefectKind, ...]]
    damages: ClassVar[tuple[str, ...]]
    damage_size: ClassVar[float] = 1.0

    def defect_kinds(self) -> list[DefectKind]:
        """All defects of the category, logical ones first."""
        return [*self.logical, *(DefectKind(name, "structural_anomalies") for name in self.damages)]

    def draw(self, image_size: tuple[int, int], rng: np.random.Generator, defect: str | None = None) -> Drawing:
        """Draw one image.

        Args:
            image_size: Height and width, pixels.
            rng: Source of everything that varies.
            defect: Name of the defect to show, None for a normal picture.

        Returns:
            The picture and a mask for each of its defects.
        """
        layout = self.arrange(image_size, rng, defect)
        masks = layout.masks
        if defect in damage.DAMAGES:
            part = layout.parts[rng.integers(len(layout.parts))]
            masks = [damage.apply(defect, layout.surface, layout.background, part, self.damage_size, rng)]
        return Drawing(layout.surface.photograph(rng), [layout.surface.to_image_mask(mask) for mask in masks])

    @abstractmethod
    def arrange(self, image_size: tuple[int, int], rng: np.random.Generator, defect: str | None) -> Layout:
        """Arrange the parts.

        Args:
            image_size: Height and width, pixels.
            rng: Source of everything that varies.
            defect: Name of the defect; those of :data:`damage.DAMAGES` are added afterwards.
        """
