"""Robustness tests of what reads files and arguments: damaged model files and data sets, wrong arguments, fixed seed.

Each try runs in a process of its own with a limit on memory and time. It counts as

- refused: one sentence in an exception that the function documents; where a file is damaged it names the file,
- unharmed: the result is that of the intact input,
- silent loss: another result, or any result where none can be right,
- crash: anything else, such as another exception, the end of the process or no end.

    python studies/tries.py measure    # writes results/tries.json
    python studies/tries.py report     # prints it as Markdown
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from _common import Row, measured, run_part, save, source, table
from _tries import (
    COUNTS,
    PLAIN,
    Bad,
    changed_checkpoints,
    damaged_files,
    foreign_files,
    make_files,
    spoil_data,
    write_maps,
)

from anomalib_npgmf import Npgmf, SyntheticLOCO
from anomalib_npgmf.export import describe
from anomalib_npgmf.metrics import evaluate_loco

OUTCOMES = ("refused", "unharmed", "silent loss", "crash")
MEMORY, SECONDS = 256 << 20, 60  # what a try may take, beyond what the process holds already
FORK = multiprocessing.get_context("fork")  # a try needs what the files were made with


class Try(NamedTuple):
    """One call with bad input."""

    function: str
    kind: str
    call: Callable[[], Any]
    right: Any = None  # the result for the intact input; None where no result can be right
    names: str = ""  # what the sentence must name
    errors: tuple[type[Exception], ...] = (ValueError, FileNotFoundError)


def outcome(attempt: Try) -> tuple[str, str]:
    """Make a try in a process of its own; its outcome and the reason."""
    reader, writer = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_make, args=(attempt, writer))
    child.start()
    writer.close()
    try:
        found: tuple[str, str] | None = reader.recv()
    except EOFError:
        found = None
    child.join()
    return found or ("crash", f"the process ended with status {child.exitcode}")


def _make(attempt: Try, writer: Any) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.alarm(SECONDS)
    writer.send(_call(attempt))


def _call(attempt: Try) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = attempt.call()
    except Exception as error:
        sentence = str(error)
        fits = isinstance(error, attempt.errors) and attempt.names in sentence and "\n" not in sentence
        return ("refused" if fits and sentence else "crash"), f"{type(error).__name__}: {sentence}"[:400]
    right = attempt.right is not None and value == attempt.right
    return ("unharmed" if right else "silent loss"), str(value)[:100]


def _weights(path: Path) -> str:
    """Digest of the tensors of a loaded model."""
    digest = hashlib.sha256()
    for name, tensor in Npgmf.load_from_checkpoint(path).state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def files(folder: Path, rng: np.random.Generator, count: int) -> Iterator[Try]:
    """Damaged and foreign model files."""
    (folder / "bad").mkdir()
    intact = make_files(folder)
    for suffix, path in intact.items():
        right = describe(path)
        bad = chain(damaged_files(path, folder / "bad", count, rng), foreign_files(suffix, folder / "bad"))
        yield from (Try(f"describe {suffix}", b.kind, partial(describe, b.path), right, b.path.name) for b in bad)
    path = intact[".ckpt"]
    right = _weights(path)
    name = "load_from_checkpoint"
    for bad in chain(damaged_files(path, folder / "bad", count, rng), foreign_files(".ckpt", folder / "bad")):
        yield Try(name, bad.kind, partial(_weights, bad.path), right)
    for bad in changed_checkpoints(path, folder / "bad", count, rng):
        yield Try(name, bad.kind, partial(_weights, bad.path), right)


def data_sets(folder: Path, rng: np.random.Generator, count: int) -> Iterator[Try]:
    """Categories in the layout of MVTec LOCO AD with one bad file."""
    intact = folder / "intact"
    plan = SyntheticLOCO(intact / "data", "cable_pairs", 64, 2, 2, 2, 2, 2)
    plan.prepare_data()
    write_maps(intact / "maps", intact / "data" / "cable_pairs")
    right = evaluate_loco(intact / "data", "cable_pairs", intact / "maps")
    for number in range(3 * count):  # they are small
        root = folder / str(number)
        shutil.copytree(intact, root)
        bad: Bad | None = spoil_data(root, rng)
        if bad is not None:
            call = partial(evaluate_loco, root / "data", "cable_pairs", root / "maps")
            named = bad.path.parent if (bad.kind, bad.path.suffix) == ("missing", ".png") else bad.path
            yield Try("evaluate_loco", bad.kind, call, right, named.name)


def arguments(folder: Path, _rng: np.random.Generator, _count: int) -> Iterator[Try]:
    """Wrong arguments."""
    errors = (ValueError, TypeError, OSError)
    paths = [*PLAIN, folder, "none.ckpt", "/dev/null", "x" * 5000 + ".pt", folder / "a.pt", folder / "b.ckpt"]
    (folder / "a.pt").mkdir()
    for path in paths:
        yield Try("describe", "arguments", partial(describe, path), errors=errors)
        yield Try("load_from_checkpoint", "arguments", partial(Npgmf.load_from_checkpoint, path), errors=errors)
    right = sorted(path.name for path in _drawn(folder / "right").rglob("*"))
    for name in ("category", "image_size", "seed", *COUNTS):
        for number, value in enumerate(value for value in PLAIN if not (isinstance(value, int) and value > 1)):
            call = partial(_names, folder / f"{name}{number}", **{name: value})
            yield Try("SyntheticLOCO", "arguments", call, right, errors=errors)
    _drawn(folder / "loco")
    write_maps(folder / "maps", folder / "loco" / "cable_pairs")
    for value in (*(value for value in PLAIN if value != [1]), *([value] for value in PLAIN), 0.05):  # 1 is a limit
        call = partial(evaluate_loco, folder / "loco", "cable_pairs", folder / "maps", value)
        yield Try("evaluate_loco", "arguments", call)


def _drawn(root: Path, **arguments: Any) -> Path:
    SyntheticLOCO(root, **{"category": "cable_pairs", "image_size": 64, **COUNTS, **arguments}).prepare_data()
    return root


def _names(root: Path, **arguments: Any) -> list[str]:
    return sorted(path.name for path in _drawn(root, **arguments).rglob("*"))


def measure(args: argparse.Namespace) -> None:
    """Make all tries."""
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    tries: list[Row] = []
    for make in (files, data_sets, arguments):
        with tempfile.TemporaryDirectory() as scratch:
            for attempt in list(make(Path(scratch), rng, args.count)):
                what, why = outcome(attempt)
                tries.append({"function": attempt.function, "input": attempt.kind, "what": what, "why": why})
    failures = [row for row in tries if row["what"] in OUTCOMES[2:]]
    for failure in failures:
        print(*failure.values(), sep=" | ")
    counts = pd.DataFrame(tries).groupby(["function", "input"], sort=False).what.value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=OUTCOMES, fill_value=0)
    counts.insert(0, "tries", counts.sum(axis="columns"))
    rows = counts.reset_index().to_dict("records")
    save(args.out / "tries.json", rows, seed=args.seed, count=args.count, failures=failures)


def report(args: argparse.Namespace) -> None:
    """Print the results by function."""
    result = measured("tries", args.out)
    rows = pd.DataFrame(result["rows"]).drop(columns="input").groupby("function", sort=False).sum()
    rows.loc["together"] = rows.sum()
    print(f"{table(rows.reset_index())}\n\n{source(result)}")


if __name__ == "__main__":
    run_part(__doc__, measure, report, seed=0, count=100)
