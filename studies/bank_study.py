"""Ablation of averaging and whitening in the memory bank, on drawn images and on photographs.

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
from anomalib_npgmf.config import PRESETS
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
    "levels 4, 5, whitened": ((4, 5), (1, 1), True),
}


def bank_maps(levels: Sequence[Tensor], train: Sequence[int], sides: Sequence[int], whitened: bool) -> Tensor:
    """Distance [N, 1, h, w] of every patch of all images to the nearest in the bank of the training images."""
    whiten = [level.shape[1] for level in levels] if whitened else None
    patches = concatenated([averaged(level, side) for level, side in zip(levels, sides, strict=True)])
    bank = MemoryBank(RATIO, whiten=whiten)
    bank.append(patches[list(train)].flatten(1, 2))
    bank.finish()
    return torch.cat([bank.search(image.flatten(0, 1)) for image in patches]).view(patches.shape[:3]).unsqueeze(1)


@torch.no_grad()
def measure(pictures: Pictures) -> dict[str, dict[str, float]]:
    """Image AUROC and AU-sPRO of every variant by kind of anomaly."""
    found = {}
    for name, (levels, sides, whitened) in BANKS.items():
        raw = bank_maps([pictures.features[level] for level in levels], pictures.train, sides, whitened)
        shown = smoothed(raw, (256, 256))
        found[name] = scores(pictures.paths, shown.amax((1, 2, 3)), shown)
    return found


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
