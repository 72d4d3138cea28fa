"""Growth of the memory bank: build time and memory against images, search time against bank size and index.

    python studies/growth.py build     # 50 to 2,000 images of 256 patches, coreset ratio 1 %
    python studies/growth.py search    # torch, OpenVINO and, where installed, FAISS on growing banks
    python studies/growth.py plot      # results/growth.png
    python studies/growth.py docs      # tables of docs/large_banks.md

Patches are spatially smooth synthetic ones (d = 1536). Every build runs in a process of its own, so that its peak
memory is its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import multiprocessing
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from _common import ROOT, Row, fill, load, options, smooth_patches, source, table
from matplotlib.figure import Figure
from torch import Tensor

from anomalib_npgmf.benchmark.record import write
from anomalib_npgmf.benchmark.timing import fix_threads, measure, peak_memory
from anomalib_npgmf.structural import MemoryBank

QUERIES = 256  # patches of one image
DIM = 1536
COLLECT_BYTES = MemoryBank(1.0).collect_bytes  # of patches, above which every image is thinned
FEATURES = "spatially smooth synthetic patches, d = 1536"
Search = Callable[[Tensor], Tensor]


def build_one(images: int, threads: int) -> Row:
    """Build the bank of that many images and time one image's search in it."""
    fix_threads(threads)
    bank = MemoryBank(0.01)
    collect = 0.0
    with peak_memory() as memory:
        for index in range(images):
            block, start = smooth_patches(index, 16), time.process_time()
            bank.append(block, [f"{index:05d}"])
            collect += time.process_time() - start
        start = time.process_time()
        bank.finish()
        select = time.process_time() - start
    queries = smooth_patches(-1, 16)[0]
    return {
        "images": images,
        "patches": images * QUERIES,
        "bank": len(bank),
        "collect_cpu_s": collect,
        "select_cpu_s": select,
        "added_gb": memory["added_bytes"] / 1e9,
        "search_cpu_ms": 1e3 * measure(lambda: bank.search(queries), repeats=9)["cpu_s"],
    }


def exponents(rows: list[Row]) -> dict[str, float]:
    """Slopes of log-log fits against the number of images; those of building among the builds that thin nothing."""
    frame = pd.DataFrame(rows)
    logs = frame.clip(lower=1e-9).apply(np.log)
    whole = logs[frame.patches * DIM * 4 <= COLLECT_BYTES]
    fits = dict.fromkeys(("collect_cpu_s", "select_cpu_s", "added_gb"), whole) | {"search_cpu_ms": logs}
    return {column: float(np.polyfit(f.images, f[column], 1)[0]) for column, f in fits.items() if len(f) > 1}


def build(args: argparse.Namespace) -> None:
    """Measure builds of growing size."""
    rows = []
    for images in args.images:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(build_one, (images, args.threads)))
        # Saved after every row, so that a run that is cut short leaves what it measured.
        write(args.out / "growth.json", rows, features=FEATURES)
        print(rows[-1], flush=True)
    print(table(rows))
    print("exponents against images:", {name: round(value, 2) for name, value in exponents(rows).items()})


def search(args: argparse.Namespace) -> None:
    """Measure one image's search with each index on growing banks."""
    queries = smooth_patches(-1, 16)[0]
    rows: list[Row] = []
    for size in args.banks:
        bank = MemoryBank(1.0)
        bank.fill(torch.cat([smooth_patches(index, 16) for index in range(size // QUERIES)]).flatten(0, 1))
        exact = bank.search(queries)
        for name, setup in indices().items():
            start = time.process_time()
            find = setup(bank)
            row: Row = {"index": name, "bank": size, "bank_gb": bank.embeddings.nbytes / 1e9}
            row["prepare_cpu_s"] = time.process_time() - start
            seconds = measure(lambda find=find: find(queries), repeats=args.repeats)
            row |= {f"{clock}_ms": 1e3 * seconds[f"{clock}_s"] for clock in ("wall", "cpu")}
            rows.append(row | {"max_error": float(((find(queries) - exact).abs() / exact).max())})
            write(args.out / "growth_search.json", rows, features=FEATURES, queries=QUERIES)
            print(rows[-1], flush=True)
    print(table(rows))


def indices() -> dict[str, Callable[[MemoryBank], Search]]:
    """How to prepare each index that is installed."""
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


def plot(args: argparse.Namespace) -> None:
    """Draw build time, memory and search time against images, and search time against bank size."""
    built, found = (load(name, args.out)["rows"] for name in ("growth", "growth_search"))
    slopes, frame = exponents(built), pd.DataFrame(built).set_index("images")
    searched = pd.DataFrame(found).pivot(index="bank", columns="index", values="cpu_ms")
    names = dict.fromkeys(row["index"] for row in found)
    times = {
        f"{part} (exponent {slopes[f'{part}_cpu_s']:.2f})": frame[f"{part}_cpu_s"] for part in ("collect", "select")
    }
    memory = {f"exponent {slopes['added_gb']:.2f}": frame.added_gb}
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, curves, title, across, up in zip(
        figure.subplots(1, 3),
        (times, memory, {name: searched[name] for name in names}),
        ("Build time", "Peak memory of the build", "Search"),
        ("training images", "training images", "patches in the bank"),
        ("CPU seconds", "GB", "CPU ms per image"),
        strict=True,
    ):
        for label, values in curves.items():
            axes.loglog(values.index, values, "o-", label=label)
        axes.set(xlabel=across, ylabel=up, title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(args.out / "growth.png", dpi=120)
    print(args.out / "growth.png")


def docs(args: argparse.Namespace) -> None:
    """Rewrite the tables of docs/large_banks.md from the results."""
    built, found = (load(name, args.out) for name in ("growth", "growth_search"))
    slopes = ", ".join(f"{name} {value:.2f}" for name, value in exponents(built["rows"]).items())
    notes = {
        "growth": f"Exponents against the number of images: {slopes}; those of building among the builds that thin "
        "nothing.",
        "search": break_even(pd.DataFrame(found["rows"])),
    }
    content = {
        name: f"{table(result['rows'])}\n\n{notes[name]}\n\n{source(result)}; {result['features']}. The machine was "
        "shared, so read the CPU times, not the wall times."
        for name, result in zip(notes, (built, found), strict=True)
    }
    fill(ROOT / "docs" / "large_banks.md", content)


def break_even(rows: pd.DataFrame) -> str:
    """At which of the measured bank sizes each index needs less CPU time than torch."""
    times = rows.pivot(index="bank", columns="index", values="cpu_ms")
    sentences = []
    for name in rows["index"].unique()[1:]:
        faster = [f"{size:,}" for size in times.index[times[name] < 0.9 * times["torch"]]]
        sentences.append(f"{name} at {', '.join(faster) if faster else 'no'} patches")
    return f"At least 10 % less CPU time than torch, among the sizes measured: {'; '.join(sentences)}."


def main() -> None:
    parts = {"build": build, "search": search, "plot": plot, "docs": docs}
    sizes = {"images": [50, 100, 200, 500, 1000, 2000], "banks": [1024, 4096, 16384, 65536]}
    args = options(__doc__, *parts, **sizes, threads=2, repeats=5)
    parts[args.part](args)


if __name__ == "__main__":
    main()
