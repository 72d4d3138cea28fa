"""What every benchmark script shares: fixed threads, medians after warm-up, peak memory, results file and table."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

RESULTS = Path(__file__).parent / "results"


def fix_threads(threads: int) -> None:
    """Use a fixed number of threads in every operator."""
    torch.set_num_threads(threads)


def measure(function: Callable[[], object], *, repeats: int = 3, warmup: int = 1) -> dict[str, float]:
    """Return the median wall and CPU seconds of a call.

    Wall time counts on an idle machine. CPU time, summed over threads, hardly changes where the machine is shared, so
    it is the one to compare when the two disagree.
    """
    for _ in range(warmup):
        function()
    wall, cpu = [], []
    for _ in range(repeats):
        start_wall, start_cpu = time.perf_counter(), time.process_time()
        function()
        wall.append(time.perf_counter() - start_wall)
        cpu.append(time.process_time() - start_cpu)
    return {"wall_s": statistics.median(wall), "cpu_s": statistics.median(cpu)}


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Record by how many bytes the block raises this process's resident memory at its peak (Linux).

    Yields:
        A dictionary that holds ``base_bytes``, ``peak_bytes`` and ``added_bytes`` once the block has ended.
    """
    clear = Path("/proc/self/clear_refs")
    clear.write_text("5")  # resets the high-water mark
    record: dict[str, float] = {"base_bytes": _status("VmRSS")}
    yield record
    record["peak_bytes"] = _status("VmHWM")
    record["added_bytes"] = record["peak_bytes"] - record["base_bytes"]


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def environment() -> dict[str, Any]:
    """Return versions and hardware, and how busy the machine was."""
    installed = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()}
    names = ("torch", "anomalib", "timm", "numpy", "openvino", "onnxruntime")
    versions = {name: installed[name] for name in names if name in installed}
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "python": platform.python_version(),
        **versions,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": os.getloadavg()[0],
    }


def save(name: str, rows: Sequence[dict[str, Any]], **extra: object) -> Path:
    """Write ``results/<name>.json`` with the command, the environment and the rows."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    # Where things lie on one machine means nothing on another.
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    command = "python studies/" + " ".join([Path(words[0]).name, *words[1:]])
    content = {"command": command, "environment": environment(), **extra, "rows": list(rows)}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def gflops(call: Callable[[], object]) -> float:
    """Floating-point operations, a multiplication and an addition counting as two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops()) / 1e9


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a Markdown table; columns are the keys of the first row."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(column.replace("_", " ") for column in columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        lines.append(
            "| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"
        )
    return "\n".join(lines)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a Markdown table."""
    print(table(rows))


def smooth_images(count: int, size: int, seed: int = 0) -> Tensor:
    """Return smooth random RGB images ``[count, 3, size, size]``: noise of three scales, upsampled and added."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(count, 3, size, size)
    for cells in (4, 16, 64):
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        image += nn.functional.interpolate(noise, size=(size, size), mode="bicubic")
    return image / 3**0.5


def photographs(folder: Path, count: int, size: int) -> Tensor:
    """Return the first photographs below ``folder`` as normalised images ``[count, 3, size, size]``."""
    from torchvision.io import ImageReadMode, read_image
    from torchvision.transforms.v2.functional import resize

    paths = sorted(path for path in folder.rglob("*.png") if "good" in path.parts)[:count]
    images = [resize(read_image(str(path), ImageReadMode.RGB).float() / 255, [size, size]) for path in paths]
    return (torch.stack(images) - 0.45) / 0.225


@torch.no_grad()
def patches(images: Tensor, backbone: str = "wide_resnet50_2", batch: int = 4) -> Tensor:
    """Return the structural branch's patches of each image ``[images, P, d]`` from a randomly initialised backbone.

    Batch normalisation uses the statistics of the batch, so that activations keep a natural scale without training.
    """
    import timm

    from anomalib_npgmf.structural import StructuralBranch

    torch.manual_seed(0)
    network = timm.create_model(backbone, pretrained=False, features_only=True, out_indices=(2, 3)).train()
    branch = StructuralBranch(network.feature_info.channels())
    return torch.cat([branch.embed(network(chunk)).flatten(1, 2) for chunk in images.split(batch)])


def smooth_patches(index: int, side: int, dim: int = 1536) -> Tensor:
    """Return spatially smooth patches of one image ``[1, side², dim]``, without running a network.

    A mixture of twelve parts, placed anew in every image and blended smoothly, with smooth variation in 32 directions
    on top: clusters with soft borders and a low intrinsic dimension, as backbone features have.
    """
    fixed = torch.Generator().manual_seed(0)
    parts, directions = torch.randn(12, dim, generator=fixed), torch.randn(32, dim, generator=fixed) / 4
    own = torch.Generator().manual_seed(1 + index)
    maps = nn.functional.interpolate(
        torch.randn(1, 44, side // 8, side // 8, generator=own), scale_factor=8.0, mode="bicubic"
    )
    weights, variation = maps.flatten(2).transpose(1, 2).split([12, 32], dim=2)
    return ((3 * weights).softmax(dim=2) @ parts + variation @ directions).relu()
