"""Ablation of the composition's code histograms, on drawn images and on photographs.

    python studies/composition_study.py --root drawings --photographs FOLDER

FOLDER holds MVTec LOCO AD's juice_bottle. No training: features come from the frozen network of preset small, whose
weights are installed with the package. Drawn images have development seeds, which no benchmark uses. A cell (a
category with a seed) that is in the results file is not measured again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _common import Row, options
from _drawn import DEFAULTS, PHOTOGRAPHS, DrawnCategory, Pictures, collect, long, scores
from torch import Tensor

from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.benchmark.tables import spread
from anomalib_npgmf.composition.codes import SoftCodes
from anomalib_npgmf.composition.histogram import cell_means
from anomalib_npgmf.composition.variation import NormalVariation
from anomalib_npgmf.config import PRESETS

LEVELS = (3, 4, 5)
DEFAULT: dict[str, Any] = {
    "levels": LEVELS,
    "sizes": (8, 16, 32),
    "books": 3,
    "codes": "soft",
    "whiten": False,
    "covariance": True,
}
GRID: dict[str, Any] = DEFAULT | {"sizes": (64,), "whiten": True}
# cells per side of the grid, changes of DEFAULT (one cell) or of GRID
VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "whole image, 8, 16 and 32 codes (preset small)": (1, {}),
    "whole image, levels 3, 4": (1, {"levels": (3, 4)}),
    "whole image, level 3": (1, {"levels": (3,)}),
    "whole image, 1 codebook per size": (1, {"books": 1}),
    "whole image, random patches as codes": (1, {"codes": "random"}),
    "whole image, nearest code": (1, {"codes": "nearest"}),
    "whole image, 8, 16 and 32 whitened codes": (1, {"whiten": True}),
    "whole image, no covariance": (1, {"covariance": False}),
    "whole image, 64 whitened codes (preset small)": (1, {"sizes": (64,), "whiten": True}),
    "whole image, 32 whitened codes": (1, {"sizes": (32,), "whiten": True}),
    "whole image, 128 whitened codes": (1, {"sizes": (128,), "whiten": True}),
    "whole image, 64 codes, not whitened": (1, {"sizes": (64,)}),
    "whole image, 64 whitened codes, levels 3, 4": (1, {"sizes": (64,), "whiten": True, "levels": (3, 4)}),
    "2 x 2, 16 codes": (2, {"sizes": (16,)}),
    "2 x 2, 32 codes": (2, {"sizes": (32,)}),
    "2 x 2, 64 codes (preset small)": (2, {}),
    "2 x 2, 128 codes": (2, {"sizes": (128,)}),
    "2 x 2, 64 codes, levels 3, 4": (2, {"levels": (3, 4)}),
    "2 x 2, 64 codes, 1 codebook": (2, {"books": 1}),
    "2 x 2, 64 random patches as codes": (2, {"codes": "random"}),
    "2 x 2, 64 codes, not whitened": (2, {"whiten": False}),
    "2 x 2, 64 codes, no covariance": (2, {"covariance": False}),
    "3 x 3, 8 codes": (3, {"sizes": (8,)}),
    "3 x 3, 16 codes": (3, {"sizes": (16,)}),
    "3 x 3, 32 codes": (3, {"sizes": (32,)}),
    "4 x 4, 4 codes": (4, {"sizes": (4,)}),
    "4 x 4, 8 codes (preset small)": (4, {"sizes": (8,)}),
    "4 x 4, 16 codes": (4, {"sizes": (16,)}),
    "4 x 4, 8 codes, not whitened": (4, {"sizes": (8,), "whiten": False}),
}


class Composed:
    """Codebooks of a category, and the composition distances of its images."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures
        self._codes: dict[tuple[Any, ...], SoftCodes] = {}

    def codes(self, level: int, size: int, books: int, kind: str, whiten: bool) -> SoftCodes:
        """Codebooks of a level; kinds ``nearest`` and ``soft`` share them."""
        key = (level, size, books, kind == "random", whiten)
        if key in self._codes:
            return self._codes[key]
        maps = self.pictures.features[level]
        patches = maps[self.pictures.train].permute(0, 2, 3, 1).flatten(0, 2)
        codes = self._codes[key] = SoftCodes(maps.shape[1], size, books, whiten=whiten)
        if kind != "random":
            codes.fit(patches)
            return codes
        for book in range(books):
            order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(book))
            centres = patches[order[:size]]
            nearest = torch.cdist(patches[order[:20_000]], centres).amin(dim=1).square().median()
            codes.weight[book] = 2 * centres / nearest
            codes.bias[book] = -centres.square().sum(dim=1) / nearest
        return codes

    def histograms(self, codes: SoftCodes, level: int, grid: int, nearest: bool) -> Tensor:
        """Code histograms: root of the share of each of K codes in each cell, for R codebooks, [N, R, K * grid^2]."""
        shares = []
        for block in self.pictures.features[level].split(16):
            memberships = codes(block)
            if nearest:
                index = memberships.argmax(dim=2, keepdim=True)
                memberships = torch.zeros_like(memberships).scatter_(2, index, 1.0)
            cells = cell_means(memberships.shape[-1], grid, memberships)
            shares.append((cells @ memberships @ cells.T).flatten(2))
        return (torch.cat(shares) + 1e-4).sqrt()

    def distances(self, grid: int, choice: Mapping[str, Any]) -> Tensor:
        """Distances of all images from the training images, [N]."""
        squared, total = torch.zeros(len(self.pictures.paths)), 0.0
        for level, size in product(choice["levels"], choice["sizes"]):
            weight = 2.0**-level
            total += weight
            codes = self.codes(level, size, choice["books"], choice["codes"], choice["whiten"])
            vectors = self.histograms(codes, level, grid, choice["codes"] == "nearest")
            normal = vectors[self.pictures.train]
            if choice["covariance"]:
                variation = NormalVariation(*vectors.shape[1:])
                variation.fit(normal)
                difference, gradient = variation(vectors)
                squared += weight * (difference * gradient).sum(dim=2).mean(dim=1)
            else:
                squared += weight * (vectors - normal.mean(dim=0)).square().sum(dim=2).mean(dim=1)
        return (squared / total).sqrt()


def table_rows(cells: Mapping[str, Any]) -> list[Row]:
    """Image AUROC of logical anomalies per variant, in per cent: mean and standard deviation over seeds."""
    found = long(cells).query("column == 'AUROC logical'")
    wide = found.pivot_table("value", "name", "category", partial(spread, scale=1), sort=False)
    return wide.rename_axis("variant").reset_index().to_dict("records")


@torch.no_grad()
def main() -> None:
    categories = [*DEFAULTS["categories"], PHOTOGRAPHS]
    args = options(__doc__, root=Path, photographs=Path, seeds=[100, 101], categories=categories)
    backbone = Backbone(PRESETS["small"].backbone, LEVELS)
    backbone.load_weights(None)

    def measure(category: str, seed: int) -> dict[str, dict[str, float]]:
        if category != PHOTOGRAPHS:
            composed = Composed(DrawnCategory(args.root, category, seed, backbone, tests=40))
        elif seed == args.seeds[0]:
            composed = Composed(Pictures(args.photographs / category, backbone))
        else:
            return {}
        pictures = composed.pictures
        return {
            name: scores(pictures.paths, composed.distances(grid, (DEFAULT if grid == 1 else GRID) | change))
            for name, (grid, change) in VARIANTS.items()
        }

    collect("composition_study", args, table_rows, measure)


if __name__ == "__main__":
    main()
