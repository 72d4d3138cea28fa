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
import json
import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import RESULTS, fix_threads, measure, peak_memory, print_table, save, smooth_patches, table
from torch import Tensor

from anomalib_npgmf.structural import MemoryBank

QUERIES = 256  # patches of one image
DIM = 1536
COLLECT_BYTES = MemoryBank(1.0).collect_bytes  # of patches, above which every image is thinned


def build_one(images: int, threads: int) -> dict[str, float]:
    """Build the bank of that many images and time one image's search in it."""
    fix_threads(threads)
    bank = MemoryBank(0.01)
    blocks = (smooth_patches(index, 16) for index in range(images))
    collect = select = 0.0
    with peak_memory() as memory:
        for index, block in enumerate(blocks):
            start = time.process_time()
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


def exponents(rows: list[dict[str, float]], against: str, columns: list[str]) -> dict[str, float]:
    """Return the slope of each column in a log-log fit."""
    x = torch.tensor([math.log(row[against]) for row in rows])
    slopes = {}
    for column in columns:
        y = torch.tensor([math.log(max(row[column], 1e-9)) for row in rows])
        slopes[column] = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum().clamp_min(1e-12))
    return slopes


def build(args: argparse.Namespace) -> None:
    """Measure builds of growing size."""
    rows = []
    for images in args.images:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(build_one, (images, args.threads)))
        print(rows[-1], flush=True)
        # Saved after every row, so that a run that is cut short leaves what it measured.
        save("growth", rows, features="spatially smooth synthetic patches, d = 1536")
    print_table(rows)
    print("exponents against images:", {key: round(value, 2) for key, value in growth_exponents(rows).items()})


def growth_exponents(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the exponents against the number of images; those of building among the builds that thin nothing."""
    whole = [row for row in rows if row["patches"] * DIM * 4 <= COLLECT_BYTES]
    slopes = exponents(whole, "images", ["collect_cpu_s", "select_cpu_s", "added_gb"])
    return slopes | exponents(rows, "images", ["search_cpu_ms"])


def search(args: argparse.Namespace) -> None:
    """Measure one image's search with each index on growing banks."""
    queries = smooth_patches(-1, 16)[0]
    rows: list[dict[str, Any]] = []
    for size in args.banks:
        blocks = torch.cat([smooth_patches(index, 16) for index in range(size // QUERIES)])
        bank = MemoryBank(1.0)
        bank.center = blocks.mean(dim=(0, 1))
        bank.embeddings = blocks.flatten(0, 1) - bank.center
        bank.norms = bank.embeddings.square().sum(dim=1)
        del blocks
        exact = bank.search(queries)
        for name, setup in indices().items():
            start = time.process_time()
            find = setup(bank)
            prepared = time.process_time() - start
            seconds = measure(lambda f=find: f(queries), repeats=args.repeats)
            error = ((find(queries) - exact).abs() / exact).max()
            rows.append(
                {
                    "index": name,
                    "bank": size,
                    "bank_gb": bank.embeddings.nbytes / 1e9,
                    "prepare_cpu_s": prepared,
                    "wall_ms": 1e3 * seconds["wall_s"],
                    "cpu_ms": 1e3 * seconds["cpu_s"],
                    "max_error": float(error),
                }
            )
            print(rows[-1], flush=True)
            save("growth_search", rows, features="spatially smooth synthetic patches, d = 1536", queries=QUERIES)
    print_table(rows)


def indices() -> dict[str, Callable[[MemoryBank], Callable[[Tensor], Tensor]]]:
    """Return how to prepare each index that is installed."""
    available: dict[str, Callable[[MemoryBank], Callable[[Tensor], Tensor]]] = {
        "torch": lambda bank: bank.search,
        "torch, 4 shards": sharded,
    }
    if importlib.util.find_spec("openvino"):
        available["openvino"] = openvino_search
    if importlib.util.find_spec("faiss"):
        available["faiss flat"] = lambda bank: faiss_search(bank, "Flat")
        available["faiss ivf"] = lambda bank: faiss_search(bank, f"IVF{int(4 * math.sqrt(len(bank)))},Flat")
    return available


def sharded(bank: MemoryBank) -> Callable[[Tensor], Tensor]:
    """Search four parts of the bank one after the other and take the smallest distance."""
    shards = []
    for part in range(4):
        shard = MemoryBank(1.0)
        shard.center, shard.embeddings, shard.norms = bank.center, bank.embeddings[part::4], bank.norms[part::4]
        shard.embeddings = shard.embeddings.contiguous()
        shards.append(shard)
    return lambda queries: torch.stack([shard.search(queries) for shard in shards]).amin(dim=0)


def openvino_search(bank: MemoryBank) -> Callable[[Tensor], Tensor]:
    """Compile the search with OpenVINO in float32."""
    import openvino

    class Search(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bank = bank

        def forward(self, queries: Tensor) -> Tensor:
            return self.bank.search(queries)

    program = torch.export.export(Search().eval(), (torch.zeros(QUERIES, bank.embeddings.shape[1]),))
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(openvino.convert_model(program), "CPU", options)
    return lambda queries: torch.from_numpy(compiled([queries.numpy()])[0])


def faiss_search(bank: MemoryBank, description: str) -> Callable[[Tensor], Tensor]:
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


def plot(_: argparse.Namespace) -> None:
    """Draw build time, memory and search time against images, and search time against bank size."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    built = json.loads((RESULTS / "growth.json").read_text())
    found = json.loads((RESULTS / "growth_search.json").read_text())
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    images = [row["images"] for row in built["rows"]]
    slopes = growth_exponents(built["rows"])
    for column, label in (("collect_cpu_s", "collect"), ("select_cpu_s", "select")):
        values = [row[column] for row in built["rows"]]
        axes[0].loglog(images, values, "o-", label=f"{label} (exponent {slopes[column]:.2f})")
    axes[0].set(xlabel="training images", ylabel="CPU seconds", title="Build time")
    slope = slopes["added_gb"]
    axes[1].loglog(images, [row["added_gb"] for row in built["rows"]], "o-", label=f"exponent {slope:.2f}")
    axes[1].set(xlabel="training images", ylabel="GB", title="Peak memory of the build")
    for name in dict.fromkeys(row["index"] for row in found["rows"]):
        points = [(row["bank"], row["cpu_ms"]) for row in found["rows"] if row["index"] == name]
        axes[2].loglog(*zip(*points, strict=True), "o-", label=name)
    axes[2].set(xlabel="patches in the bank", ylabel="CPU ms per image", title="Search")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(RESULTS / "growth.png", dpi=120)
    print(RESULTS / "growth.png")


def docs(_: argparse.Namespace) -> None:
    """Rewrite the tables of docs/large_banks.md from the results."""
    page = Path(__file__).parents[1] / "docs" / "large_banks.md"
    text = page.read_text()
    built = json.loads((RESULTS / "growth.json").read_text())
    found = json.loads((RESULTS / "growth_search.json").read_text())
    slopes = ", ".join(f"{key} {value:.2f}" for key, value in growth_exponents(built["rows"]).items())
    tables = {
        "growth": f"{table(built['rows'])}\n\nExponents against the number of images: {slopes}; those of building "
        f"among the builds that thin nothing.\n\n{source(built)}",
        "search": f"{table(found['rows'])}\n\n{break_even(found['rows'])}\n\n{source(found)}",
    }
    for name, content in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        text = f"{text.split(start)[0]}{start}\n{content}\n{end}{text.split(end)[1]}"
    page.write_text(text)


def break_even(rows: list[dict[str, Any]]) -> str:
    """Say at which of the measured bank sizes each index needs less CPU time than torch."""
    torch_ms = {row["bank"]: row["cpu_ms"] for row in rows if row["index"] == "torch"}
    sentences = []
    for name in dict.fromkeys(row["index"] for row in rows if row["index"] != "torch"):
        own = {row["bank"]: row["cpu_ms"] for row in rows if row["index"] == name}
        faster = [f"{size:,}" for size in own if own[size] < 0.9 * torch_ms[size]]
        sentences.append(f"{name} at {', '.join(faster) if faster else 'no'} patches")
    return f"At least 10 % less CPU time than torch, among the sizes measured: {'; '.join(sentences)}."


def source(result: dict[str, Any]) -> str:
    """Say how the figures of a results file came about."""
    environment = result["environment"]
    return (
        f"`{result['command']}` on {environment['cpu']}, {environment['threads']} thread(s), torch "
        f"{environment['torch']}, load average {environment['load_average']:.0f}; {result['features']}. The "
        "machine was shared, so read the CPU times, not the wall times."
    )


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("build", "search", "plot", "docs"))
    parser.add_argument("--images", type=int, nargs="+", default=[50, 100, 200, 500, 1000, 2000])
    parser.add_argument("--banks", type=int, nargs="+", default=[1024, 4096, 16384, 65536])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    fix_threads(args.threads)
    {"build": build, "search": search, "plot": plot, "docs": docs}[args.part](args)


if __name__ == "__main__":
    main()
