"""Local damage to drawn parts: the structural anomalies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from .shapes import bevel, blob, capsule, noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from .surface import Mask, Surface


def scratch(surface: Surface, x: float, y: float, size: float, rng: np.random.Generator) -> Mask:
    """Draw a scratch: a slightly bent groove, bright on dark parts and dark on bright ones."""
    half, bend = size * rng.uniform(9, 16), rng.uniform(-0.012, 0.012)
    frame = surface.frame(x, y, rng.uniform(0, np.pi), reach=half + 4)
    distance = capsule(frame.u, frame.v - bend * frame.u**2, half, size**0.5 * rng.uniform(0.8, 1.2))
    below = surface.height[frame.window]
    tone = surface.albedo[frame.window]
    bright = tone.mean() < 0.6
    return surface.stamp(frame, distance, tone * 0.4 + (0.5 if bright else 0.0), below - 0.8, gloss=0.2)


def dent(surface: Surface, x: float, y: float, size: float, rng: np.random.Generator) -> Mask:
    """Draw a dent with a raised rim."""
    radius = size * rng.uniform(6, 9)
    frame = surface.frame(x, y, rng.uniform(0, np.pi), reach=2 * radius)
    r2 = (frame.u**2 + (1.3 * frame.v) ** 2) / radius**2
    surface.height[frame.window] -= size * rng.uniform(4.0, 5.5) * (1 - 0.6 * r2) * np.exp(-1.5 * r2)
    mask = np.zeros(surface.height.shape, bool)
    mask[frame.window] = r2 < 1.4  # the rim's outer foot
    return mask


def stain(surface: Surface, x: float, y: float, size: float, rng: np.random.Generator) -> Mask:
    """Draw a dark, oily stain."""
    frame = surface.frame(x, y, rng.uniform(0, np.pi), reach=16 * size)
    distance = blob(frame.u, frame.v, size * rng.uniform(6, 9), rng)
    colour = np.array([0.30, 0.20, 0.10], np.float32) * rng.uniform(0.6, 1.2)
    height = surface.height[frame.window].copy()
    return surface.stamp(frame, distance, colour, height, gloss=0.15, opacity=rng.uniform(0.65, 0.85))


def crumb(surface: Surface, x: float, y: float, size: float, rng: np.random.Generator) -> Mask:
    """Draw a foreign crumb on top."""
    frame = surface.frame(x, y, rng.uniform(0, np.pi), reach=11 * size)
    distance = blob(frame.u, frame.v, size * rng.uniform(4.0, 6.0), rng)
    grain = noise(distance.shape, (5, 5), rng)[..., None]
    colour = np.array(_CRUMBS[rng.integers(len(_CRUMBS))], np.float32) * (1 + 0.12 * grain)
    height = surface.height[frame.window].max() + bevel(distance, 3.5, 3.5) + 0.3 * grain[..., 0]
    return surface.stamp(frame, distance, colour, height, gloss=0.05)


_CRUMBS = ((0.55, 0.38, 0.20), (0.22, 0.20, 0.18), (0.30, 0.36, 0.20), (0.62, 0.55, 0.42))


def fibre(surface: Surface, x: float, y: float, size: float, rng: np.random.Generator) -> Mask:
    """Draw a curled fibre on top."""
    length, curl = size * rng.uniform(13, 20), size * rng.uniform(3, 7)
    frame = surface.frame(x, y, rng.uniform(0, np.pi), reach=length + 12)
    wave = curl * np.sin(frame.u / length * rng.uniform(2.0, 3.5) + rng.uniform(0, 2 * np.pi))
    distance = capsule(frame.u, (frame.v - wave) * 0.75, length, size**0.5 * rng.uniform(0.7, 1.0))
    colour = (0.08, 0.08, 0.10) if surface.albedo[frame.window].mean() > 0.35 else (0.75, 0.72, 0.66)
    return surface.stamp(frame, distance, colour, surface.height[frame.window] + 1.2, gloss=0.05)


ON_TOP: dict[str, Callable[[Surface, float, float, float, np.random.Generator], Mask]] = {
    "scratch": scratch,
    "dent": dent,
    "stain": stain,
    "crumb": crumb,
    "fibre": fibre,
}
"""Damage inside a part; each function takes a point in scene units and returns the damaged pixels."""

DAMAGES = (*ON_TOP, "chip")
"""All kinds of damage."""


def apply(name: str, surface: Surface, background: Surface, part: Mask, size: float, rng: np.random.Generator) -> Mask:
    """Damage a part at a random position.

    Args:
        name: Key of :data:`ON_TOP`, or "chip": a piece of the part is broken off.
        surface: Scene to change in place.
        background: The same scene without its parts.
        part: Pixels of the part, shape (H, W) of the surface.
        size: Relative size; at 1 the longest damage, a fibre, is 0.10 to 0.16 of the scene long.
        rng: Random generator of position and appearance.

    Returns:
        The damaged pixels, shape (H, W).
    """
    if name == "chip":
        return _chip(surface, background, part, size, rng)
    x, y = _point(surface, cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 3) > 0.5 * _inradius(part), rng)
    return ON_TOP[name](surface, x, y, size, rng)


def _chip(surface: Surface, background: Surface, part: Mask, size: float, rng: np.random.Generator) -> Mask:
    """Break a piece off the edge of a part, where the ground becomes visible."""
    edge = part & ~cv2.erode(part.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    x, y = _point(surface, edge, rng)
    frame = surface.frame(x, y, rng.uniform(0, np.pi), reach=14 * size)
    bite = np.zeros_like(part)
    bite[frame.window] = blob(frame.u, frame.v, size * rng.uniform(6.5, 8.5), rng) < 0
    bite &= part
    for layer, bare in zip(surface.layers(), background.layers(), strict=True):
        layer[bite] = bare[bite]
    return bite


def _inradius(part: Mask) -> float:
    return float(cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 3).max())


def _point(surface: Surface, where: Mask, rng: np.random.Generator) -> tuple[float, float]:
    rows, columns = np.nonzero(where)
    chosen = rng.integers(len(rows))
    return surface.to_scene(float(rows[chosen]), float(columns[chosen]))
