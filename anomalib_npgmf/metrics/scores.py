"""Anomaly maps as arrays: checked, in a precision that keeps scores distinct, and resized to the image."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FloatArray = npt.NDArray[np.floating[Any]]


def as_scores(anomaly_map: Tensor | npt.NDArray[Any], name: str) -> FloatArray:
    """A finite two-dimensional map as float32, or as float64 where float32 could merge distinct scores.

    Args:
        anomaly_map: ``(H, W)`` scores of any real type.
        name: Name of the map in an error.

    Returns:
        ``(H, W)`` array on the CPU.

    Raises:
        ValueError: If the map is not two-dimensional or holds NaN, infinite or complex values.

    Example:
        >>> as_scores(np.zeros((2, 3), dtype=np.float16), "example").dtype
        dtype('float32')
    """
    if isinstance(anomaly_map, Tensor):
        anomaly_map = anomaly_map.detach().cpu()
        exact_in_numpy = anomaly_map.dtype == torch.float64 or anomaly_map.is_complex()
        anomaly_map = (anomaly_map if exact_in_numpy else anomaly_map.float()).numpy()
    if anomaly_map.ndim != 2:
        raise ValueError(f"Anomaly map {name} has shape {anomaly_map.shape}; one score per pixel (H, W) is needed.")
    if np.iscomplexobj(anomaly_map):
        raise ValueError(f"Anomaly map {name} holds complex numbers; write real scores.")
    exact = np.can_cast(anomaly_map.dtype, np.float32)
    scores = np.asarray(anomaly_map, dtype=np.float32 if exact else np.float64)
    if not np.isfinite(scores).all():
        raise ValueError(f"Anomaly map {name} holds NaN or infinite scores; check the model that wrote it.")
    return scores


def resize_map(scores: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Resize an anomaly map to the size of its image, bilinear with half-pixel centres.

    Args:
        scores: ``(h, w)`` map.
        size: Height and width of the image.

    Returns:
        ``(H, W)`` map; the input itself if it has that size.

    Example:
        >>> resize_map(np.array([[0.0, 1.0]], dtype=np.float32), (1, 4))
        array([[0.  , 0.25, 0.75, 1.  ]], dtype=float32)
    """
    if scores.shape == size:
        return scores
    resized = cv2.resize(scores, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=scores.dtype)
