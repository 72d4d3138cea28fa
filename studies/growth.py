"""Time of one image's search in banks of growing size, with torch, OpenVINO and, where installed, FAISS.

    python studies/growth.py search
    python studies/growth.py docs      # tables of docs/large_banks.md, also from `studies/bank.py growth`

Patches are spatially smooth synthetic ones (d = 1536).
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from _common import ROOT, Row, fill, load, measure, run_part, save, section, smooth_patches
from torch import Tensor

from anomalib_npgmf.structural import MemoryBank

QUERIES = 256  # patches of one image
DIM = 1536
COLLECT_BYTES = MemoryBank(1.0).collect_bytes  # of patches, above which every image is thinned
FEATURES = f"spatially smooth synthetic patches, d = {DIM}"
BUILT = ["images", "patches", "bank", "collect_cpu_s", "select_cpu_s", "added_gb", "search_cpu_ms"]
Search = Callable[[Tensor], Tensor]


def search(args: argparse.Namespace) -> None:
    """Measure every index on banks of growing size."""
    queries = smooth_patches([-1], 16)[0]
    rows: list[Row] = []
    for size in args.banks:
        bank = MemoryBank(1.0)
        bank.fill(smooth_patches(range(size // QUERIES), 16).flatten(0, 1))
        exact = bank.search(queries)
        for name, prepare in indices().items():
            start = time.process_time()
            find = prepare(bank)
            row: Row = {"index": name, "bank": size, "bank_gb": bank.embeddings.nbytes / 1e9}
            row["prepare_cpu_s"] = time.process_time() - start
            seconds = measure(lambda find=find: find(queries), args.repeats)
            row |= {f"{clock}_ms": 1e3 * seconds[f"{clock}_s"] for clock in ("wall", "cpu")}
            rows.append(row | {"max_error": float(((find(queries) - exact).abs() / exact).max())})
        save(args.out / "growth_search.json", rows, features=FEATURES, queries=QUERIES)


def indices() -> dict[str, Callable[[MemoryBank], Search]]:
    """Functions that prepare a search, for each index that is installed."""
    found: dict[str, Callable[[MemoryBank], Search]] = {"torch": lambda bank: bank.search, "torch, 4 shards": sharded}
    if importlib.util.find_spec("openvino"):
        found["openvino"] = openvino_search
    if importlib.util.find_spec("faiss"):
        found["faiss flat"] = lambda bank: faiss_search(bank, "Flat")
        found["faiss ivf"] = lambda bank: faiss_search(bank, f"IVF{int(4 * math.sqrt(len(bank)))},Flat")
    return found


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

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bank = bank

        def forward(self, queries: Tensor) -> Tensor:
            return self.bank.search(queries)

    program = torch.export.export(Module().eval(), (torch.zeros(QUERIES, DIM),))
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(openvino.convert_model(program), "CPU", config)
    return lambda queries: torch.from_numpy(compiled([queries.numpy()])[0])


def faiss_search(bank: MemoryBank, description: str) -> Search:
    """Build a FAISS index; an inverted file visits a sixteenth of its lists."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.index_factory(DIM, description)
    index.train(bank.embeddings.numpy())
    index.add(bank.embeddings.numpy())
    if hasattr(index, "nlist"):
        index.nprobe = max(1, index.nlist // 16)

    def find(queries: Tensor) -> Tensor:
        squares, _ = index.search((queries - bank.center).numpy(), 1)
        return torch.from_numpy(squares[:, 0]).clamp(min=0).sqrt()

    return find


def exponents(built: pd.DataFrame) -> str:
    """Slopes of log-log fits against the number of images; for building only builds where no image is thinned."""
    logs = built[BUILT].apply(np.log)
    whole = logs[built.patches * DIM * 4 <= COLLECT_BYTES]
    fits = dict.fromkeys(("collect_cpu_s", "select_cpu_s", "added_gb"), whole) | {"search_cpu_ms": logs}
    slopes = [f"{column} {np.polyfit(f.images, f[column], 1)[0]:.2f}" for column, f in fits.items()]
    return (
        f"Exponents against the number of images: {', '.join(slopes)}; those of building among the builds that thin "
        "nothing."
    )


def break_even(found: pd.DataFrame) -> str:
    """Sentence: at which of the measured bank sizes each index needs at least 10 % less CPU time than torch."""
    times = found.pivot(index="bank", columns="index", values="cpu_ms")
    sentences = []
    for name in found["index"].unique()[1:]:
        faster = [f"{size:,}" for size in times.index[times[name] < 0.9 * times["torch"]]]
        sentences.append(f"{name} at {', '.join(faster) if faster else 'no'} patches")
    return f"At least 10 % less CPU time than torch, among the sizes measured: {'; '.join(sentences)}."


def docs(_: argparse.Namespace) -> None:
    """Rewrite the tables of docs/large_banks.md from the results."""
    end = f"; {FEATURES}. The machine was shared, so read the CPU times, not the wall times."
    built, found = (pd.DataFrame(load(name)["rows"]) for name in ("growth", "growth_search"))
    content = {
        "growth": section("growth", BUILT, f"{exponents(built)}\n\n") + end,
        "search": section("growth_search", None, f"{break_even(found)}\n\n") + end,
    }
    fill(ROOT / "docs" / "large_banks.md", content)


if __name__ == "__main__":
    run_part(__doc__, search, docs, banks=[1024, 4096, 16384, 65536], threads=2, repeats=5)
