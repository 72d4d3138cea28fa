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
from _drawn import DEFAULTS, PHOTOGRAPHS, collect, fit, photographs_and_drawn, scores
from anomalib.data import AnomalibDataModule
from lightning.pytorch import seed_everything
from torch import Tensor

from anomalib_npgmf import LOCO, Npgmf, SyntheticLOCO
from anomalib_npgmf.merging.composition import COMPOSITION_MARGIN, LARGEST_SCORE, SURPLUS_WEIGHT
from anomalib_npgmf.merging.rule import BRANCHES, NORMAL_LEVEL


class Maps(NamedTuple):
    """Smoothed maps of N images: of both branches, and the surplus (codes that occur too often), [N, 1, H, W].

    ``composition`` and ``counted`` are scores of the composition branch and of its histograms alone, no margin, [N].
    """

    logical: Tensor
    structural: Tensor
    surplus: Tensor
    composition: Tensor
    counted: Tensor


def data_of(args: argparse.Namespace, category: str, seed: int) -> AnomalibDataModule:
    """The images of a category."""
    if category == PHOTOGRAPHS:
        return LOCO(args.photographs, category, train_batch_size=4, eval_batch_size=8, num_workers=0)
    return SyntheticLOCO(args.root / f"seed{seed}", category, 256, num_train=60, train_batch_size=4, seed=seed)


def trained(args: argparse.Namespace, category: str, seed: int) -> tuple[Npgmf, AnomalibDataModule]:
    """A trained model, and its data ready for the test."""
    seed_everything(seed, workers=True, verbose=False)
    data = data_of(args, category, seed)
    model = Npgmf(preset="small", composition=True, post_processor=False, evaluator=False, visualizer=False)
    fit(model, data, max_epochs=args.epochs)
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
            maps = net.branch_maps(model.pre_processor(batch.image)).maps
            surplus = merger.blur(merger.resize(maps["composition"]))
            c, counted = (
                merger.composition.of_distance(maps[name]) + COMPOSITION_MARGIN
                for name in ("distance", "count_distance")
            )
            branches = (merger.smoothed({branch: maps[branch]})[branch] for branch in BRANCHES)
            kept.append(Maps(*branches, surplus, c, counted))
        found.append(Maps(*map(torch.cat, zip(*kept, strict=True))))
    return paths, found[0], found[1]


def rules(test: Maps, normal: Maps) -> dict[str, tuple[Tensor, Tensor]]:
    """Image scores [N] and maps [N, 1, H, W] of the test images by rule."""

    def unit(of: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and maps in standard deviations above the mean score of normal images, and their normal pixels."""
        peaks = of(normal).amax((1, 2, 3))
        planes = [(of(maps) - peaks.mean()) / peaks.std() for maps in (test, normal)]
        return planes[0].amax((1, 2, 3)), planes[0], planes[1][..., ::4, ::4].flatten()

    c, counted, r = test.composition, test.counted, test.surplus
    s, plane, pixels = unit(lambda maps: maps.logical + 3 * maps.structural)
    branches = {
        "logical branch": unit(lambda maps: maps.logical),
        "structural branch": unit(lambda maps: maps.structural),
        "eq. 11": (s, plane, pixels),
        "maximum": unit(lambda maps: torch.maximum(maps.logical, maps.structural)),
    }
    found = {name: values[:2] for name, values in branches.items()} | {
        "composition": (c, counted.view(-1, 1, 1, 1) * r)
    }

    def marked(weight: float = SURPLUS_WEIGHT, cap: float = LARGEST_SCORE, level: float = NORMAL_LEVEL) -> Tensor:
        shown = weight * (counted - COMPOSITION_MARGIN).clamp(0, cap).view(-1, 1, 1, 1) * r
        return plane.maximum(plane.minimum(pixels.quantile(level)) + shown)

    for margin in (0.0, 0.25, 0.5):
        found[f"score: larger of eq. 11 and composition - {margin}"] = s.maximum(c - margin), marked()
    found["score: larger of eq. 11 and histograms - 0.25"] = s.maximum(counted - 0.25), marked()
    for name in ("structural branch", "maximum"):
        found[f"score: larger of {name} and composition - 0.25"] = branches[name][0].maximum(c - 0.25), marked()
    found["score: root of the sum of squares"] = (s.relu().square() + c.relu().square()).sqrt(), marked()
    chosen = s.maximum(c - COMPOSITION_MARGIN)
    found["map: larger of eq. 11 and score x surplus"] = chosen, plane.maximum(counted.view(-1, 1, 1, 1) * r)
    for name, plan in {
        "as in the model": {},
        "weight 2": {"weight": 2.0},
        "weight 10": {"weight": 10.0},
        "scores up to 3": {"cap": 3.0},
        "scores without bound": {"cap": torch.inf},
        "quantile 0.9": {"level": 0.9},
        "quantile 0.98": {"level": 0.98},
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
