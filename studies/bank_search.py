"""Time and error of one image's search in full, reduced and half banks, against anomalib's PatchCore.

    python studies/bank_search.py

Patches are spatially smooth synthetic ones. The error is the largest relative one of a distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from _common import Row, options, save, timed
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torch import Tensor, nn

from anomalib_npgmf.structural import MemoryBank

STORED: dict[str, dict[str, Any]] = {
    "float16": {"dtype": torch.float16},
    "float32, 512 dims": {"reduce_to": 512},
    "float32, 256 dims": {"reduce_to": 256},
}
SYNTHETIC = "spatially smooth synthetic patches, d = 1536"
Search = Callable[[Tensor], Tensor]


def smooth_patches(indices: Iterable[int], side: int) -> Tensor:
    """Spatially smooth patches of images [N, side², 1536], without running a network.

    Each is a mixture of twelve parts, blended smoothly, with smooth variation in 32 directions on top: clusters with
    soft borders and a low intrinsic dimension, as backbone features have.
    """
    fixed = torch.Generator().manual_seed(0)
    parts, directions = torch.randn(12, 1536, generator=fixed), torch.randn(32, 1536, generator=fixed) / 4
    found = []
    for index in indices:
        noise = torch.randn(1, 44, side // 8, side // 8, generator=torch.Generator().manual_seed(1 + index))
        maps = nn.functional.interpolate(noise, scale_factor=8.0, mode="bicubic")
        weights, variation = maps.flatten(2).transpose(1, 2).split([12, 32], dim=2)
        found.append(((3 * weights).softmax(dim=2) @ parts + variation @ directions).relu())
    return torch.cat(found)


@torch.no_grad()
def main() -> None:
    args = options(__doc__, images=60, threads=2, repeats=5)
    blocks = smooth_patches(range(args.images), 32)
    queries = blocks[-1]
    rows: list[Row] = []
    for ratio in (0.01, 0.1):
        full = MemoryBank(ratio)
        full.append(blocks[:-1])
        full.finish()
        patchcore = PatchcoreModel(layers=("layer1",), backbone="resnet18", pre_trained=False)
        patches = patchcore.memory_bank = full.embeddings + full.center
        searches: dict[str, Search] = {
            "anomalib": lambda q, model=patchcore: model.nearest_neighbors(q, n_neighbors=1)[0],
            "float32": full.search,
        }
        for name, change in STORED.items():
            bank = MemoryBank(1.0, **change)
            bank.fill(patches)
            searches[name] = bank.search
        exact = torch.cdist(queries, patches, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        baseline = 0.0
        for name, find in searches.items():
            seconds = timed(lambda find=find: find(queries), args.repeats)
            baseline = baseline or seconds["cpu_s"]
            error = ((find(queries) - exact).abs() / exact).max()
            row = {"bank": len(full), "queries": len(queries), "search": name, **seconds}
            rows.append(row | {"ratio_cpu": seconds["cpu_s"] / baseline, "max_error": float(error)})
    save(args.out / "bank_search.json", rows, features=SYNTHETIC)


if __name__ == "__main__":
    main()
