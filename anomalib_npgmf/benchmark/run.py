"""Run the cells of a plan: each in a process of its own, none twice."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from anomalib_npgmf.benchmark import process
from anomalib_npgmf.benchmark.plan import Cell, Plan
from anomalib_npgmf.benchmark.record import Record, path_of, read_record, write_record
from anomalib_npgmf.benchmark.weights import insert_files


@dataclass
class Runner:
    """Runs cells one after the other, on the first visible CUDA device, else on the CPU."""

    output: Path  # folder of the records
    weights: dict[str, Path]  # local weights by timm name
    command: str  # repeats a cell, with ``{key}`` in the place of its name

    def run(self, plan: Plan, *, retry_failed: bool = False) -> dict[str, str]:
        """Run what is not done, and with ``retry_failed`` what failed before, with a progress bar.

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
        with tqdm(total=len(plan.cells), initial=len(plan.cells) - len(waiting), unit="cell", desc=plan.name) as bar:
            for cell in waiting:
                record = self._run_cell(cell)
                states[cell.key] = record["status"]
                if record["status"] == "failed":
                    bar.write(f"{cell.key} failed: {record.get('error')}")
                bar.update()
        return states

    def _run_cell(self, cell: Cell) -> Record:
        """Run one cell; its output is kept in a .log file beside the record unless it finishes."""
        path = path_of(self.output, cell)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.with_suffix(".log")
        weights = {name: str(file) for name, file in self.weights.items()}
        command = self.command.format(key=cell.key)
        job = {"cell": asdict(cell), "weights": weights, "command": command, "output": str(self.output.resolve())}
        call = [sys.executable, "-m", "anomalib_npgmf.benchmark.cell"]
        with tempfile.TemporaryDirectory(prefix="npgmf_cell_") as scratch:  # removed here, since the cell may be killed
            status = process.run(call, json.dumps(job | {"scratch": scratch}), log)
        record = read_record(self.output, cell)
        if record is None:
            # a process that could not even write its record: killed, or out of memory
            error = f"The process ended with status {status}; see {log.name}."
            record = {"status": "failed", "command": command, "error": error}
            write_record(self.output, cell, record)
        if record["status"] == "finished":
            log.unlink()
        return record
