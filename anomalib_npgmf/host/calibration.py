"""Calibration: what maps and scores of normal images look like, from images that no branch was fitted on.

The composition adds cross-validated distances of the training images, see `CompositionBranch.held_out`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from anomalib.data import ImageBatch
from torch import Tensor

from anomalib_npgmf.distributed import gather_list
from anomalib_npgmf.merging.rule import BRANCHES, MapMerger
from anomalib_npgmf.merging.statistics import MapStatistics
from anomalib_npgmf.torch_model import NpgmfModel


def scores_to_compare(merger: MapMerger, maps: dict[str, Tensor]) -> list[tuple[float, float]]:
    """Image scores of the branches and composition distances, one pair per image.

    Args:
        merger: It merges the branches' maps.
        maps: Raw maps by part, [B, 1, h, w] each, with a composition map.
    """
    merged = merger.merge_branches(maps)
    assert merged is not None
    return list(zip(merged.amax((1, 2, 3)).tolist(), maps["composition"].amax((1, 2, 3)).tolist(), strict=True))


class Calibrator:
    """Calibrates a model, and remembers the maps of those of its parts that training does not change.

    The memory bank and the composition read-out are fitted before the first epoch, so that their maps of an image are
    computed once per fit instead of once per epoch.

    Args:
        model: The model; its merger gets the statistics.
        normalise: Pre-processing of a batch of images [B, 3, H, W], on the model's device.

    Example:
        >>> from anomalib.data import ImageBatch
        >>> from anomalib_npgmf.config import resolve
        >>> model = NpgmfModel(resolve("small", {"logical_image_size": 128, "branches": "logical"})).eval()
        >>> normal = ImageBatch(image=torch.rand(2, 3, 128, 128), image_path=["0.png", "1.png"])
        >>> scores = Calibrator(model, lambda images: images).run([normal])
        >>> scores.shape, bool(model.merger.calibrated)
        (torch.Size([2]), True)
    """

    def __init__(self, model: NpgmfModel, normalise: Callable[[Tensor], Tensor]) -> None:
        self._model = model
        self._normalise = normalise
        self._fixed: dict[str, dict[str, Tensor]] = {}

    def forget(self) -> None:
        """Forget all maps: the parts that made them are fitted anew."""
        self._fixed = {}

    def maps(self, image: Tensor, paths: Sequence[str]) -> dict[str, Tensor]:
        """Maps of the parts, computed anew only where training may have changed them.

        Args:
            image: Normalised images, [B, 3, H, W].
            paths: Their B paths.

        Returns:
            Raw map of each part, [B, 1, h, w].
        """
        known: dict[str, Tensor] = {}
        if all(path in self._fixed for path in paths):
            rows = [self._fixed[path] for path in paths]
            known = {part: torch.stack([row[part] for row in rows]).to(image.device) for part in rows[0]}
        maps = self._model.branch_maps(image, known, reconstruct=False).maps
        if not known:
            fixed = {part: values.cpu() for part, values in maps.items() if part != "logical"}
            self._fixed |= {path: {part: v[i] for part, v in fixed.items()} for i, path in enumerate(paths)}
        return maps

    @torch.no_grad()
    def run(self, batches: Iterable[ImageBatch]) -> Tensor:
        """Calibrate the merger: statistics of each branch's map, then of the composition's image scores.

        Args:
            batches: Normal images that nothing was fitted on, as the data set gives them; in a distributed run this
                process's share.

        Returns:
            Image scores of the images of all processes, [N].
        """
        training = self._model.training
        self._model.eval()
        merger = self._model.merger
        device = merger.mean.device
        statistics: dict[str, MapStatistics] = {branch: MapStatistics() for branch in BRANCHES}
        kept: list[dict[str, Tensor]] = []
        for batch in batches:
            assert batch.image is not None
            assert batch.image_path is not None
            maps = self.maps(self._normalise(batch.image.to(device)), [str(path) for path in batch.image_path])
            for branch in maps.keys() & set(BRANCHES):
                statistics[branch].update(merger.resize(maps[branch]))
            kept.append({part: raw.cpu() for part, raw in maps.items()})
        for branch_statistics in statistics.values():
            branch_statistics.synchronise()
        merger.calibrate({branch: (s.mean, s.std) for branch, s in statistics.items() if s.count})
        if merger.composition is not None:
            peaks: list[tuple[float, float]] = []
            for maps in self._back(kept, device):
                peaks += scores_to_compare(merger, maps)
            assert self._model.composition is not None
            scores_of, distances = torch.tensor(gather_list(peaks)).T
            merger.composition.calibrate(scores_of, distances, self._model.composition.held_out)
        scores: list[float] = []
        for maps in self._back(kept, device):
            score: Any = self._model.merge(maps).pred_score
            scores += score.tolist()
        self._model.train(training)
        return torch.tensor(gather_list(scores))

    @staticmethod
    def _back(kept: list[dict[str, Tensor]], device: torch.device) -> Iterable[dict[str, Tensor]]:
        return ({part: raw.to(device) for part, raw in maps.items()} for maps in kept)
