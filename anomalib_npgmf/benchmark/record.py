"""One JSON file per cell: what ran, on what, and what came out."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from anomalib_npgmf.benchmark.plan import Cell

_PACKAGES = ("anomalib-npgmf", "anomalib", "torch", "torchvision", "lightning", "timm", "open_clip_torch", "numpy")


def identity(cell: Cell) -> dict[str, Any]:
    """What a cell is: all of it but where its images lie.

    Example:
        >>> cell = Cell("npgmf", "full", "cable_pairs", 0, "Npgmf", {}, "SyntheticLOCO", {}, {}, root="images")
        >>> "root" in identity(cell)
        False
    """
    content: dict[str, Any] = json.loads(json.dumps(asdict(cell)))  # tuples become lists, as in a file
    del content["root"]
    return content


def path_of(output: Path, cell: Cell) -> Path:
    """File of a cell's record."""
    return output / f"{cell.key}.json"


def read_record(output: Path, cell: Cell) -> dict[str, Any] | None:
    """Record of a cell, if there is one.

    Raises:
        ValueError: If the file holds results of a cell with other settings.
    """
    path = path_of(output, cell)
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    now = identity(cell)
    if other := [key for key in now if record["cell"].get(key) != now[key]]:
        if record["status"] == "failed":
            return None  # nothing is lost by trying anew
        msg = f"{path} was made with another {' and '.join(other)} than the plan has now; choose another output folder."
        raise ValueError(msg)
    return record


def write_record(output: Path, cell: Cell, record: dict[str, Any]) -> None:
    """Write a record at once, so that an interrupted run leaves no half of one."""
    path = path_of(output, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    text = json.dumps({"cell": identity(cell)} | record, indent=1)
    # one line per list of numbers; no text can match, since JSON escapes the line breaks inside it
    text = re.sub(r"\[\n[-+.,eE\d\s]*\]", lambda numbers: "".join(numbers.group().split()).replace(",", ", "), text)
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that matter, and the project's commit where it runs from a git checkout."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    with suppress(OSError, subprocess.CalledProcessError):  # an installed package has no commit
        found["commit"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    return found


def hardware() -> dict[str, Any]:
    """Processor, number of threads and accelerator of this process."""
    import torch

    found: dict[str, Any] = {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found


def peak_memory() -> dict[str, int]:
    """Largest memory that this process has held so far, in MiB: resident, and on the accelerator."""
    import torch

    found = {}
    status = Path("/proc/self/status")
    if status.is_file():
        # not getrusage(), which on Linux starts at the size of the parent process
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        found["resident_mib"] = int(line.split()[1]) // 1024
    if torch.cuda.is_available():
        found["accelerator_mib"] = torch.cuda.max_memory_allocated() // 2**20
    return found


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
