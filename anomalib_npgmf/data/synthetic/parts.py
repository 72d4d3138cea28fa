"""Parts used by several categories: screws, nuts, washers, springs, fuses, and the ground below them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .shapes import bevel, box, capsule, disc, hexagon, noise

if TYPE_CHECKING:
    from .surface import Mask, Surface

Colour = tuple[float, float, float]

STEEL: Colour = (0.60, 0.61, 0.62)
BRASS: Colour = (0.68, 0.55, 0.28)

SCREW_RADIUS = 29.0
"""Half the length of a screw, scene units."""
NUT_RADIUS = 13.0
"""Radius of the circle around a nut, scene units."""
SCREW_AREA = 585.0
"""Area of a screw seen from above, square scene units."""
NUT_AREA = 360.0
"""Area of a nut seen from above, square scene units."""


def screw(surface: Surface, x: float, y: float, angle: float, bend: float = 0.0) -> Mask:
    """Lay a screw on the ground.

    Args:
        surface: Scene to draw into.
        x: Position of its middle, scene units.
        y: Position of its middle, scene units.
        angle: Direction of its axis, radians.
        bend: Curvature of its axis, 1 / scene units; 0 is straight.

    Returns:
        The points that it covers.
    """
    frame = surface.frame(x, y, angle, (SCREW_RADIUS + 3, 12 + abs(bend) * SCREW_RADIUS**2))
    u, v = frame.u, frame.v - bend * frame.u**2
    thread = np.sin((u + 0.5 * v) * (2 * np.pi / 3.4))
    shaft = box(u - 5, v, 23, 4.2 + 0.3 * thread, 1.5)
    relief = 1 + np.sqrt(np.maximum(4.2**2 - v**2, 0)) + 0.45 * thread
    tone = np.asarray(STEEL, np.float32) * (0.92 + 0.10 * thread[..., None])
    mask = surface.stamp(frame, shaft, tone, relief, gloss=0.35)
    head = box(u + 23, v, 5.5, 8.5, 2.5)
    mask |= surface.stamp(frame, head, STEEL, 1 + bevel(head, 6.5, 5), gloss=0.4)
    return mask


def nut(surface: Surface, x: float, y: float, angle: float) -> Mask:
    """Lay a hexagon nut on the ground."""
    frame = surface.frame(x, y, angle, NUT_RADIUS + 3)
    hole = disc(frame.u, frame.v, 6.0)
    body = np.maximum(hexagon(frame.u, frame.v, 11.5), -hole)
    return surface.stamp(frame, body, BRASS, 1 + bevel(body, 5.0, 2.2), gloss=0.35)


def washer(surface: Surface, x: float, y: float, angle: float) -> Mask:
    """Lay a flat washer on the ground."""
    frame = surface.frame(x, y, angle, 20)
    ring = np.maximum(disc(frame.u, frame.v, 16.0), -disc(frame.u, frame.v, 7.5))
    return surface.stamp(frame, ring, STEEL, 1 + bevel(ring, 2.2, 1.5), gloss=0.35)


def spring(surface: Surface, x: float, y: float, angle: float) -> Mask:
    """Lay a coil spring on the ground, seen from its side."""
    frame = surface.frame(x, y, angle, (25, 13))
    phase = frame.u * (2 * np.pi / 6.5)
    # Dividing by the local slope turns the vertical offset from the wire's wave into a distance.
    slope = np.hypot(1, 8.0 * (2 * np.pi / 6.5) * np.cos(phase))
    wire = np.maximum(np.abs(frame.v - 8.0 * np.sin(phase)) / slope - 1.25, np.abs(frame.u) - 21)
    relief = 2 + np.sqrt(np.maximum(9.5**2 - frame.v**2, 0)) * 0.7
    return surface.stamp(frame, wire, STEEL, relief, gloss=0.35)


def fuse(surface: Surface, x: float, y: float, angle: float) -> Mask:
    """Lay a ceramic fuse with brass caps on the ground."""
    frame = surface.frame(x, y, angle, (26, 11))
    body = capsule(frame.u, frame.v, 15.0, 7.0)
    caps = (np.abs(frame.u) > 12)[..., None]
    tone = np.where(caps, np.asarray(BRASS, np.float32), np.array([0.80, 0.77, 0.70], np.float32))
    relief = 1 + np.sqrt(np.maximum(7.0**2 - frame.v**2, 0)) + 0.6 * caps[..., 0]
    return surface.stamp(frame, body, tone, relief, gloss=0.3)


def ground(
    surface: Surface,
    colour: Colour,
    grain: tuple[float, float],
    roughness: float,
    rng: np.random.Generator,
    relief: float = 0.12,
) -> None:
    """Cover the whole surface with a material; its tone and texture vary at random.

    Args:
        surface: Scene to draw into.
        colour: Mean reflectance.
        grain: Rows and columns of one grain, scene units; unequal for brushed or woven materials.
        roughness: Standard deviation of the relative reflectance.
        rng: Source of the variation.
        relief: Standard deviation of its height, scene units.
    """
    shape = surface.height.shape
    unit = min(shape) / 256
    fine = noise(shape, (grain[0] * unit, grain[1] * unit), rng)
    coarse = noise(shape, (40 * unit, 40 * unit), rng)
    tint = np.asarray(colour, np.float32) * rng.uniform(0.9, 1.1) * rng.uniform(0.97, 1.03, 3)
    surface.albedo[:] = tint * (1 + roughness * (fine + 0.5 * coarse))[..., None]
    surface.height[:] = relief * fine
    surface.gloss[:] = 0.03


def tray(surface: Surface, half_width: float, half_height: float, floor: Colour, rng: np.random.Generator) -> Mask:
    """Put a shallow plastic tray on the ground.

    Args:
        surface: Scene to draw into.
        half_width: Half of its inner width, scene units.
        half_height: Half of its inner height, scene units.
        floor: Colour of the plastic.
        rng: Source of its grain.

    Returns:
        The points of its floor.
    """
    frame = surface.frame(128, 128)
    outer = box(frame.u, frame.v, half_width + 7, half_height + 7, 12)
    inner = box(frame.u, frame.v, half_width, half_height, 8)
    grain = noise(outer.shape, (5, 5), rng)
    tone = np.asarray(floor, np.float32) * (rng.uniform(0.92, 1.08) + 0.02 * grain[..., None])
    rim = np.maximum(outer, -inner)
    surface.stamp(frame, outer, tone, 0.1 * grain, gloss=0.08)
    surface.stamp(frame, rim, tone, bevel(rim, 6.0, 3.5), gloss=0.15)
    mask = np.zeros(surface.height.shape, bool)
    mask[frame.window] = inner < 0
    return mask
