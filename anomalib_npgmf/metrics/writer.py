"""Write anomaly maps as TIFF files, one per test image, at the size of the image."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import tifffile

from anomalib_npgmf.disk import write_bytes
from anomalib_npgmf.metrics.ground_truth import category_of, image_size
from anomalib_npgmf.metrics.scores import as_scores, resize_map


def write_anomaly_maps(predictions: Iterable[Any] | None, output_dir: Path | str) -> list[Path]:
    """Write the anomaly maps of ``Engine.predict`` for ``evaluate_loco`` or any tool that reads such folders.

    Args:
        predictions: Batches of ``Engine.predict``, with ``anomaly_map`` ``(B, h, w)`` and ``image_path``.
        output_dir: The map of ``<root>/<category>/test/<kind>/NNN.png`` goes to
            ``<output_dir>/<category>/test/<kind>/NNN.tiff``, float32, resized (bilinear) to the size of the image.

    Returns:
        Paths of the written files.

    Raises:
        OSError: If the file of an image is missing, or a map cannot be written.
        ValueError: If there are no predictions, they have no anomaly maps or image paths, or a map is not finite.

    Example:
        >>> import tempfile, torch
        >>> from PIL import Image
        >>> from anomalib.data import ImageBatch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     image = Path(folder, "pushpins", "test", "good", "000.png")
        ...     image.parent.mkdir(parents=True)
        ...     Image.new("RGB", (16, 12)).save(image)
        ...     batch = ImageBatch(
        ...         image=torch.rand(1, 3, 8, 8), anomaly_map=torch.rand(1, 8, 8), image_path=[str(image)])
        ...     (written,) = write_anomaly_maps([batch], Path(folder, "maps"))
        ...     written.relative_to(folder).as_posix(), tifffile.imread(written).shape
        ('maps/pushpins/test/good/000.tiff', (12, 16))
    """
    if predictions is None:
        raise ValueError("There are no predictions; pass what Engine.predict(..., return_predictions=True) returns.")
    written = []
    for batch in predictions:
        if batch.anomaly_map is None or batch.image_path is None:
            raise ValueError("The predictions hold no anomaly maps or no image paths; use a model that localises.")
        maps = batch.anomaly_map.reshape(-1, *batch.anomaly_map.shape[-2:])
        for scores, name in zip(maps, batch.image_path, strict=True):
            image = Path(name)
            target = Path(output_dir, *category_of(image).parts[-1:], *image.parts[-3:-1], f"{image.stem}.tiff")
            target.parent.mkdir(parents=True, exist_ok=True)
            content = BytesIO()
            tifffile.imwrite(content, resize_map(as_scores(scores, name), image_size(image)).astype("float32"))
            write_bytes(target, content.getvalue())
            written.append(target)
    return written
