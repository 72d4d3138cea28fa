"""What a trained model would say with other rules of merging, from the same calibration images."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from anomalib_npgmf.composition import CompositionBranch
from anomalib_npgmf.distributed import gather_list
from anomalib_npgmf.host.calibration import scores_to_compare
from anomalib_npgmf.lightning_model import Npgmf
from anomalib_npgmf.merging.rule import BRANCHES, MapMerger
from anomalib_npgmf.torch_model import NpgmfModel

SUM_AND_COMPOSITION = "1:3+composition"
AMOUNTS = "amounts"
MAXIMUM_AND_AMOUNTS = "maximum+amounts"


class Alternatives:
    """Other merging rules for the parts of a fitted `Npgmf`.

    Eq. 11 (with the weights 1:3) beside the composition, and the maximum beside its reading of the whole image alone,
    need a calibration of their own; that is done here, on the images that the model was calibrated on. Rules without a
    composition need none.

    Args:
        module: The model. Unless it was fitted in this process, only the rules without composition are known.
    """

    def __init__(self, module: Npgmf) -> None:
        self._model = module.model
        self._mergers: dict[str, MapMerger] = {}
        self._amounts = None
        composition = module.model.composition
        if composition is None or module.model.config.branches != "both":
            return
        self._mergers[SUM_AND_COMPOSITION] = _merger(module.model, maximum=False)
        if len(composition.readings) > 1:
            self._amounts = amounts_of(composition)
            self._mergers[MAXIMUM_AND_AMOUNTS] = _merger(module.model, maximum=True)
        self._calibrate(module)

    @torch.no_grad()
    def _calibrate(self, module: Npgmf) -> None:
        batches = module.calibration_batches()
        if batches:  # after a fit Lightning leaves the model on the CPU
            self._move(module.trainer.strategy.root_device)
        training = self._model.training
        self._model.eval()
        pairs: dict[str, list[tuple[float, float]]] = {rule: [] for rule in self._mergers}
        for batch in batches:
            assert batch.image is not None
            image = module.normalised(batch.image.to(self._model.merger.mean.device))
            maps = self._model.branch_maps(image, reconstruct=False).maps
            for rule, merger in self._mergers.items():
                pairs[rule] += scores_to_compare(merger, self._with(maps, rule, image))
        self._model.train(training)
        for rule, merger in list(self._mergers.items()):
            known = gather_list(pairs[rule])
            if not known:
                del self._mergers[rule]
                continue
            part = self._amounts if rule == MAXIMUM_AND_AMOUNTS else self._model.composition
            assert part is not None
            assert merger.composition is not None
            scores, distances = torch.tensor(known).T
            merger.composition.calibrate(scores, distances, part.held_out)

    def _move(self, device: torch.device) -> None:
        for part in (self._model, self._amounts, *self._mergers.values()):
            if part is not None:
                part.to(device)

    def _with(self, maps: Mapping[str, Tensor], rule: str, image: Tensor) -> dict[str, Tensor]:
        """Maps of the parts that a rule merges."""
        if rule != MAXIMUM_AND_AMOUNTS or self._amounts is None:
            return dict(maps)
        features = self._model.features(image, ["composition"]).composition
        return {**maps, "composition": self._amounts(features, self._model.merger.size).anomaly_map}

    @torch.no_grad()
    def merge(self, maps: Mapping[str, Tensor], image: Tensor) -> dict[str, Tensor]:
        """Merge by every rule.

        Args:
            maps: Raw maps by part.
            image: The images, normalised.

        Returns:
            Merged maps [B, 1, H, W] at the merger's size by rule: weighted sums, named by the weights
            logical:structural; the larger one of the two calibrated maps, ``"maximum"``; ``"1:3+composition"``;
            ``"amounts"``, the composition's reading of the whole image alone; and ``"maximum+amounts"``. Empty unless
            both branches are there.
        """
        if not all(branch in maps for branch in BRANCHES):
            return {}
        self._move(image.device)
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
    """The reading of the whole image alone, as a composition read-out of its own.

    Args:
        composition: A fitted one; it is not changed.
    """
    alone = copy.deepcopy(composition)
    alone.readings = alone.readings[:1]
    alone.mean, alone.std, alone.margin = alone.mean[:1], alone.std[:1], alone.margin[:1]
    number = float(alone.held_out[0])
    # In its own unit the distances have mean zero and deviation one, unless the spread was raised to the least.
    alone.held_out = torch.tensor([number, 0.0, max(number - 1, 0.0)]).to(alone.held_out)
    return alone


def _merger(model: NpgmfModel, *, maximum: bool) -> MapMerger:
    merger = MapMerger(model.merger.size, 1.0, 3.0, maximum=maximum, composition=True).to(model.merger.mean.device)
    merger.load_state_dict(model.merger.state_dict())
    return merger
