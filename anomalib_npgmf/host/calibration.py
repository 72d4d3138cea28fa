"""Calibration of a model on held-out normal images, on which no branch was fitted."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import AnomalibDataModule, ImageBatch
from torch import Tensor

from anomalib_npgmf.distributed import gather_list, raise_together
from anomalib_npgmf.host.post_processor import CalibratedPostProcessor
from anomalib_npgmf.host.splits import calibration_loader
from anomalib_npgmf.merging.calibration import calibrate, to_device
from anomalib_npgmf.torch_model import NpgmfModel

if TYPE_CHECKING:
    from anomalib_npgmf.lightning_model import Npgmf


class Calibrator:
    """Calibrates a model, and caches the maps of memory bank and composition, which gradient descent does not change.

    Memory bank and composition branch are fitted before the first epoch, so their maps of an image are computed once
    per fit, not once per epoch.

    Args:
        model: The model; the statistics are written to its ``merger``.
        normalise: Pre-processing of a batch of images [B, 3, H, W], on the model's device.

    Attributes:
        images: Normal calibration images of the last fit, an anomalib dataset; ``None`` before.

    Example:
        >>> from anomalib.data import ImageBatch
        >>> from anomalib_npgmf.config import resolve
        >>> model = NpgmfModel(resolve("small", {"logical_image_size": 128, "branches": "logical"})).eval()
        >>> normal = ImageBatch(image=torch.rand(2, 3, 128, 128), image_path=["0.png", "1.png"])
        >>> scores, peaks = Calibrator(model, lambda images: images).run([normal])
        >>> scores.shape, bool(model.merger.calibrated)
        (torch.Size([2]), True)
    """

    def __init__(self, model: NpgmfModel, normalise: Callable[[Tensor], Tensor]) -> None:
        self._model = model
        self._normalise = normalise
        self.images: Any = None
        self._step = -1  # number of training steps at the last calibration
        self._fixed: dict[str, dict[str, Tensor]] = {}

    def reset(self, images: Any = None) -> None:
        """Empty the cache, for a new fit or other calibration images.

        Args:
            images: The calibration images, if they are known yet.
        """
        self.images, self._step, self._fixed = images, -1, {}

    def is_due(self, step: int) -> bool:
        """Whether training steps were taken since the last call; remembers ``step`` for the next one.

        The first call after `reset` says yes.

        Args:
            step: Number of training steps so far.
        """
        before, self._step = self._step, step
        return before != step

    def maps(self, image: Tensor, paths: Sequence[str]) -> dict[str, Tensor]:
        """Raw maps by branch; all but the logical one come from the cache once they are known.

        Args:
            image: Normalised images, [B, 3, H, W].
            paths: Their B paths.

        Returns:
            Raw maps by branch, see `anomalib_npgmf.outputs.BranchMaps`.
        """
        known: dict[str, Tensor] = {}
        if all(path in self._fixed for path in paths):
            rows = [self._fixed[path] for path in paths]
            known = {part: torch.stack([row[part] for row in rows]).to(image.device) for part in rows[0]}
        maps = self._model.branch_maps(image, known).maps
        if not known:
            fixed = {part: values.cpu() for part, values in maps.items() if part != "logical"}
            self._fixed |= {path: {part: v[i] for part, v in fixed.items()} for i, path in enumerate(paths)}
        return maps

    @torch.no_grad()
    def run(self, batches: Iterable[ImageBatch]) -> tuple[Tensor, Tensor]:
        """Set the statistics of the maps in the model's merger.

        Args:
            batches: Calibration images with paths, not normalised; in a distributed run this process's share.

        Returns:
            Image scores of the images of all processes, and the maxima of their merged maps, no larger than the score,
            [N] each.

        Raises:
            ValueError: If a map is constant or not finite.
        """
        training = self._model.training
        self._model.eval()
        device = self._model.merger.mean.device
        kept: list[dict[str, Tensor]] = []
        with raise_together():
            for batch in batches:
                assert batch.image is not None
                assert batch.image_path is not None
                maps = self.maps(self._normalise(batch.image.to(device)), [str(path) for path in batch.image_path])
                kept.append({part: raw.cpu() for part, raw in maps.items()})
        composition = self._model.composition
        calibrate(self._model.merger, kept, None if composition is None else composition.cv_stats)
        found: list[tuple[float, float]] = []
        for maps in to_device(kept, device):
            merged = self._model.merger(maps)
            # A composition may raise a pixel of a good image far above its score. A threshold that is set by such
            # pixels would hide what the branches mark.
            peaks = merged.maps.amax(dim=(1, 2, 3)).minimum(merged.scores)
            found += zip(merged.scores.tolist(), peaks.tolist(), strict=True)
        self._model.train(training)
        scores, peaks = torch.tensor(gather_list(found), device="cpu").T
        return scores, peaks


def calibrate_model(module: "Npgmf", datamodule: AnomalibDataModule) -> None:
    """Compute the statistics of the maps and the threshold anew, without training.

    Args:
        module: The trained model.
        datamodule: Data of the category; its calibration images are used.
    """
    module.calibrator.reset()
    calibrate_on(module, calibration_loader(datamodule, module.settings.image_size))


def calibrate_on(module: "Npgmf", batches: Iterable[ImageBatch]) -> None:
    """Set the statistics of the maps and the threshold.

    Args:
        module: The model.
        batches: Calibration images; in a distributed run this process's share.
    """
    scores, peaks = module.calibrator.run(batches)
    if isinstance(module.post_processor, CalibratedPostProcessor):
        module.post_processor.calibrate(scores, peaks)
