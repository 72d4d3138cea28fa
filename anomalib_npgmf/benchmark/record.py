"""Results files: what ran, on which machine, and the results."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

from anomalib_npgmf.benchmark.plan import Cell
from anomalib_npgmf.disk import replace_bytes

_PACKAGES = (
    *("anomalib-npgmf", "anomalib", "torch", "torchvision", "lightning", "timm", "open_clip_torch", "numpy"),
    *("openvino", "onnxruntime"),
)
_STATUS = Path("/proc/self/status")


class Record(TypedDict, total=False):
    """Results file of a cell. A failed cell has ``error`` instead of the fields from ``metrics`` on."""

    cell: dict[str, Any]  # what ran, see `identity`
    status: str  # "finished" or "failed"
    command: str  # runs the cell again
    started: str  # time in UTC
    versions: dict[str, str]
    hardware: dict[str, Any]
    error: str  # type and text of the exception
    metrics: dict[str, dict[str, Any]]  # by map, see `evaluate`
    images: dict[str, dict[str, float]]  # scores by path below the data set's root, then by map
    gallery: dict[str, str]  # names of the pictures beside the record by role, see `choose`
    training: dict[str, float]  # what was logged at the end of the fit, and the number of epochs
    model: dict[str, Any]  # size, settings and calibration
    seconds: dict[str, float]  # of fit, test and metrics
    weights: dict[str, str]  # SHA-256 of local weights by name of the network
    peak_memory: dict[str, int]  # see `peak_memory`


def identity(cell: Cell) -> dict[str, Any]:
    """What identifies a cell: all its fields except the folder of the data set.

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


def read(path: Path) -> dict[str, Any]:
    """Read a results file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a results file atomically, so that an interrupted run leaves no incomplete one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1)
    # one line per list of numbers; no text can match, since JSON escapes the line breaks inside it
    text = re.sub(r"\[\n[-+.,eE\d\s]*\]", lambda numbers: "".join(numbers.group().split()).replace(",", ", "), text)
    replace_bytes(path, f"{text}\n".encode())


def read_record(output: Path, cell: Cell) -> Record | None:
    """Record of a cell, if there is one.

    Raises:
        ValueError: If the file holds results of a cell with other settings.
    """
    path = path_of(output, cell)
    if not path.is_file():
        return None
    record: Record = read(path)  # type: ignore[assignment]
    now = identity(cell)
    if other := [key for key in now if record["cell"].get(key) != now[key]]:
        if record["status"] == "failed":
            return None  # nothing is lost by trying anew
        msg = f"{path} was made with another {' and '.join(other)} than the plan has now; choose another output folder."
        raise ValueError(msg)
    return record


def write_record(output: Path, cell: Cell, record: Mapping[str, Any]) -> None:
    """Write the record of a cell."""
    write(path_of(output, cell), {"cell": identity(cell), **record})


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

    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = (line for line in information.read_text().splitlines() if line.startswith("model name"))
        processor = next((name.partition(":")[2].strip() for name in names), processor)
    found: dict[str, Any] = {"processor": processor, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found


def peak_memory() -> dict[str, int]:
    """Largest memory of this process so far, in MiB: resident (Linux), and on the accelerator if there is one."""
    import torch

    # not getrusage(), which on Linux starts at the size of the parent process
    found = {"resident_mib": resident("VmHWM") // 2**20} if _STATUS.is_file() else {}
    if torch.cuda.is_available():
        found["accelerator_mib"] = torch.cuda.max_memory_allocated() // 2**20
    return found


def resident(field: str) -> int:
    """Resident memory of this process in bytes (Linux): now (``VmRSS``) or at its peak (``VmHWM``)."""
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
