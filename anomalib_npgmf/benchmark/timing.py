"""Time and memory of calls: fixed threads, medians after a warm-up, peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def fix_threads(threads: int) -> None:
    """Use a fixed number of threads in every operator.

    Args:
        threads: Number of threads.
    """
    torch.set_num_threads(threads)


def measure(function: Callable[[], object], *, repeats: int = 3, warmup: int = 1) -> dict[str, float]:
    """Measure the median wall and CPU time of a call.

    Wall time counts on an idle machine. CPU time, summed over threads, hardly changes on a shared one.

    Args:
        function: What to call.
        repeats: Number of calls that are measured.
        warmup: Number of calls before them.

    Returns:
        Seconds, ``wall_s`` and ``cpu_s``.

    Example:
        >>> sorted(measure(lambda: sum(range(10))))
        ['cpu_s', 'wall_s']
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
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    found: dict[str, float] = {"base_bytes": _resident("VmRSS")}
    yield found
    found["peak_bytes"] = _resident("VmHWM")
    found["added_bytes"] = found["peak_bytes"] - found["base_bytes"]


def process_peak() -> dict[str, int]:
    """Largest memory of this process so far, in MiB: resident (Linux), and on the accelerator if there is one."""
    # not getrusage(), which on Linux starts at the size of the parent process
    found = {"resident_mib": _resident("VmHWM") // 2**20} if _STATUS.is_file() else {}
    if torch.cuda.is_available():
        found["accelerator_mib"] = torch.cuda.max_memory_allocated() // 2**20
    return found


def _resident(field: str) -> int:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
