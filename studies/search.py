"""Time and error of one image's search in the memory bank, against anomalib's PatchCore and in other libraries.

    python studies/search.py stored     # full, reduced and half banks, against anomalib's PatchCore
    python studies/search.py indices    # banks of growing size with torch, OpenVINO and, where installed, FAISS

Patches are spatially smooth synthetic ones. The error is the largest relative one of a distance.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from _common import Row, run_part, save, timed
from torch import Tensor, nn

from anomalib_npgmf.structural import MemoryBank

QUERIES = 256  # patches of one image
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


def searched(find: Search, queries: Tensor, exact: Tensor, repeats: int) -> Row:
    """Seconds and largest relative error of a search."""
    return timed(lambda: find(queries), repeats) | {"max_error": float(((find(queries) - exact).abs() / exact).max())}


def stored(args: argparse.Namespace) -> None:
    """Banks of two sizes in several forms, against anomalib's PatchCore."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

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
        found = {name: searched(find, queries, exact, args.repeats) for name, find in searches.items()}
        for name, row in found.items():
            row |= {"ratio_cpu": row["cpu_s"] / found["anomalib"]["cpu_s"]}
            rows.append({"bank": len(full), "queries": len(queries), "search": name, **row})
    save(args.out / "bank_search.json", rows, features=SYNTHETIC)


def indices(args: argparse.Namespace) -> None:
    """Every index on banks of growing size."""
    prepared: dict[str, Callable[[MemoryBank], Search]] = {
        "torch": lambda bank: bank.search,
        "torch, 4 shards": sharded,
    }
    if importlib.util.find_spec("openvino"):
        prepared["openvino"] = openvino_search
    if importlib.util.find_spec("faiss"):
        prepared["faiss flat"] = lambda bank: faiss_search(bank, "Flat")
        prepared["faiss ivf"] = lambda bank: faiss_search(bank, f"IVF{int(4 * math.sqrt(len(bank)))},Flat")
    queries = smooth_patches([-1], 16)[0]
    rows: list[Row] = []
    for size in args.banks:
        bank = MemoryBank(1.0)
        bank.fill(smooth_patches(range(size // QUERIES), 16).flatten(0, 1))
        exact = bank.search(queries)
        for name, prepare in prepared.items():
            start = time.process_time()
            find = prepare(bank)
            row: Row = {"index": name, "bank": size, "bank_gb": bank.embeddings.nbytes / 1e9}
            row["prepare_cpu_s"] = time.process_time() - start
            found = searched(find, queries, exact, args.repeats)
            row |= {"wall_ms": 1e3 * found["wall_s"], "cpu_ms": 1e3 * found["cpu_s"]}
            rows.append(row | {"max_error": found["max_error"]})
        save(args.out / "growth_search.json", rows, features=SYNTHETIC, queries=QUERIES)


def sharded(bank: MemoryBank) -> Search:
    """Search four parts of the bank one after the other and take the smallest distance."""
    shards = [MemoryBank(1.0) for _ in range(4)]
    for part, shard in enumerate(shards):
        shard.center, shard.norms = bank.center, bank.norms[part::4]
        shard.embeddings = bank.embeddings[part::4].contiguous()
    return lambda queries: torch.stack([shard.search(queries) for shard in shards]).amin(dim=0)


def openvino_search(bank: MemoryBank) -> Search:
    """Compile the search with OpenVINO in float32."""
    import openvino

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bank = bank

        def forward(self, queries: Tensor) -> Tensor:
            return self.bank.search(queries)

    program = torch.export.export(Module().eval(), (torch.zeros(QUERIES, bank.embeddings.shape[1]),))
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(openvino.convert_model(program), "CPU", config)
    return lambda queries: torch.from_numpy(compiled([queries.numpy()])[0])


def faiss_search(bank: MemoryBank, description: str) -> Search:
    """Build a FAISS index; an inverted file visits a sixteenth of its lists."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.index_factory(bank.embeddings.shape[1], description)
    index.train(bank.embeddings.numpy())
    index.add(bank.embeddings.numpy())
    if hasattr(index, "nlist"):
        index.nprobe = max(1, index.nlist // 16)

    def find(queries: Tensor) -> Tensor:
        squares, _ = index.search((queries - bank.center).numpy(), 1)
        return torch.from_numpy(squares[:, 0]).clamp(min=0).sqrt()

    return find


if __name__ == "__main__":
    sizes = {"images": 60, "banks": [1024, 4096, 16384, 65536]}
    torch.no_grad()(run_part)(__doc__, stored, indices, **sizes, threads=2, repeats=5)
