"""Run one cell in a process of its own: ``python -m anomalib_npgmf.benchmark.cell`` with a job on standard input."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from lightning.pytorch import seed_everything

from anomalib_npgmf.benchmark.evaluate import MERGED, TestPass, evaluate
from anomalib_npgmf.benchmark.gallery import write_gallery
from anomalib_npgmf.benchmark.plan import Cell
from anomalib_npgmf.benchmark.record import hardware, path_of, versions, write_record
from anomalib_npgmf.benchmark.timing import process_peak
from anomalib_npgmf.benchmark.weights import digest, insert_files, references, served_by_timm
from anomalib_npgmf.host.plugin import register
from anomalib_npgmf.lightning_model import Npgmf


def run_cell(cell: Cell, files: dict[str, Path], stem: Path) -> dict[str, Any]:
    """Train and test one cell.

    Args:
        cell: What to run.
        files: Local weights by timm name.
        stem: What the pictures of the gallery are named after.

    Returns:
        Plain data: ``metrics`` by map (see `TestPass`), ``images`` (scores by map, by path relative to the data set's
        root), ``gallery`` (pictures by role, see `write_gallery`), ``training`` (what was logged at the end of the
        fit), ``model`` (size and settings), ``seconds``, ``weights`` (SHA-256 by timm name) and ``peak_memory``.
    """
    register()
    seed_everything(cell.seed, workers=True, verbose=False)
    datamodule = _class("anomalib.data", cell.data_class)(**_with_root(cell))
    assert isinstance(datamodule, AnomalibDataModule)
    datamodule.prepare_data()  # the first cell of a category draws or unpacks; that is no training time
    test_pass = TestPass()
    used = references(cell.model_args)
    with served_by_timm(files) as served, tempfile.TemporaryDirectory() as scratch:
        arguments = insert_files(cell.model_args, files)
        parts = {"post_processor": False, "evaluator": False, "visualizer": False}
        model = _class("anomalib.models", cell.model_class)(**arguments, **parts)
        assert isinstance(model, AnomalibModule)
        settings: dict[str, Any] = {"devices": 1, "default_root_dir": scratch, "logger": False}
        settings |= {"enable_progress_bar": False, "enable_model_summary": False} | cell.trainer
        engine = Engine(**settings, callbacks=[test_pass])
        start = time.perf_counter()
        engine.fit(model, datamodule=datamodule)
        fitted = time.perf_counter()
        logged = {name: value.item() for name, value in engine.trainer.callback_metrics.items()}
        epochs = engine.trainer.current_epoch
        test_pass.prepare(model)
        begin = time.perf_counter()
        engine.test(model, datamodule=datamodule, verbose=False)
        tested = time.perf_counter()
    memory = process_peak()  # of the model: the metrics come after
    metrics = {
        name: evaluate(predictions, test_pass.labels, test_pass.masks)
        for name, predictions in test_pass.predictions.items()
    }
    root = Path(getattr(datamodule, "root", "."))
    return {
        "metrics": metrics,
        "images": {
            Path(os.path.relpath(path, root)).as_posix(): {
                name: predictions[path].score for name, predictions in test_pass.predictions.items()
            }
            for path in test_pass.predictions[MERGED]
        },
        "gallery": write_gallery(test_pass, stem),
        "training": {name: value for name, value in logged.items() if math.isfinite(value)} | {"epochs": epochs},
        "model": _describe(model),
        "seconds": {
            "fit": round(fitted - start, 3),
            "test": round(tested - begin - test_pass.seconds, 3),
            "metrics": round(time.perf_counter() - tested, 3),
        },
        "weights": {name: digest(files[name]) for name in sorted(used | (served & set(files)))},
        "peak_memory": memory,
    }


def _class(package: str, name: str) -> Any:
    """A class by its name in ``package`` or by its dotted path."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module or package), attribute)
    except (ImportError, AttributeError) as error:
        msg = f"There is no class {name} in {module or package}; give its name there or its dotted path."
        raise ValueError(msg) from error


def _with_root(cell: Cell) -> dict[str, Any]:
    return cell.data_args if cell.root is None else cell.data_args | {"root": cell.root}


def _describe(model: AnomalibModule) -> dict[str, Any]:
    parameters = list(model.model.parameters())
    size: dict[str, Any] = {
        "parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
    }
    if isinstance(model, Npgmf):
        # presets may change between versions; local paths stay out
        settings = asdict(model.settings)
        size["settings"] = {name: value for name, value in settings.items() if not name.endswith("_weights")}
        merger = model.model.merger
        size["calibration"] = {"mean": merger.mean.tolist(), "std": merger.std.tolist()}
        if model.model.structural is not None:
            size["bank_patches"] = len(model.model.structural.bank)
    return size


def main() -> int:
    """Run the job on standard input and write its record, also if it fails.

    Returns:
        Exit status: 0, or 1 if the cell failed.
    """
    job = json.load(sys.stdin)
    cell, files = Cell(**job["cell"]), {name: Path(path) for name, path in job["weights"].items()}
    output = Path(job["output"])
    logging.getLogger("anomalib").setLevel(logging.WARNING)
    record: dict[str, Any] = {
        "status": "finished",
        "command": job["command"],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(),
        "hardware": hardware(),
    }
    try:
        record |= run_cell(cell, files, path_of(output, cell).with_suffix(""))
    except Exception as error:
        traceback.print_exc()
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    write_record(output, cell, record)
    return 0 if record["status"] == "finished" else 1


if __name__ == "__main__":
    sys.exit(main())
