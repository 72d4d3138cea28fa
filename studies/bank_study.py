"""Ablation of averaging and whitening in the memory bank, and of the regions, on drawn images and on photographs.

    python studies/bank_study.py --root drawings --photographs FOLDER

FOLDER holds MVTec LOCO AD's juice_bottle. No training: features come from the frozen network of preset small, whose
weights are installed with the package. Drawn images have development seeds, which no benchmark uses. A cell (a
category with a seed) that is in the results file is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _common import options
from _drawn import DEFAULTS, PHOTOGRAPHS, DrawnCategory, Pictures, collect, photographs_and_drawn, scores, smoothed
from torch import Tensor

from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.composition import CompositionBranch, CompositionConfig
from anomalib_npgmf.config import COMPOSITIONS, PRESETS
from anomalib_npgmf.structural import MemoryBank
from anomalib_npgmf.structural.model import averaged, concatenated

LEVELS = (3, 4, 5)
RATIO = PRESETS["small"].structural.coreset_ratio
# levels, side of the neighbourhood over which each is averaged, whether features are whitened
BANKS: dict[str, tuple[tuple[int, ...], tuple[int, ...], bool]] = {
    "levels 3, 4, averaged (PatchCore)": ((3, 4), (3, 3), False),
    "levels 3, 4": ((3, 4), (1, 1), False),
    "levels 3, 4, averaged, whitened": ((3, 4), (3, 3), True),
    "levels 3, 4, whitened": ((3, 4), (1, 1), True),
    "levels 3, 4, the latter averaged, whitened (preset small)": ((3, 4), (1, 3), True),
    "level 3, whitened": ((3,), (1,), True),
    "level 4, whitened": ((4,), (1,), True),
    "levels 4, 5, whitened (regions)": ((4, 5), (1, 1), True),
}
SMALL = COMPOSITIONS["small"]
COMPOSED = {
    "histograms of levels 3, 4": CompositionConfig(),
    "histograms of levels 3, 4, 5": CompositionConfig(levels=LEVELS),
}
MARGINS = (0.0, 0.5, 1.0)


def bank_maps(levels: Sequence[Tensor], train: Sequence[int], sides: Sequence[int], whitened: bool) -> Tensor:
    """Distance [N, 1, h, w] of every patch of all images to the nearest in the bank of the training images."""
    whiten = [level.shape[1] for level in levels] if whitened else None
    patches = concatenated([averaged(level, side) for level, side in zip(levels, sides, strict=True)])
    bank = MemoryBank(RATIO, whiten=whiten)
    bank.append(patches[list(train)].flatten(1, 2))
    bank.finish()
    return torch.cat([bank.search(image.flatten(0, 1)) for image in patches]).view(patches.shape[:3]).unsqueeze(1)


def composed(pictures: Pictures, config: CompositionConfig) -> CompositionBranch:
    """A composition branch that is fitted to the training images."""
    levels = [pictures.features[level] for level in config.read_levels]
    branch = CompositionBranch(config.read_levels, [level.shape[1] for level in levels], config)
    keys = [str(pictures.paths[i]) for i in pictures.train]
    branch.collect([level[pictures.train] for level in levels], keys, torch.zeros(len(keys), 3, 8, 8))
    branch.finish()
    return branch


@torch.no_grad()
def measure(pictures: Pictures) -> dict[str, dict[str, float]]:
    """Image AUROC of every variant by kind of anomaly; for banks also AU-sPRO."""
    found = {}
    for name, (levels, sides, whitened) in BANKS.items():
        raw = bank_maps([pictures.features[level] for level in levels], pictures.train, sides, whitened)
        shown = smoothed(raw, (256, 256))
        found[f"bank: {name}"] = scores(pictures.paths, shown.amax((1, 2, 3)), shown)
    for name, config in COMPOSED.items():
        distance = distances(pictures, composed(pictures, config))
        found[f"composition: {name}"] = scores(pictures.paths, distance)
    branch = composed(pictures, SMALL)
    for margin in MARGINS:
        branch.margin[-1] = margin
        found[f"composition: and regions less {margin}"] = scores(pictures.paths, distances(pictures, branch))
    return found


def distances(pictures: Pictures, branch: CompositionBranch) -> Tensor:
    """Composition score of every image, [N]."""
    levels = LEVELS if branch.regions is not None or 5 in branch.levels else branch.levels
    blocks = zip(*(pictures.features[level].split(16) for level in levels), strict=True)
    return torch.cat([branch(block, (8, 8)).score for block in blocks])


def main() -> None:
    categories = [*DEFAULTS["categories"], PHOTOGRAPHS]
    args: argparse.Namespace = options(__doc__, root=Path, photographs=Path, seeds=[100], categories=categories)
    backbone = Backbone(PRESETS["small"].backbone, LEVELS)
    backbone.load_weights(None)

    def cell(category: str, seed: int) -> Any:
        if category == PHOTOGRAPHS:
            return measure(Pictures(args.photographs / category, backbone)) if seed == args.seeds[0] else {}
        return measure(DrawnCategory(args.root, category, seed, backbone))

    collect("bank_study", args, lambda cells: photographs_and_drawn(cells, "variant"), cell)


if __name__ == "__main__":
    main()
