"""Ablation of the composition branch, on drawn images.

    python studies/composition_study.py --weights mobilenetv2_100.pth --root drawings

A cell (a category with a seed) that is in the results file is not measured again. The seeds are not those of the
reported benchmark, because the defaults of the branch were chosen with this study.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import product
from typing import Any

import torch
from _common import Row, options
from _drawn import DEFAULTS, KINDS, DrawnCategory, backbone_of, collect, long, scores
from torch import Tensor

from anomalib_npgmf.benchmark.tables import spread
from anomalib_npgmf.composition.codes import SoftCodes
from anomalib_npgmf.composition.histogram import cell_means
from anomalib_npgmf.composition.variation import NormalVariation, cross_validated

DEFAULT: dict[str, Any] = {
    "levels": (3, 4),
    "sizes": (8, 16, 32),
    "books": 3,
    "codes": "soft",
    "whiten": False,
    "root": True,
    "weighted": True,
    "model": "gaussian",
}
GRID: dict[str, Any] = DEFAULT | {"sizes": (32,), "whiten": True}
# cells per side of the grid, changes of DEFAULT (one cell) or of GRID
VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "whole image": (1, {}),
    "whole image, random patches as codes": (1, {"codes": "random"}),
    "whole image, nearest code": (1, {"codes": "nearest"}),
    "whole image, whitened codes": (1, {"whiten": True}),
    "whole image, 1 codebook per size": (1, {"books": 1}),
    "whole image, 8 codes only": (1, {"sizes": (8,)}),
    "whole image, 16 codes only": (1, {"sizes": (16,)}),
    "whole image, 32 codes only": (1, {"sizes": (32,)}),
    "whole image, level 3": (1, {"levels": (3,)}),
    "whole image, level 4": (1, {"levels": (4,)}),
    "whole image, levels weighted alike": (1, {"weighted": False}),
    "whole image, no square root": (1, {"root": False}),
    "whole image, nearest neighbour": (1, {"model": "neighbour"}),
    "whole image, no covariance": (1, {"model": "identity"}),
    "cells of 2 x 2": (2, {}),
    "cells of 2 x 2, random patches as codes": (2, {"codes": "random"}),
    "cells of 2 x 2, codes not whitened": (2, {"whiten": False}),
    "cells of 2 x 2, 16 codes": (2, {"sizes": (16,)}),
    "cells of 2 x 2, 64 codes": (2, {"sizes": (64,)}),
    "cells of 2 x 2, no covariance": (2, {"model": "identity"}),
    "cells of 3 x 3": (3, {}),
}
TOGETHER = {"2 x 2": (2,), "2 x 2 and 3 x 3": (2, 3)}  # grids beside the whole image
MARGINS = (0.0, 0.5, 1.0, 1.5, 2.0)


class Cell(DrawnCategory):
    """A category, its codebooks and the composition distances of its images."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._codes: dict[tuple[Any, ...], SoftCodes] = {}

    def codes(self, level: int, size: int, books: int, kind: str, whiten: bool) -> SoftCodes:
        """Codebooks of a level; kinds ``nearest`` and ``soft`` share them."""
        key = (level, size, books, kind == "random", whiten)
        if key in self._codes:
            return self._codes[key]
        maps = self.features[level]
        patches = maps[self.train].permute(0, 2, 3, 1).flatten(0, 2)
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
        """Code histograms: share of each of K codes in each cell, for R codebooks, [N, R, K * grid^2]."""
        shares = []
        for block in self.features[level].split(16):
            memberships = codes(block)
            if nearest:
                index = memberships.argmax(dim=2, keepdim=True)
                memberships = torch.zeros_like(memberships).scatter_(2, index, 1.0)
            cells = cell_means(memberships.shape[-1], grid, memberships)
            shares.append((cells @ memberships @ cells.T).flatten(2))
        return torch.cat(shares)

    def distances(self, grid: int = 1, *, held_out: bool = False, **choice: Any) -> tuple[Tensor, Tensor]:
        """Distances of all images and, with ``held_out``, cross-validated ones of the training images (else 0)."""
        squared, validated, total = torch.zeros(len(self.paths)), torch.zeros(len(self.train)), 0.0
        for level, size in product(choice["levels"], choice["sizes"]):
            weight = 2.0**-level if choice["weighted"] else 1.0
            total += weight
            codes = self.codes(level, size, choice["books"], choice["codes"], choice["whiten"])
            vectors = self.histograms(codes, level, grid, choice["codes"] == "nearest")
            vectors = (vectors + 1e-4).sqrt() if choice["root"] else vectors
            normal = vectors[self.train]
            if choice["model"] == "gaussian":
                variation = NormalVariation(*vectors.shape[1:])
                variation.fit(normal)
                difference, gradient = variation(vectors)
                squared += weight * (difference * gradient).sum(dim=2).mean(dim=1)
                validated += weight * cross_validated(normal) if held_out else 0.0
            elif choice["model"] == "identity":
                squared += weight * (vectors - normal.mean(dim=0)).square().sum(dim=2).mean(dim=1)
            else:
                nearest = torch.cdist(vectors.transpose(0, 1), normal.transpose(0, 1)).amin(dim=2)
                squared += weight * nearest.square().mean(dim=0)
        return (squared / total).sqrt(), (validated / total).sqrt()

    def variants(self) -> dict[str, dict[str, float]]:
        """Image AUROC in [0, 1] per kind of anomaly by variant."""
        found, unit = {}, {}
        for name, (grid, change) in VARIANTS.items():
            found[name], _ = self.distances(grid, **(DEFAULT if grid == 1 else GRID) | change)
        for grid in (1, 2, 3):
            distances, normal = self.distances(grid, held_out=True, **(DEFAULT if grid == 1 else GRID))
            unit[grid] = (distances - normal.mean()) / normal.std()
        for (text, grids), margin in product(TOGETHER.items(), MARGINS):
            larger = torch.stack([unit[1], *(unit[grid] - margin for grid in grids)]).amax(dim=0)
            found[f"whole image, {text}, less {margin}"] = larger
        return {
            name: {key.removeprefix("AUROC "): value / 100 for key, value in scores(self.paths, distances).items()}
            for name, distances in found.items()
        }


def table_rows(cells: Mapping[str, Any]) -> list[Row]:
    """Image AUROC of the composition distance per variant, in per cent: mean and standard deviation over seeds."""
    found = long(cells).query("column in @KINDS", local_dict={"KINDS": KINDS}).assign(value=lambda f: 100 * f.value)
    wide = found.pivot_table("value", "name", ["category", "column"], partial(spread, scale=1), sort=False)
    wide.columns = [", ".join(pair) for pair in wide.columns]
    return wide.rename_axis("variant").reset_index().to_dict("records")


@torch.no_grad()
def main() -> None:
    args = options(__doc__, **DEFAULTS)
    backbone = backbone_of(args, (3, 4))

    def measure(category: str, seed: int) -> dict[str, dict[str, float]]:
        return Cell(args.root, category, seed, backbone, tests=60).variants()

    collect("composition_study", args, table_rows, measure, default=DEFAULT, grid=GRID)


if __name__ == "__main__":
    main()
