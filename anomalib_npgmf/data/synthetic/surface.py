"""A drawn scene before it is lit: colour, height and gloss of every point, and the light that turns them into a photo.

Parts are stamped as signed distance functions, which gives anti-aliased edges at any pose without super-sampled
masks. Shading works on the finished height map, so parts, damage and background meet the same light and cast shadows on
each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Mask = NDArray[np.bool_]

UNITS = 256
"""Side of the square scene in scene units; the shorter side of the image shows it whole."""

_SUPERSAMPLING = 2


@dataclass(frozen=True)
class Camera:
    """Pose of the camera over the scene.

    Args:
        shift: Displacement of the scene in the image, scene units (x, y).
        angle: Rotation of the scene, radians.
        zoom: Magnification.
    """

    shift: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    zoom: float = 1.0

    @classmethod
    def random(cls, rng: np.random.Generator, shift: float, degrees: float, zoom: float) -> Camera:
        """Draw a pose; each argument is the largest difference from the straight view."""
        return cls(
            shift=(rng.uniform(-shift, shift), rng.uniform(-shift, shift)),
            angle=np.deg2rad(rng.uniform(-degrees, degrees)),
            zoom=rng.uniform(1 - zoom, 1 + zoom),
        )


@dataclass(frozen=True)
class Frame:
    """Coordinates of a part on the part of the surface that it can reach.

    Args:
        window: Row and column slice of the surface.
        u: Coordinate along the part's axis, scene units, shape (h, w).
        v: Coordinate across it, same shape.
        pixel: Size of a surface pixel in scene units.
    """

    window: tuple[slice, slice]
    u: Array
    v: Array
    pixel: float


class Surface:
    """Colour, height and gloss of a scene, in arrays of twice the image's height and width.

    Args:
        image_size: Height and width of the image to photograph, pixels.
        camera: Pose of the camera.

    Attributes:
        albedo: Reflectance, shape (H, W, 3), RGB in [0, 1].
        height: Height above the table, shape (H, W), scene units.
        gloss: Strength of the highlight, shape (H, W), in [0, 1].

    Example:
        >>> surface = Surface((64, 96), Camera())
        >>> frame = surface.frame(128, 128)
        >>> part = surface.stamp(frame, np.hypot(frame.u, frame.v) - 40, (0.8, 0.2, 0.2), height=4.0)
        >>> surface.to_image_mask(part).shape
        (64, 96)
        >>> surface.photograph(np.random.default_rng(0)).shape
        (64, 96, 3)
    """

    def __init__(self, image_size: tuple[int, int], camera: Camera) -> None:
        self.image_size = image_size
        self._camera = camera
        rows, columns = (side * _SUPERSAMPLING for side in image_size)
        self._pixels_per_unit = min(rows, columns) / UNITS
        self._centre = (columns / 2, rows / 2)
        self.albedo: Array = np.full((rows, columns, 3), 0.5, np.float32)
        self.height: Array = np.zeros((rows, columns), np.float32)
        self.gloss: Array = np.zeros((rows, columns), np.float32)

    def copy(self) -> Surface:
        """Return an independent copy."""
        twin = Surface(self.image_size, self._camera)
        twin.albedo, twin.height, twin.gloss = self.albedo.copy(), self.height.copy(), self.gloss.copy()
        return twin

    def layers(self) -> tuple[Array, Array, Array]:
        """Return albedo, height and gloss, not copied."""
        return self.albedo, self.height, self.gloss

    def to_scene(self, row: float, column: float) -> tuple[float, float]:
        """Convert a pixel of the arrays to scene units (x, y)."""
        camera, scale = self._camera, self._pixels_per_unit
        dx = (column + 0.5 - self._centre[0]) / scale - camera.shift[0]
        dy = (row + 0.5 - self._centre[1]) / scale - camera.shift[1]
        cos, sin = np.cos(camera.angle), np.sin(camera.angle)
        return (
            float(UNITS / 2 + (cos * dx + sin * dy) / camera.zoom),
            float(UNITS / 2 + (cos * dy - sin * dx) / camera.zoom),
        )

    def frame(self, x: float, y: float, angle: float = 0.0, reach: float | tuple[float, float] = 2.0 * UNITS) -> Frame:
        """Coordinates of a part that lies at (x, y), turned by `angle`.

        Args:
            x: Horizontal position, scene units.
            y: Vertical position, scene units, downwards.
            angle: Rotation, radians.
            reach: Distance from (x, y) beyond which the part has nothing, scene units; a pair holds for its own axes
                u and v.

        Returns:
            The coordinates on the smallest window that holds the part.
        """
        camera, scale = self._camera, self._pixels_per_unit * self._camera.zoom
        cos, sin = np.cos(camera.angle), np.sin(camera.angle)
        dx, dy = x - UNITS / 2, y - UNITS / 2
        column = self._centre[0] + scale * (cos * dx - sin * dy) + self._pixels_per_unit * camera.shift[0]
        row = self._centre[1] + scale * (sin * dx + cos * dy) + self._pixels_per_unit * camera.shift[1]
        cos, sin = np.cos(camera.angle + angle), np.sin(camera.angle + angle)
        along, across = reach if isinstance(reach, tuple) else (reach, reach)
        reach_x, reach_y = abs(cos) * along + abs(sin) * across, abs(sin) * along + abs(cos) * across
        window = (
            _window(row, reach_y * scale, self.height.shape[0]),
            _window(column, reach_x * scale, self.height.shape[1]),
        )
        rows = (np.arange(window[0].start, window[0].stop, dtype=np.float32) + 0.5 - row)[:, None] / scale
        columns = (np.arange(window[1].start, window[1].stop, dtype=np.float32) + 0.5 - column)[None, :] / scale
        u = (cos * columns + sin * rows).astype(np.float32)
        v = (cos * rows - sin * columns).astype(np.float32)
        return Frame(window, u, v, 1 / scale)

    def stamp(
        self,
        frame: Frame,
        distance: Array,
        albedo: Array | tuple[float, float, float],
        height: Array | float = 0.0,
        gloss: float = 0.1,
        opacity: float = 1.0,
    ) -> Mask:
        """Draw a part over the scene.

        Args:
            frame: Coordinates of the part.
            distance: Signed distance to its outline, negative inside, shape of the frame.
            albedo: One colour, or one per point of the frame (h, w, 3).
            height: Height above the table, one value or one per point.
            gloss: Strength of its highlight.
            opacity: 1 hides what lies below.

        Returns:
            The points that the part covers, shape (H, W) of the surface.
        """
        alpha = np.clip(0.5 - distance / frame.pixel, 0, 1).astype(np.float32)
        mask = np.zeros(self.height.shape, bool)
        mask[frame.window] = alpha > 0.5
        alpha *= opacity
        for layer, value in ((self.height, height), (self.gloss, gloss)):
            layer[frame.window] += alpha * (value - layer[frame.window])
        colour = self.albedo[frame.window]
        colour += alpha[..., None] * (np.asarray(albedo, np.float32) - colour)
        return mask

    def to_image_mask(self, mask: Mask) -> Mask:
        """Reduce a mask of the surface to the image's size: a pixel is set where at least half of it is."""
        rows, columns = self.image_size
        return cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA) >= 0.5

    def photograph(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Light the scene and expose it; light, colour temperature, exposure, sharpness and noise vary at random.

        Args:
            rng: Random generator.

        Returns:
            RGB image of shape (*image_size, 3).
        """
        unit = self._pixels_per_unit
        # From the upper left, with random angles, as a lamp that is not aligned in the same way twice.
        azimuth, elevation = np.deg2rad(rng.uniform(-200, -70)), np.deg2rad(rng.uniform(45, 60))
        light = np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)
        halfway = light[0], light[1], light[2] + 1
        height = cv2.GaussianBlur(self.height, (0, 0), 0.7)
        slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=unit / 8)
        slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=unit / 8)
        steepness = np.sqrt(1 + slope_x**2 + slope_y**2)
        lit = 1 - 0.7 * self._shadow(azimuth, float(np.tan(elevation)))
        diffuse = np.maximum(light[2] - light[0] * slope_x - light[1] * slope_y, 0) / (light[2] * steepness)
        highlight = np.maximum(halfway[2] - halfway[0] * slope_x - halfway[1] * slope_y, 0)
        highlight /= np.linalg.norm(halfway) * steepness
        for _ in range(5):
            highlight *= highlight  # Blinn-Phong with exponent 32
        # Flat ground in full light reflects exactly its albedo: ambient and direct part add up to one.
        radiance = self.albedo * (0.45 + 0.55 * lit * diffuse)[..., None] + (self.gloss * lit * highlight)[..., None]
        rows, columns = self.image_size
        image = cv2.resize(radiance, (columns, rows), interpolation=cv2.INTER_AREA)
        return _expose(image, rng)

    def _shadow(self, azimuth: float, slope: float) -> Array:
        """Fraction of the direct light that higher points block for lower ones, shape (H, W), in [0, 1]."""
        unit = self._pixels_per_unit
        shadow = np.zeros_like(self.height)
        for distance in (1.0, 2.0, 3.5, 5.0, 7.0, 9.0):
            move = np.array([[1, 0, -np.cos(azimuth)], [0, 1, -np.sin(azimuth)]], np.float32)
            move[:, 2] *= distance * unit
            occluder = cv2.warpAffine(self.height, move, self.height.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
            np.maximum(shadow, np.clip(occluder - self.height - distance * slope, 0, 1), out=shadow)
        return cv2.GaussianBlur(shadow, (0, 0), 1.2 * unit)


def _window(centre: float, reach: float, length: int) -> slice:
    start = int(np.clip(np.floor(centre - reach), 0, length))
    return slice(start, int(np.clip(np.ceil(centre + reach), start, length)))


def _expose(image: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    rows, columns = image.shape[:2]
    y, x = np.linspace(-1, 1, rows, dtype=np.float32)[:, None], np.linspace(-1, 1, columns, dtype=np.float32)[None, :]
    direction, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.14)
    falloff = 1 + strength * (np.cos(direction) * x + np.sin(direction) * y) - rng.uniform(0, 0.08) * (x**2 + y**2)
    temperature = rng.uniform(-0.05, 0.05)
    balance = np.array([1 + temperature, 1.0, 1 - temperature], np.float32)
    image = image * (rng.uniform(0.9, 1.1) * falloff[..., None] * balance)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.6) * min(rows, columns) / UNITS + 0.05)
    image = image + rng.uniform(0.006, 0.013) * rng.standard_normal(image.shape, np.float32)
    return (np.clip(image, 0, 1) ** (1 / 1.25) * 255 + 0.5).astype(np.uint8)
