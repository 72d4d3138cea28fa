"""What the composition read-out owes to each of its choices, on drawn images.

    python benchmarks/composition_study.py --weights mobilenetv2_100.pth --root drawings
    python benchmarks/composition_study.py --table

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
import torch.nn.functional as F
from _common import RESULTS, fix_threads, print_table, save
from _drawn import KINDS, SIZE, DrawnCategory, spread
from torch import Tensor

from anomalib_npgmf.backbone import Backbone
from anomalib_npgmf.composition.codes import SoftCodes
from anomalib_npgmf.composition.variation import NormalVariation
from anomalib_npgmf.data.synthetic.writer import SCENES, DrawingPlan, ensure_drawn

LEVELS = (3, 4)
DEFAULT: dict[str, Any] = {
    "levels": (3, 4),
    "sizes": (8, 16, 32),
    "books": 3,
    "codes": "soft",
    "root": True,
    "grid": 1,
    "weighted": True,
    "model": "gaussian",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "random patches as codes": {"codes": "random"},
    "nearest code": {"codes": "nearest"},
    "1 codebook per size": {"books": 1},
    "8 codes only": {"sizes": (8,)},
    "16 codes only": {"sizes": (16,)},
    "32 codes only": {"sizes": (32,)},
    "level 3": {"levels": (3,)},
    "level 4": {"levels": (4,)},
    "levels weighted alike": {"weighted": False},
    "no square root": {"root": False},
    "2 x 2 grid": {"grid": 2},
    "nearest neighbour": {"model": "neighbour"},
    "no covariance": {"model": "identity"},
}


class Cell(DrawnCategory):
    """A category, its code books and what they say of it."""

    def __init__(self, folder: Path, backbone: Backbone) -> None:
        super().__init__(folder, backbone)
        self._codes: dict[tuple[Any, ...], SoftCodes] = {}

    def codes(self, level: int, size: int, books: int, kind: str) -> SoftCodes:
        """Codebooks of a level; nearest codes use those of soft ones."""
        key = (level, size, books, kind == "random")
        if key not in self._codes:
            maps = self.features[level]
            patches = maps[self.rows["train"]].permute(0, 2, 3, 1).flatten(0, 2)
            codes = SoftCodes(maps.shape[1], size, books)
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

    def distances(self, levels: tuple[int, ...], **choice: Any) -> Tensor:
        """Composition distance of every image."""
        squared = torch.zeros(len(self.paths))
        for level, size in product(levels, choice["sizes"]):
            weight = 2.0**-level if choice["weighted"] else 1.0
            codes = self.codes(level, size, choice["books"], choice["codes"])
            shares = []
            for block in self.features[level].split(16):
                memberships = codes(block)
                if choice["codes"] == "nearest":
                    index = memberships.argmax(dim=2, keepdim=True)
                    memberships = torch.zeros_like(memberships).scatter_(2, index, 1.0)
                grid = F.adaptive_avg_pool2d(memberships.flatten(0, 1), choice["grid"])
                shares.append(grid.reshape(len(block), choice["books"], -1))
            vectors = torch.cat(shares)
            vectors = (vectors + 1e-4).sqrt() if choice["root"] else vectors
            normal = vectors[self.rows["train"]]
            if choice["model"] == "gaussian":
                variation = NormalVariation(*vectors.shape[1:])
                variation.fit(normal)
                deviation, gradient = variation(vectors)
                squared += weight * (deviation * gradient).sum(dim=2).mean(dim=1)
            elif choice["model"] == "identity":
                squared += weight * (vectors - normal.mean(dim=0)).square().sum(dim=2).mean(dim=1)
            else:
                squared += weight * torch.cdist(vectors.transpose(0, 1), normal.transpose(0, 1)).amin(
                    dim=2
                ).square().mean(dim=0)
        return squared.sqrt()


def table_rows(cells: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Image AUROC of the composition distance per variant, in per cent: mean and deviation over seeds."""
    categories = list(dict.fromkeys(key.split("/")[0] for key in cells))
    rows = []
    for variant in VARIANTS:
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
            cells[f"{category}/{seed}"] = {
                name: cell.auroc(cell.distances(**(DEFAULT | change))) for name, change in VARIANTS.items()
            }
            save("composition_study", table_rows(cells), cells=cells, default=DEFAULT)
            print(f"{category}, seed {seed}", flush=True)
    print_table(table_rows(cells))


if __name__ == "__main__":
    main()
