"""Run one cell in a process of its own: ``python -m anomalib_npgmf.benchmark.cell`` with a job on standard input.

The process ends when its standard input closes, see `anomalib_npgmf.benchmark.process`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from timm import is_model
from torchvision.transforms.v2 import Compose, Normalize

from anomalib_npgmf.backbone.network import normalisation_of
from anomalib_npgmf.benchmark import process
from anomalib_npgmf.benchmark.evaluate import TestPass, evaluate
from anomalib_npgmf.benchmark.gallery import write_gallery
from anomalib_npgmf.benchmark.plan import Cell
from anomalib_npgmf.benchmark.record import Record, hardware, path_of, peak_memory, versions, write_record
from anomalib_npgmf.benchmark.results import MERGED
from anomalib_npgmf.benchmark.weights import insert_files, references, served_by_timm
from anomalib_npgmf.host.plugin import register
from anomalib_npgmf.lightning_model import Npgmf


def run_cell(cell: Cell, files: dict[str, Path], stem: Path, scratch: Path) -> Record:
    """Train and test one cell; returns the fields of `Record` from ``metrics`` on.

    Args:
        cell: A model, a category and a seed.
        files: Local weights by timm name.
        stem: Path of the gallery's files, without role and suffix.
        scratch: Folder for what the training writes, such as checkpoints.
    """
    register()
    seed_everything(cell.seed, workers=True, verbose=False)
    root = {} if cell.root is None else {"root": cell.root}
    datamodule = _class("anomalib.data", cell.data_class)(**cell.data_args, **root)
    assert isinstance(datamodule, AnomalibDataModule)
    datamodule.prepare_data()  # the first cell of a category draws or unpacks; that is no training time
    test_pass = TestPass()
    with served_by_timm(files) as served:
        model = build_model(_class("anomalib.models", cell.model_class), insert_files(cell.model_args, files))
        assert isinstance(model, AnomalibModule)
        settings: dict[str, Any] = {"devices": 1, "default_root_dir": scratch, "logger": False}
        settings |= {"enable_progress_bar": False, "enable_model_summary": False} | cell.trainer
        engine = Engine(**settings, callbacks=[test_pass])
        start = time.perf_counter()
        engine.fit(model, datamodule=datamodule)
        fitted = time.perf_counter()
        logged = {name: value.item() for name, value in engine.trainer.callback_metrics.items()}
        epochs = engine.trainer.current_epoch
        begin = time.perf_counter()
        engine.test(model, datamodule=datamodule, verbose=False)
        tested = time.perf_counter()
    memory = peak_memory()  # of the model: the metrics come after
    found = test_pass.predictions
    metrics = {name: evaluate(kept, test_pass.labels, test_pass.masks) for name, kept in found.items()}
    folder = Path(getattr(datamodule, "root", "."))
    images = {
        Path(os.path.relpath(path, folder)).as_posix(): {name: kept[path].score for name, kept in found.items()}
        for path in found[MERGED]
    }
    used = sorted(references(cell.model_args) | (served & set(files)))
    gallery = write_gallery(test_pass, stem)
    seconds = {"fit": fitted - start, "test": tested - begin, "metrics": time.perf_counter() - tested}
    return {
        "metrics": metrics,
        "images": images,
        "gallery": gallery,
        "training": {name: value for name, value in logged.items() if math.isfinite(value)} | {"epochs": epochs},
        "model": _describe(model),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "weights": {name: hashlib.sha256(files[name].read_bytes()).hexdigest() for name in used},
        "peak_memory": memory,
    }


def build_model(model_class: Any, arguments: Mapping[str, Any]) -> Any:
    """A model without post-processor, evaluator and visualizer, with the normalisation of its network."""
    parts: dict[str, Any] = {"post_processor": False, "evaluator": False, "visualizer": False}
    if model_class is not Npgmf and is_model(arguments.get("backbone", "")):
        parts["pre_processor"] = pre_processor(model_class, arguments["backbone"])
    return model_class(**arguments, **parts)


def pre_processor(model_class: type[AnomalibModule], network: str) -> PreProcessor:
    """The model's pre-processing with the normalisation of its timm network; anomalib uses one for all networks.

    Example:
        >>> from anomalib.models import Padim
        >>> pre_processor(Padim, "tf_efficientnet_lite0").transform.transforms[-1].mean
        [0.5, 0.5, 0.5]
    """
    own: Any = model_class.configure_pre_processor()
    kept = [step for step in own.transform.transforms if not isinstance(step, Normalize)]
    return PreProcessor(transform=Compose([*kept, Normalize(*normalisation_of(network))]))


def _class(package: str, name: str) -> Any:
    """A class by its name in ``package`` or by its dotted path."""
    module, _, attribute = name.rpartition(".")
    try:
        return resolve_name(f"{module or package}:{attribute}")
    except (ImportError, AttributeError) as error:
        msg = f"There is no class {name} in {module or package}; give its name there or its dotted path."
        raise ValueError(msg) from error


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
    """Run the job on standard input and write its record; exit status 1 if it failed."""
    job = json.loads(process.read_job())
    cell, files = Cell(**job["cell"]), {name: Path(path) for name, path in job["weights"].items()}
    output = Path(job["output"])
    logging.getLogger("anomalib").setLevel(logging.WARNING)
    record: Record = {
        "status": "finished",
        "command": job["command"],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(),
        "hardware": hardware(),
    }
    try:
        record.update(run_cell(cell, files, path_of(output, cell).with_suffix(""), Path(job["scratch"])))
    except Exception as error:
        traceback.print_exc()
        record.update({"status": "failed", "error": f"{type(error).__name__}: {error}"})
    write_record(output, cell, record)
    return 0 if record["status"] == "finished" else 1


if __name__ == "__main__":
    sys.exit(main())
