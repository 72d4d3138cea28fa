"""Drawing: scores laid over an image, outlines of a mask, pictures side by side under a line of text."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Picture = NDArray[np.uint8]
RED, WHITE = (255, 0, 0), (255, 255, 255)
HEADER, MARGIN = 22, 4  # pixels
_FONT = cv2.FONT_HERSHEY_SIMPLEX, 0.42  # face and scale
_CLEAR = 0.25  # score up to which nothing is laid over the image
_OPACITY = 0.6


def heat_map(image: Picture, scores: NDArray[np.float32], *, threshold: float | None = None) -> Picture:
    """Lay scores over an image: clear up to 0.25, then from faint yellow to red at 1.

    Args:
        image: RGB, [H, W, 3].
        scores: Scores in [0, 1], [h, w], resized to the image's size; others are clipped. After the post-processor's
            normalisation 0.25 is the mean of the normal images' maximum scores and 0.5 the threshold.
        threshold: Regions of at least this score are outlined in white; ``None`` for no outlines.

    Returns:
        RGB, [H, W, 3].

    Example:
        >>> grey = np.full((4, 4, 3), 128, np.uint8)
        >>> heat_map(grey, np.full((4, 4), 0.2, np.float32))[0, 0].tolist()
        [128, 128, 128]
        >>> heat_map(grey, np.ones((4, 4), np.float32))[0, 0].tolist()
        [204, 51, 51]
    """
    scores = np.asarray(cv2.resize(scores, image.shape[1::-1], interpolation=cv2.INTER_LINEAR), dtype=np.float32)
    strength = np.clip((scores - _CLEAR) / (1 - _CLEAR), 0, 1)[..., None]
    colours = np.concatenate([np.ones_like(strength), 1 - strength, np.zeros_like(strength)], axis=-1) * 255
    opacity = _OPACITY * np.minimum(2 * strength, 1)
    mixed = np.asarray((1 - opacity) * image + opacity * colours, dtype=np.uint8)
    return mixed if threshold is None else outline(mixed, scores >= threshold, WHITE)


def resized(image: Picture, size: tuple[int, int]) -> Picture:
    """An image [H, W, 3] at another size, given as height and width."""
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8)


def outline(image: Picture, mask: NDArray[np.bool_], colour: tuple[int, int, int] = RED) -> Picture:
    """Draw the outlines of a mask's regions into a copy of an image.

    Args:
        image: RGB, [H, W, 3].
        mask: Boolean, [h, w]; it is resized to the image's size.
        colour: RGB.

    Returns:
        RGB, [H, W, 3].

    Example:
        >>> mask = np.zeros((8, 8), bool)
        >>> mask[2:6, 2:6] = True
        >>> drawn = outline(np.zeros((64, 64, 3), np.uint8), mask)
        >>> drawn[16, 32].tolist(), drawn[32, 32].tolist()
        ([255, 0, 0], [0, 0, 0])
    """
    height, width = image.shape[:2]
    plane = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(plane, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(image.copy(), contours, -1, colour, 2), dtype=np.uint8)


def to_rgb(normalised: Tensor, mean: Sequence[float], std: Sequence[float]) -> Picture:
    """Undo the normalisation of an image.

    Args:
        normalised: Normalised image, [3, H, W].
        mean: Mean of each channel.
        std: Standard deviation of each channel.

    Returns:
        RGB, [H, W, 3].

    Example:
        >>> to_rgb(torch.zeros(3, 1, 1), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).ravel().tolist()
        [124, 116, 104]
    """
    scale, shift = (torch.tensor(values, device="cpu").view(3, 1, 1) for values in (std, mean))
    rgb = (normalised.float().cpu() * scale + shift).clamp(0, 1) * 255
    return np.asarray(rgb.round().byte().permute(1, 2, 0).numpy(), dtype=np.uint8)


def panels(named: dict[str, Picture], title: str) -> Picture:
    """Put pictures side by side, each with its name above, under a title; no text is cut or overlaps another.

    Args:
        named: Pictures of one size by name, RGB [H, W, 3].
        title: Text; a line break starts a new line.

    Returns:
        RGB picture.

    Example:
        >>> panels({"a": np.zeros((64, 64, 3), np.uint8), "b": np.ones((64, 64, 3), np.uint8)}, "two").shape
        (108, 140, 3)
    """
    height, width = next(iter(named.values())).shape[:2]
    lines = title.split("\n")
    top = (len(lines) + 1) * HEADER
    columns = [max(width, _text_width(name)) + MARGIN for name in named]
    whole = max(sum(columns), *(_text_width(line) + MARGIN for line in lines)) + MARGIN
    canvas = np.full((top + height, whole, 3), 255, np.uint8)

    def write(text: str, x: int, y: int) -> None:
        cv2.putText(canvas, text, (x, y), *_FONT, (0, 0, 0), 1, cv2.LINE_AA)

    for row, line in enumerate(lines, start=1):
        write(line, MARGIN, row * HEADER - 7)
    x = MARGIN
    for (name, picture), column in zip(named.items(), columns, strict=True):
        write(name, x, top - 7)
        canvas[top:, x : x + width] = picture
        x += column
    return canvas


def _text_width(text: str) -> int:
    """Width of a line of text in pixels."""
    return int(cv2.getTextSize(text, *_FONT, 1)[0][0])
