"""Signed distance functions (negative inside) and height profiles of simple bodies, in scene units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def disc(u: Array, v: Array, radius: float) -> Array:
    """Distance to a disc around the origin.

    Example:
        >>> float(disc(np.float32(3), np.float32(4), 2.0))
        3.0
    """
    return np.hypot(u, v) - radius


def box(u: Array, v: Array, half_length: float, half_width: Array | float, corner: float = 0.0) -> Array:
    """Distance to a rectangle with rounded corners.

    Example:
        >>> float(box(np.float32(7), np.float32(0), 5.0, 2.0))
        2.0
    """
    a, b = np.abs(u) - half_length + corner, np.abs(v) - half_width + corner
    return np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - corner


def capsule(u: Array, v: Array, half_length: float, radius: float) -> Array:
    """Distance to a stadium along u; `half_length` is that of its straight part."""
    return np.hypot(u - np.clip(u, -half_length, half_length), v) - radius


def hexagon(u: Array, v: Array, inradius: float) -> Array:
    """Distance to a regular hexagon (exact inside and along the edges)."""
    a, b = np.abs(u), np.abs(v)
    return np.maximum(b, a * np.float32(np.sqrt(0.75)) + b * 0.5) - inradius


def bevel(distance: Array, thickness: float, width: float) -> Array:
    """Height of a flat body whose edge is rounded over `width`."""
    inside = np.clip(-distance / width, 0, 1)
    return thickness * np.sqrt(1 - (1 - inside) ** 2)


def noise(shape: tuple[int, ...], cell: tuple[float, float], rng: np.random.Generator) -> Array:
    """Smooth random field with unit variance.

    Args:
        shape: Rows and columns.
        cell: Size of its grain in rows and columns, pixels.
        rng: Source of randomness.

    Returns:
        Field of the given shape, cubic interpolation of white noise.
    """
    rows, columns = shape[:2]
    coarse = (max(2, round(rows / cell[0]) + 1), max(2, round(columns / cell[1]) + 1))
    field = cv2.resize(rng.standard_normal(coarse, np.float32), (columns, rows), interpolation=cv2.INTER_CUBIC)
    return field / max(float(field.std()), 1e-6)


def blob(u: Array, v: Array, radius: float, rng: np.random.Generator) -> Array:
    """Distance-like function of an irregular patch around the origin."""
    angle = np.arctan2(v, u)
    wobble = sum(rng.uniform(-0.28, 0.28) / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3, 4, 5))
    return np.hypot(u, v) - radius * (1 + wobble)
