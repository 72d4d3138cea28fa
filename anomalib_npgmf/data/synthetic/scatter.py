"""Random positions of loose parts that neither touch each other nor leave the ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Place:
    """Position and angle of a part.

    Args:
        x: Horizontal position, scene units.
        y: Vertical position, scene units.
        angle: Rotation, radians.
    """

    x: float
    y: float
    angle: float


@dataclass(frozen=True)
class Outline:
    """Outline of a part with its margin: a stadium.

    Args:
        half_length: Half the length of its axis, scene units.
        radius: Room around the axis, scene units.
    """

    half_length: float
    radius: float


def scatter(outlines: list[Outline], half_width: float, half_height: float, rng: np.random.Generator) -> list[Place]:
    """Find a place for every part around the centre of the scene.

    Args:
        outlines: Room that each part needs.
        half_width: Half the width of the area, scene units.
        half_height: Half its height.
        rng: Source of the places.

    Returns:
        One place per part, found by random trials, part by part; no two overlap.

    Raises:
        ValueError: If the parts do not fit.

    Example:
        >>> first, second = scatter([Outline(20, 8), Outline(0, 10)], 100, 100, np.random.default_rng(0))
        >>> bool(np.hypot(first.x - second.x, first.y - second.y) > 18)
        True
    """
    for _ in range(200):
        places = _attempt(outlines, half_width, half_height, rng)
        if places is not None:
            return places
    msg = f"{len(outlines)} parts do not fit into {2 * half_width:g} x {2 * half_height:g} units; use fewer parts."
    raise ValueError(msg)


def _attempt(
    outlines: list[Outline], half_width: float, half_height: float, rng: np.random.Generator
) -> list[Place] | None:
    places: list[Place] = []
    taken = np.empty((0, 3))
    for outline in outlines:
        for _ in range(60):
            place = Place(
                128 + rng.uniform(-half_width, half_width),
                128 + rng.uniform(-half_height, half_height),
                rng.uniform(0, 2 * np.pi),
            )
            discs = _discs(outline, place)
            inside = (np.abs(discs[:, :2] - 128) + discs[:, 2:] <= (half_width, half_height)).all()
            gaps = (
                np.linalg.norm(discs[:, None, :2] - taken[None, :, :2], axis=2) - discs[:, None, 2] - taken[None, :, 2]
            )
            if inside and (gaps > 0).all():
                break
        else:
            return None
        places.append(place)
        taken = np.vstack([taken, discs])
    return places


def _discs(outline: Outline, place: Place) -> np.ndarray:
    """Cover the outline with discs: rows of x, y, radius."""
    steps = np.linspace(-outline.half_length, outline.half_length, 7 if outline.half_length else 1)
    x, y = place.x + steps * np.cos(place.angle), place.y + steps * np.sin(place.angle)
    return np.stack([x, y, np.full_like(steps, outline.radius)], axis=1)
