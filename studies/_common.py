"""What the studies share: command line, results files, tables, times, memory and models."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from anomalib_npgmf.benchmark import tables
from anomalib_npgmf.benchmark.plan import load_plan
from anomalib_npgmf.benchmark.record import hardware, read, resident, versions, write
from anomalib_npgmf.benchmark.results import Group, load_results
from anomalib_npgmf.config import resolve
from anomalib_npgmf.torch_model import NpgmfModel

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "studies" / "results"
# what scripts were called when results were measured, and what they are called now
RENAMED = {
    "benchmarks/": "studies/",
    "growth.py build": "bank.py growth",
    "bank.py search": "bank_search.py",
    "bank_accuracy.py": "bank.py accuracy",
    "efficiency.py": "latency.py presets",
    "latency.py --": "latency.py models --",
    "gpu.py models": "latency.py gpu",
    "gpu.py bank": "bank.py gpu",
}
# scripts that make the results files that are not called like their script
MADE_BY = {
    "coreset": "bank.py coreset",
    "growth": "bank.py growth",
    "efficiency": "latency.py presets",
    "latency": "latency.py models",
    "gpu": "latency.py gpu",
    "gpu_bank": "bank.py gpu",
    **{f"bank_{part}": f"bank.py {part}" for part in ("build", "cover", "accuracy", "thinning")},
    **{f"export_{part}": f"export.py {part}" for part in ("formats", "latency")},
    **{name: f"{name}.py measure" for name in ("spro", "tries", "learning_curve")},
}
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
        known: Row = {} if isinstance(default, type) else {"default": default, "help": "default: %(default)s"}
        if isinstance(default, list):
            known |= {"nargs": "*", "type": type([*default, ""][0])}
        else:
            known["type"] = default if isinstance(default, type) else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", **known)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    return parsed


def run_part(doc: str | None, *parts: Callable[[argparse.Namespace], None], **defaults: Any) -> None:
    """Run the function that the first argument names; see `options`."""
    by_name = {part.__name__: part for part in parts}
    args = options(doc, *by_name, **defaults)
    by_name[args.part](args)


def load(name: str, folder: Path = RESULTS) -> Row:
    """Content of a results file; ``{"rows": []}`` if there is none yet."""
    path = folder / f"{name}.json"
    return read(path) if path.is_file() else {"rows": []}


def measured(name: str, folder: Path = RESULTS) -> Row:
    """Content of a results file that a report needs; without it, the program ends and says which command makes it."""
    result = load(name, folder)
    if not result["rows"]:
        script = MADE_BY.get(name, f"{name}.py")
        raise SystemExit(f"There is no {folder / name}.json; `python studies/{script}` makes it.")
    return result


def records(name: str) -> list[Group]:
    """Records of a plan by model and variant, of `mobilenet_ablation` also those of former variants."""
    path = ROOT / "configs" / "plans" / f"{name}.yaml"
    if not (RESULTS / name).is_dir():
        command = f"python -m anomalib_npgmf.benchmark run configs/plans/{name}.yaml --output studies/results/{name}"
        raise SystemExit(f"There is no {RESULTS / name}; `{command}` makes it.")
    return load_results(RESULTS / name, None if name == "mobilenet_ablation" else load_plan(path)).groups


def frame_of(name: str) -> pd.DataFrame:
    """Rows of a results file that a report needs."""
    return pd.DataFrame(measured(name)["rows"])


def save(path: Path, rows: Sequence[Row], **extra: object) -> None:
    """Write rows with the present command, versions and hardware, and print them as a table."""
    # absolute paths mean nothing on another machine
    script, *words = (Path(word).name if Path(word).is_absolute() else word for word in sys.argv)
    machine = hardware()
    environment = {
        **versions(),
        "cpu": machine["processor"],
        "threads": machine["threads"],
        "load_average": os.getloadavg()[0],
    }
    command = " ".join(["python", f"studies/{Path(script).name}", *words])
    write(path, {"command": command, "environment": environment, **extra, "rows": list(rows)})
    print(table(rows), flush=True)


def command_of(result: Row) -> str:
    """The command of a results file, by today's name of the script."""
    command: str = result["command"]
    for former, name in RENAMED.items():
        command = command.replace(former, name)
    return command


def source(result: Row) -> str:
    """Command, machine and load that a results file was measured with."""
    own = result["environment"]
    where = f"{own['cpu']}, {own['threads']} thread(s), torch {own['torch']}"
    return f"`{command_of(result)}` on {where}, load average {own['load_average']:.0f}"


def table(rows: Sequence[Row] | pd.DataFrame) -> str:
    """Markdown table; floats have three significant digits, missing values stay empty."""
    frame = pd.DataFrame(rows, dtype=object)
    texts = frame.where(frame.notna(), "").map(lambda cell: f"{cell:.3g}" if isinstance(cell, float) else str(cell))
    return tables.table(frame.columns, texts.to_numpy().tolist())


def section(name: str, columns: Sequence[str] | None = None, note: str = "") -> str:
    """Table of a results file, with all columns or some, the note and `source`."""
    result = measured(name)
    frame = pd.DataFrame(result["rows"], dtype=object)
    shown = frame[columns or list(frame)].rename(columns=lambda column: column.replace("_", " "))
    return f"{table(shown)}\n\n{note}{source(result)}"


def fill(page: Path, content: Mapping[str, str]) -> None:
    """Replace the text between ``<!-- name -->`` and ``<!-- /name -->`` in a document, by name."""
    text = page.read_text(encoding="utf-8")
    for name, part in content.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        text = f"{text.split(start)[0]}{start}\n{part}\n{end}{text.split(end)[1]}"
    page.write_text(text, encoding="utf-8")


def take_turns(calls: Mapping[str, Call], seconds: float = 0.0, turns: int = 3, warmup: int = 1) -> pd.DataFrame:
    """Time calls in alternation, so that other load on the machine affects all alike.

    Returns:
        ``wall`` and ``cpu`` seconds, indexed by name and turn, of at least ``turns`` turns and ``seconds`` in all.
    """
    rows: list[tuple[str, int, float, float]] = []
    begin, turn = time.perf_counter(), -warmup
    while turn < turns or time.perf_counter() - begin < seconds:
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            rows.append((name, turn, time.perf_counter() - wall, time.process_time() - cpu))
        turn += 1
    times = pd.DataFrame(rows, columns=["name", "turn", "wall", "cpu"])
    return times[times.turn >= 0].set_index(["name", "turn"])


def compared(calls: Mapping[str, Call], below: Mapping[str, list[str]], seconds: float) -> pd.DataFrame:
    """Medians of calls that take turns, ``wall_s`` and ``cpu_s`` by name, and the number of ``turns``.

    ``to_<label>_wall`` and ``to_<label>_cpu`` are medians of each turn's ratio to the sum of the calls that ``below``
    names, if all of them are there.
    """
    times = take_turns(calls, seconds)
    found = times.groupby("name", sort=False).median().add_suffix("_s")
    for label, names in below.items():
        for clock in ("wall", "cpu") if set(names) <= set(calls) else ():
            turns: pd.DataFrame = times[clock].unstack("name")
            found[f"to_{label}_{clock}"] = turns.div(turns[names].sum(axis="columns"), axis="index").median()
    return found.assign(turns=times.groupby("name").size())


def timed(call: Call, repeats: int = 3, warmup: int = 1) -> dict[str, float]:
    """Median ``wall_s`` and ``cpu_s`` of a call; CPU time hardly depends on what else the machine does."""
    return take_turns({"": call}, turns=repeats, warmup=warmup).median().add_suffix("_s").to_dict()


def alone(function: Callable[..., Any], *arguments: object) -> Any:
    """Result of a function that runs in a process of its own, whose memory holds nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Record ``peak_bytes``, this process's resident memory at its peak in the block, and ``added_bytes`` (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    found: dict[str, float] = {}
    before = resident("VmRSS")
    yield found
    found["peak_bytes"] = resident("VmHWM")
    found["added_bytes"] = found["peak_bytes"] - before


def ready(preset: str, **changes: Any) -> NpgmfModel:
    """Model of a preset with changes and a trivial calibration; it can predict once its bank is filled."""
    model = NpgmfModel(resolve(preset, changes)).eval()
    model.merger.calibrate({"logical": (1.0, 1.0), "structural": (1.0, 1.0)})
    return model


def with_bank(preset: str, images: int, device: str = "cpu", **changes: Any) -> NpgmfModel:
    """Model of a preset with random weights and a random bank, of the size that so many training images give."""
    torch.manual_seed(0)
    weights = {"text_prior": "random", "backbone_weights": "random", "structural_backbone_weights": "random"}
    model = ready(preset, **weights | changes).to(device)
    assert model.structural is not None
    image = torch.randn(1, 3, *model.config.image_size, device=device)
    patches = model.structural.embed(model.features(image).structural).flatten(0, 2)
    size = int(model.config.structural.coreset_ratio * images * len(patches))
    model.structural.bank.fill(torch.randn(size, patches.shape[1], device=device))
    return model
