"""What a trained model would say with other rules of merging, from the same calibration images."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from anomalib_npgmf.composition import CompositionBranch
from anomalib_npgmf.host.fit import calibration_batches
from anomalib_npgmf.lightning_model import Npgmf
from anomalib_npgmf.merging import MapMerger, calibrate
from anomalib_npgmf.merging.rule import BRANCHES

SUM_AND_COMPOSITION = "1:3+composition"
AMOUNTS = "amounts"
MAXIMUM_AND_AMOUNTS = "maximum+amounts"


class Alternatives(nn.Module):
    """Other merging rules for the parts of a fitted `Npgmf`.

    Eq. 11 (with the weights 1:3) beside the composition, and the maximum beside its histogram of the whole image alone,
    are calibrated on the images that the model was calibrated on. Rules without a composition need no calibration.

    Args:
        module: The model. Unless it was fitted in this process, only the rules without composition are known.
    """

    def __init__(self, module: Npgmf) -> None:
        super().__init__()
        self._model = model = module.model
        self._mergers = nn.ModuleDict()
        self._amounts: CompositionBranch | None = None
        composition = model.composition
        if composition is None or model.config.branches != "both" or module.calibrator.images is None:
            return
        rules = {SUM_AND_COMPOSITION: False}
        if len(composition.histograms) > 1:
            self._amounts = amounts_of(composition)
            rules[MAXIMUM_AND_AMOUNTS] = True
        for rule, maximum in rules.items():
            size, blur = model.merger.size, model.merger.blur
            self._mergers[rule] = MapMerger(size, 1.0, 3.0, blur=blur, maximum=maximum, composition=True)
        self._calibrate(module)

    @torch.no_grad()
    def _calibrate(self, module: Npgmf) -> None:
        device = module.trainer.strategy.root_device
        self.to(device)  # after a fit Lightning leaves the model on the CPU
        training = self._model.training
        self._model.eval()
        kept: dict[str, list[dict[str, Tensor]]] = {rule: [] for rule in self._mergers}
        for batch in calibration_batches(module.trainer, module):
            image = module.normalised(batch.image.to(device))
            maps = self._model.branch_maps(image).maps
            for rule, batches in kept.items():
                batches.append(self._with(maps, rule, image))
        self._model.train(training)
        for rule, merger in self._mergers.items():
            part = self._amounts if rule == MAXIMUM_AND_AMOUNTS else self._model.composition
            assert isinstance(part, CompositionBranch)
            assert isinstance(merger, MapMerger)
            calibrate(merger, kept[rule], part.cv_stats)

    def _with(self, maps: Mapping[str, Tensor], rule: str, image: Tensor) -> dict[str, Tensor]:
        """Maps of the parts that a rule merges."""
        if rule != MAXIMUM_AND_AMOUNTS or self._amounts is None:
            return dict(maps)
        features = self._model.features(image, ["composition"]).composition
        return {**maps, "composition": self._amounts(features, self._model.merger.size).anomaly_map}

    @torch.no_grad()
    def merge(self, maps: Mapping[str, Tensor], image: Tensor) -> dict[str, Tensor]:
        """Merged maps [B, 1, H, W] at the merger's size by rule, see `results.MAPS`; none without both branches.

        Args:
            maps: Raw maps by part.
            image: The images, normalised.
        """
        if not all(branch in maps for branch in BRANCHES):
            return {}
        self.to(image.device)
        z = [self._model.merger.smoothed({branch: maps[branch]})[branch] for branch in BRANCHES]
        merged = {f"{a}:{b}": a * z[0] + b * z[1] for a, b in ((1, 3), (3, 1), (1, 1))}
        merged["maximum"] = torch.maximum(*z)
        for rule, merger in self._mergers.items():
            given = self._with(maps, rule, image)
            merged[rule] = merger(given)
            if rule == MAXIMUM_AND_AMOUNTS:
                merged[AMOUNTS] = merger({"composition": given["composition"]})
        return merged


def amounts_of(composition: CompositionBranch) -> CompositionBranch:
    """The histogram of the whole image alone, as a composition branch of its own.

    Args:
        composition: A fitted one; it is not changed.
    """
    alone = copy.deepcopy(composition)
    alone.histograms = alone.histograms[:1]
    alone.mean, alone.std, alone.margin = alone.mean[:1], alone.std[:1], alone.margin[:1]
    number = float(alone.cv_stats[0])
    # in its own unit the distances have mean zero and deviation one, unless the deviation was raised to its bound
    alone.cv_stats = torch.tensor([number, 0.0, max(number - 1, 0.0)]).to(alone.cv_stats)
    return alone
