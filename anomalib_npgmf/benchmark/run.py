"""Run the cells of a plan: each in a process of its own, one at a time per device, none twice."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from anomalib_npgmf.benchmark.plan import Cell, Plan
from anomalib_npgmf.benchmark.record import path_of, read_record, write_record
from anomalib_npgmf.benchmark.weights import insert_files


@dataclass
class Runner:
    """Runs cells, one at a time on each CUDA device, or on the CPU if there is none."""

    output: Path  # folder of the records
    weights: dict[str, Path]  # local weights by timm name
    command: str  # repeats a cell, with ``{key}`` in the place of its name
    devices: Sequence[int] = ()  # numbers of the CUDA devices
    _running: set[subprocess.Popen[str]] = field(default_factory=set)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, plan: Plan, *, retry_failed: bool = False) -> dict[str, str]:
        """Run what is not done, and with ``retry_failed`` what failed before; show how long it will take.

        Returns:
            ``"finished"`` or ``"failed"`` by key, for all cells of the plan.

        Raises:
            ValueError: If weights are missing or records of other settings are in the way; nothing has run then.
        """
        for cell in plan.cells:
            insert_files(cell.model_args, self.weights)  # raises
        states = {cell.key: (read_record(self.output, cell) or {"status": "new"})["status"] for cell in plan.cells}
        again = {"new", "failed"} if retry_failed else {"new"}
        waiting = [cell for cell in plan.cells if states[cell.key] in again]
        free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        numbers: list[int | None] = [*self.devices] or [None]
        for device in numbers:
            free.put(device)
        with (
            ThreadPoolExecutor(max(len(self.devices), 1)) as pool,
            tqdm(total=len(plan.cells), initial=len(plan.cells) - len(waiting), unit="cell", desc=plan.name) as bar,
        ):
            futures = {pool.submit(self._run_on_free_device, cell, free): cell for cell in waiting}
            try:
                for future in as_completed(futures):
                    cell = futures[future]
                    states[cell.key] = future.result()
                    if states[cell.key] == "failed":
                        record = read_record(self.output, cell) or {}
                        bar.write(f"{cell.key} failed: {record.get('error')}")
                    bar.update()
            finally:
                # also on Ctrl-C: leave no process behind, and no record of a cell that was cut short
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(self._running):
                    process.terminate()
        return states

    def _run_on_free_device(self, cell: Cell, free: queue.SimpleQueue[int | None]) -> str:
        device = free.get()
        try:
            return self._run_cell(cell, device)
        finally:
            free.put(device)

    def _run_cell(self, cell: Cell, device: int | None) -> str:
        """Run one cell; its output is kept in a .log file beside the record if it fails."""
        path_of(self.output, cell).unlink(missing_ok=True)
        log = path_of(self.output, cell).with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        weights = {name: str(path) for name, path in self.weights.items()}
        command = self.command.format(key=cell.key)
        job = {"cell": asdict(cell), "weights": weights, "command": command, "output": str(self.output.resolve())}
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "anomalib_npgmf.benchmark.cell"],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": "" if device is None else str(device)},
            )
            self._running.add(process)
            process.communicate(json.dumps(job))
            self._running.discard(process)
        record = read_record(self.output, cell)
        if record is None:
            if self._stopped.is_set():
                return "new"
            # a process that could not even write its record: killed, or out of memory
            error = f"The process ended with status {process.returncode}; see {log.name}."
            record = {"status": "failed", "command": command, "error": error}
            write_record(self.output, cell, record)
        if record["status"] == "finished":
            log.unlink()
        return record["status"]
