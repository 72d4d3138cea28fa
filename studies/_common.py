"""What the studies share: command line, results files, Markdown tables, turns of timing, images and patches."""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anomalib_npgmf.benchmark.record import read
from anomalib_npgmf.benchmark.timing import fix_threads
from anomalib_npgmf.config import resolve
from anomalib_npgmf.structural import StructuralBranch
from anomalib_npgmf.torch_model import NpgmfModel

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "studies" / "results"
Row = dict[str, Any]
Call = Callable[[], object]


def options(doc: str | None, *parts: str, **defaults: Any) -> argparse.Namespace:
    """Command line of a study; sets the number of threads.

    Args:
        doc: Docstring of the script, which explains the options.
        parts: What the first argument may be.
        defaults: Default by option; a list takes several values, a type stands for an option without a default.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if parts:
        parser.add_argument("part", choices=parts)
    for name, default in ({"threads": 1, "out": RESULTS} | defaults).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
            continue
        several, bare = isinstance(default, list), isinstance(default, type)
        kind = default if bare else type(([*default, ""])[0]) if several else type(default)
        value = {} if bare else {"default": default, "help": "default: %(default)s"}
        parser.add_argument(flag, type=kind, nargs="*" if several else None, **value)
    parsed = parser.parse_args()
    fix_threads(parsed.threads)
    return parsed


def load(name: str, folder: Path = RESULTS) -> Row:
    """A results file; without rows if it was not written yet."""
    path = folder / f"{name}.json"
    return read(path) if path.is_file() else {"rows": []}


def source(result: Row) -> str:
    """How the figures of a results file came about."""
    own, command = result["environment"], result["command"].replace("python benchmarks/", "python studies/")
    where = f"{own['cpu']}, {own['threads']} thread(s), torch {own['torch']}"
    return f"`{command}` on {where}, load average {own['load_average']:.0f}"


def table(rows: Sequence[Row] | pd.DataFrame, *, aligned: bool = False) -> str:
    """Markdown table; the columns are the keys of the first row.

    ``DataFrame.to_markdown`` needs a further package and fills every cell with blanks up to the widest one.

    Args:
        rows: Values by column; real numbers are shown with three digits.
        aligned: Whether numbers stand to the right; headings then stay as they are, else ``_`` becomes a blank.
    """
    rows = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    columns = list(rows[0])
    texts = [
        [f"{c:.3g}" if isinstance(c, float) else str(c) for c in (row.get(k, "") for k in columns)] for row in rows
    ]
    heading = columns if aligned else [column.replace("_", " ") for column in columns]
    head, *body = (f"| {' | '.join(line)} |" for line in (heading, *texts))
    rule = f"|---|{'---:|' * (len(columns) - 1)}" if aligned else f"|{' --- |' * len(columns)}"
    return "\n".join([head, rule, *body])


def fill(page: Path, content: Mapping[str, str]) -> None:
    """Put texts between their marks in a document."""
    text = page.read_text(encoding="utf-8")
    for name, part in content.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        text = f"{text.split(start)[0]}{start}\n{part}\n{end}{text.split(end)[1]}"
    page.write_text(text, encoding="utf-8")


def spread(values: Iterable[float], sign: str = "", scale: float = 1.0) -> str:
    """Mean and sample standard deviation over seeds, if there are several, with one decimal."""
    known = [value for value in values if not math.isnan(value)]
    mean = f"{round(scale * statistics.fmean(known), 1) + 0.0:{sign}.1f}" if known else ""  # + 0.0: no minus zero
    return f"{mean} ± {scale * statistics.stdev(known):.1f}" if len(known) > 1 else mean


def take_turns(calls: Mapping[str, Call], seconds: float = 0.0, turns: int = 3, warmup: int = 1) -> pd.DataFrame:
    """Time calls that take turns, so that whatever else the machine does meets all alike.

    Returns:
        ``wall`` and ``cpu`` seconds, indexed by name and turn, of at least that many turns and seconds.
    """
    rows: list[tuple[str, int, float, float]] = []
    begin, turn = time.perf_counter(), -warmup
    while turn < turns or time.perf_counter() - begin < seconds:
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            rows.append((name, turn, time.perf_counter() - wall, time.process_time() - cpu))
        turn += 1
    times = pd.DataFrame(rows, columns=["name", "turn", "wall", "cpu"])
    return times[times.turn >= 0].set_index(["name", "turn"])


def gflops(call: Call) -> float:
    """Floating-point operations, a multiplication and an addition counting as two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops()) / 1e9


def ready(preset: str, **changes: Any) -> NpgmfModel:
    """A preset with changes that can predict once its bank is filled."""
    model = NpgmfModel(resolve(preset, changes)).eval()
    model.merger.calibrate({"logical": (1.0, 1.0), "structural": (1.0, 1.0)})
    return model


def settle(network: nn.Module, images: Tensor) -> None:
    """Give every batch normalisation the statistics of the images, so that activations keep a natural scale."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    network(images)
    for norm in norms:
        norm.eval()


def smooth_images(count: int, size: int, seed: int = 0) -> Tensor:
    """Smooth random RGB images [count, 3, size, size]: noise of three scales, upsampled and added."""
    generator = torch.Generator().manual_seed(seed)
    noise = (torch.randn(count, 3, cells, cells, generator=generator) for cells in (4, 16, 64))
    return sum(nn.functional.interpolate(part, size=(size, size), mode="bicubic") for part in noise) / 3**0.5


def photographs(folder: Path, count: int, size: int) -> Tensor:
    """The first photographs below a folder as normalised images [count, 3, size, size]."""
    from torchvision.io import ImageReadMode, read_image
    from torchvision.transforms.v2.functional import resize

    paths = sorted(path for path in folder.rglob("*.png") if "good" in path.parts)[:count]
    images = [resize(read_image(str(path), ImageReadMode.RGB).float() / 255, [size, size]) for path in paths]
    return (torch.stack(images) - 0.45) / 0.225


@torch.no_grad()
def patches(count: int, folder: Path | None = None, batch: int = 4) -> tuple[Tensor, str]:
    """Patches [images, 1024, 1536] of a wide_resnet50_2 with random weights, and what they were made of.

    Batch normalisation uses the statistics of the batch, so that activations keep a natural scale without training.
    """
    images = photographs(folder, count, 256) if folder else smooth_images(count, 256)
    torch.manual_seed(0)
    network = timm.create_model("wide_resnet50_2", pretrained=False, features_only=True, out_indices=(2, 3)).train()
    branch = StructuralBranch(network.feature_info.channels())
    text = "wide_resnet50_2, random weights, on " + ("photographs" if folder else "smooth noise images")
    return torch.cat([branch.embed(network(chunk)).flatten(1, 2) for chunk in images.split(batch)]), text


def smooth_patches(index: int, side: int, dim: int = 1536) -> Tensor:
    """Spatially smooth patches of one image [1, side², dim], without running a network.

    A mixture of twelve parts, placed anew in every image and blended smoothly, with smooth variation in 32 directions
    on top: clusters with soft borders and a low intrinsic dimension, as backbone features have.
    """
    fixed = torch.Generator().manual_seed(0)
    parts, directions = torch.randn(12, dim, generator=fixed), torch.randn(32, dim, generator=fixed) / 4
    own = torch.Generator().manual_seed(1 + index)
    noise = torch.randn(1, 44, side // 8, side // 8, generator=own)
    maps = nn.functional.interpolate(noise, scale_factor=8.0, mode="bicubic")
    weights, variation = maps.flatten(2).transpose(1, 2).split([12, 32], dim=2)
    return ((3 * weights).softmax(dim=2) @ parts + variation @ directions).relu()
