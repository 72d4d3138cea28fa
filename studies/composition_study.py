"""What the composition read-out owes to each of its choices, on drawn images.

    python studies/composition_study.py --weights mobilenetv2_100.pth --root drawings
    python studies/composition_study.py --table

Every cell is a category and a seed; a cell that is in the output is not computed again. The seeds are not those of the
reported benchmark: the defaults of the read-out were chosen with this study.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _common import RESULTS, fix_threads, print_table, save
from _drawn import KINDS, SIZE, DrawnCategory, spread
from torch import Tensor

from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.composition.codes import SoftCodes
from anomalib_npgmf.composition.histogram import cell_means
from anomalib_npgmf.composition.variation import NormalVariation, cross_validated
from anomalib_npgmf.data.synthetic.writer import SCENES, DrawingPlan, ensure_drawn

LEVELS = (3, 4)
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
WHOLE: dict[str, dict[str, Any]] = {
    "whole image": {},
    "whole image, random patches as codes": {"codes": "random"},
    "whole image, nearest code": {"codes": "nearest"},
    "whole image, whitened codes": {"whiten": True},
    "whole image, 1 codebook per size": {"books": 1},
    "whole image, 8 codes only": {"sizes": (8,)},
    "whole image, 16 codes only": {"sizes": (16,)},
    "whole image, 32 codes only": {"sizes": (32,)},
    "whole image, level 3": {"levels": (3,)},
    "whole image, level 4": {"levels": (4,)},
    "whole image, levels weighted alike": {"weighted": False},
    "whole image, no square root": {"root": False},
    "whole image, nearest neighbour": {"model": "neighbour"},
    "whole image, no covariance": {"model": "identity"},
}
CELLS: dict[str, tuple[int, dict[str, Any]]] = {
    "cells of 2 x 2": (2, {}),
    "cells of 2 x 2, random patches as codes": (2, {"codes": "random"}),
    "cells of 2 x 2, codes not whitened": (2, {"whiten": False}),
    "cells of 2 x 2, 16 codes": (2, {"sizes": (16,)}),
    "cells of 2 x 2, 64 codes": (2, {"sizes": (64,)}),
    "cells of 2 x 2, no covariance": (2, {"model": "identity"}),
    "cells of 3 x 3": (3, {}),
}
MARGINS = (0.0, 0.5, 1.0, 1.5, 2.0)
TOGETHER: dict[str, tuple[tuple[int, ...], float]] = {
    f"whole image, {text}, less {margin}": (grids, margin)
    for text, grids in (("2 x 2", (2,)), ("2 x 2 and 3 x 3", (2, 3)))
    for margin in MARGINS
}


class Cell(DrawnCategory):
    """A category, its code books and what they say of it."""

    def __init__(self, folder: Path, backbone: Backbone) -> None:
        super().__init__(folder, backbone)
        self._codes: dict[tuple[Any, ...], SoftCodes] = {}

    def codes(self, level: int, size: int, books: int, kind: str, whiten: bool) -> SoftCodes:
        """Codebooks of a level; nearest codes use those of soft ones."""
        key = (level, size, books, kind == "random", whiten)
        if key not in self._codes:
            maps = self.features[level]
            patches = maps[self.rows["train"]].permute(0, 2, 3, 1).flatten(0, 2)
            codes = SoftCodes(maps.shape[1], size, books, whiten=whiten)
            if kind != "random":
                codes.fit(patches)
            else:
                for book in range(books):
                    order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(book))
                    centres = patches[order[:size]]
                    nearest = torch.cdist(patches[order[:20_000]], centres).amin(dim=1).square().median()
                    codes.weight[book] = 2 * centres / nearest
                    codes.bias[book] = -centres.square().sum(dim=1) / nearest
            self._codes[key] = codes
        return self._codes[key]

    def reading(self, grid: int = 1, *, held_out: bool = False, **choice: Any) -> tuple[Tensor, Tensor]:
        """Distance of every image and, if asked for, cross-validated distances of the training images."""
        squared, validated, total = torch.zeros(len(self.paths)), torch.zeros(len(self.rows["train"])), 0.0
        for level, size in product(choice["levels"], choice["sizes"]):
            weight = 2.0**-level if choice["weighted"] else 1.0
            total += weight
            codes = self.codes(level, size, choice["books"], choice["codes"], choice["whiten"])
            shares = []
            for block in self.features[level].split(16):
                memberships = codes(block)
                if choice["codes"] == "nearest":
                    index = memberships.argmax(dim=2, keepdim=True)
                    memberships = torch.zeros_like(memberships).scatter_(2, index, 1.0)
                cells = cell_means(memberships.shape[-1], grid, memberships)
                shares.append((cells @ memberships @ cells.T).flatten(2))
            vectors = torch.cat(shares)
            vectors = (vectors + 1e-4).sqrt() if choice["root"] else vectors
            normal = vectors[self.rows["train"]]
            if choice["model"] == "gaussian":
                variation = NormalVariation(*vectors.shape[1:])
                variation.fit(normal)
                deviation, gradient = variation(vectors)
                squared += weight * (deviation * gradient).sum(dim=2).mean(dim=1)
                if held_out:
                    validated += weight * cross_validated(normal)
            elif choice["model"] == "identity":
                squared += weight * (vectors - normal.mean(dim=0)).square().sum(dim=2).mean(dim=1)
            else:
                squared += weight * torch.cdist(vectors.transpose(0, 1), normal.transpose(0, 1)).amin(
                    dim=2
                ).square().mean(dim=0)
        return (squared / total).sqrt(), (validated / total).sqrt()

    def variants(self) -> dict[str, dict[str, float]]:
        """Image AUROC per type of anomaly by variant."""
        found = {name: self.reading(**(DEFAULT | change))[0] for name, change in WHOLE.items()}
        found |= {name: self.reading(grid, **(GRID | change))[0] for name, (grid, change) in CELLS.items()}
        unit = {}
        for grid in (1, 2, 3):
            distances, normal = self.reading(grid, held_out=True, **(DEFAULT if grid == 1 else GRID))
            unit[grid] = (distances - normal.mean()) / normal.std()
        for name, (grids, margin) in TOGETHER.items():
            found[name] = torch.stack([unit[1], *(unit[grid] - margin for grid in grids)]).amax(dim=0)
        return {name: self.auroc(distances) for name, distances in found.items()}


def table_rows(cells: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Image AUROC of the composition distance per variant, in per cent: mean and deviation over seeds."""
    categories = list(dict.fromkeys(key.split("/")[0] for key in cells))
    rows = []
    for variant in next(iter(cells.values())):
        row: dict[str, Any] = {"variant": variant}
        for category in categories:
            found = [cell[variant] for key, cell in cells.items() if key.split("/")[0] == category]
            for kind in KINDS:
                row[f"{category}, {kind}"] = spread([100 * cell[kind] for cell in found])
        rows.append(row)
    return rows


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of the results file and stop")
    parser.add_argument("--weights", help="weights file of the backbone, or 'random'")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--root", type=Path, help="folder for the drawn images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--categories", nargs="+", default=list(SCENES), choices=list(SCENES))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    file = RESULTS / "composition_study.json"
    cells: dict[str, Any] = json.loads(file.read_text())["cells"] if file.is_file() else {}
    if arguments.table:
        print_table(table_rows(cells))
        return
    if arguments.weights is None or arguments.root is None:
        parser.error("--weights and --root are needed to measure")
    fix_threads(arguments.threads)
    backbone = Backbone(arguments.backbone, LEVELS)
    backbone.load_weights(arguments.weights)
    for seed in arguments.seeds:
        for category in arguments.categories:
            if f"{category}/{seed}" in cells:
                continue
            plan = DrawingPlan(category, SIZE, 60, 20, 60, 60, 60, seed)
            cell = Cell(ensure_drawn(arguments.root / f"seed{seed}", plan), backbone)
            cells[f"{category}/{seed}"] = cell.variants()
            save("composition_study", table_rows(cells), cells=cells, default=DEFAULT, grid=GRID)
            print(f"{category}, seed {seed}", flush=True)
    print_table(table_rows(cells))


if __name__ == "__main__":
    main()
