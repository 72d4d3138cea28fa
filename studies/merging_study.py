"""Comparison of rules that merge the maps and scores of the branches, that of `anomalib_npgmf.merging` among them.

    python studies/merging_study.py --root drawings --photographs FOLDER

Trains preset small with the composition branch on a development seed of SyntheticLOCO, which no benchmark uses, and on
photographs, MVTec LOCO AD's juice_bottle in FOLDER. Merges the raw maps of the test images by every rule. Statistics
come from normal images alone, as in the model. A cell (a category with a seed) that is in the results file is not
measured again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _common import options
from _drawn import DEFAULTS, PHOTOGRAPHS, collect, composition_model, data_of, photographs_and_drawn, scores
from anomalib.data import AnomalibDataModule
from torch import Tensor

from anomalib_npgmf import Npgmf
from anomalib_npgmf.composition.histogram import surplus_of
from anomalib_npgmf.merging.composition import BRANCH_MARGIN, LARGEST_LEAD, SURPLUS_WEIGHT
from anomalib_npgmf.merging.rule import BRANCHES, NORMAL_LEVEL
from anomalib_npgmf.torch_model import NpgmfModel


class Maps(NamedTuple):
    """Smoothed maps of N images: of both branches, and the surplus (codes that occur too often), [N, 1, H, W].

    ``plain`` is the surplus of the finest level, not weighted by contributions. ``composition`` and ``counted`` are
    scores of the composition branch and of its histograms alone, [N].
    """

    logical: Tensor
    structural: Tensor
    surplus: Tensor
    plain: Tensor
    composition: Tensor
    counted: Tensor


def trained(args: argparse.Namespace, category: str, seed: int) -> tuple[Npgmf, AnomalibDataModule]:
    """A trained model, and its data ready for the test."""
    data = data_of(args, category, seed)
    model = composition_model(data, seed, args.epochs)
    data.setup("test")
    return model, data


@torch.no_grad()
def read_maps(args: argparse.Namespace, category: str, seed: int) -> tuple[list[Path], Maps, Maps]:
    """Train; paths of the test images, and maps of test and calibration images."""
    model, data = trained(args, category, seed)
    net, paths, found = model.model, [], []
    merger = net.merger
    for loader in (data.test_dataloader(), data.val_dataloader()):
        kept = []
        for batch in loader:
            paths += [Path(path) for path in batch.image_path if not found]
            images = model.pre_processor(batch.image)
            maps = net.branch_maps(images).maps
            surplus, plain = (
                merger.blur(merger.resize(shown)) for shown in (maps["composition"], plain_surplus(net, images))
            )
            c, counted = (
                merger.composition.of_composition(maps[name]) for name in ("composition_score", "histogram_score")
            )
            branches = (merger.smoothed({branch: maps[branch]})[branch] for branch in BRANCHES)
            kept.append(Maps(*branches, surplus, plain, c, counted))
        found.append(Maps(*map(torch.cat, zip(*kept, strict=True))))
    return paths, found[0], found[1]


def plain_surplus(net: NpgmfModel, images: Tensor) -> Tensor:
    """Surplus of the finest level, not weighted by what codes contribute to the distance, [N, 1, H, W]."""
    assert net.composition is not None
    finest = net.features(images, ["composition"]).composition
    shown = []
    for part in net.composition.histograms:
        evidence = part([finest[index] for index in range(len(net.composition.levels))], net.merger.size).evidence
        pairs = [found for index, found in zip(part.inputs, evidence, strict=True) if index == 0]
        shown.append(net.merger.resize(torch.stack([surplus_of(found) for found in pairs]).mean(dim=0)))
    return torch.stack(shown).amax(dim=0)


def rules(test: Maps, normal: Maps) -> dict[str, tuple[Tensor, Tensor]]:
    """Image scores [N] and maps [N, 1, H, W] of the test images by rule."""

    def unit(of: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and maps in standard deviations above the mean score of normal images, and their normal pixels."""
        peaks = of(normal).amax((1, 2, 3))
        planes = [(of(maps) - peaks.mean()) / peaks.std() for maps in (test, normal)]
        return planes[0].amax((1, 2, 3)), planes[0], planes[1][..., ::4, ::4].flatten()

    c, counted = test.composition, test.counted
    s, plane, pixels = unit(lambda maps: maps.logical + 3 * maps.structural)
    branches = {
        "logical branch": unit(lambda maps: maps.logical),
        "structural branch": unit(lambda maps: maps.structural),
        "eq. 11": (s, plane, pixels),
        "maximum": unit(lambda maps: torch.maximum(maps.logical, maps.structural)),
    }
    found = {name: values[:2] for name, values in branches.items()} | {
        "composition": (c, counted.view(-1, 1, 1, 1) * test.surplus)
    }

    def marked(
        weight: float = SURPLUS_WEIGHT,
        cap: float = LARGEST_LEAD,
        level: float = NORMAL_LEVEL,
        surplus: Tensor = test.surplus,
        over: Tensor | float | None = None,
    ) -> Tensor:
        lead = counted - ((s - BRANCH_MARGIN).relu() if over is None else over)
        return plane.maximum(
            plane.minimum(pixels.quantile(level)) + weight * lead.clamp(0, cap).view(-1, 1, 1, 1) * surplus
        )

    for margin in (0.0, 0.5, 0.75, 1.0, 1.5):
        found[f"score: larger of eq. 11 - {margin} and composition"] = (s - margin).maximum(c), marked()
    chosen = (s - BRANCH_MARGIN).maximum(c)
    found[f"score: larger of eq. 11 - {BRANCH_MARGIN} and histograms"] = (s - BRANCH_MARGIN).maximum(counted), marked()
    for name in ("structural branch", "maximum"):
        score = branches[name][0] - BRANCH_MARGIN
        found[f"score: larger of {name} - {BRANCH_MARGIN} and composition"] = score.maximum(c), marked()
    found["score: root of the sum of squares"] = (s.relu().square() + c.relu().square()).sqrt(), marked()
    for name, plan in {
        "as in the model": {},
        "weight 10": {"weight": 10.0},
        "weight 20": {"weight": 20.0},
        "weight 30": {"weight": 30.0},
        "weight 60": {"weight": 60.0},
        "lead up to 6": {"cap": 6.0},
        "lead without bound": {"cap": torch.inf},
        "score of the composition for its lead": {"over": 0.0},
        "quantile 0.9": {"level": 0.9},
        "quantile 0.98": {"level": 0.98},
        "surplus not weighted, weight 5": {"weight": 5.0, "surplus": test.plain},
        "surplus not weighted, weight 30": {"weight": 30.0, "surplus": test.plain},
    }.items():
        found[f"map: {name}"] = chosen, marked(**plan)
    return found


def measure(args: argparse.Namespace, category: str, seed: int) -> dict[str, dict[str, float]]:
    """AUROC and AU-sPRO of every rule."""
    paths, test, normal = read_maps(args, category, seed)
    return {name: scores(paths, *values) for name, values in rules(test, normal).items()}


def main() -> None:
    categories = [*DEFAULTS["categories"], PHOTOGRAPHS]
    args = options(__doc__, epochs=12, root=Path, photographs=Path, seeds=[100], categories=categories)

    collect(
        "merging_study",
        args,
        lambda cells: photographs_and_drawn(cells, "rule"),
        lambda category, seed: measure(args, category, seed),
    )


if __name__ == "__main__":
    main()
