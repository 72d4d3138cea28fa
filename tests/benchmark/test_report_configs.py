"""Configurations for ``anomalib benchmark``: read as it reads them, and accepted by the classes they name."""

import importlib
import inspect
from pathlib import Path

import pytest
import yaml
from anomalib.pipelines import Benchmark
from anomalib.pipelines.components.utils import get_iterator_from_grid_dict

from anomalib_npgmf.host.plugin import register

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("benchmark_*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_of_anomalib_benchmark(path: Path) -> None:
    register()
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(content) == {"accelerator", "benchmark"}
    assert Benchmark._setup_runners(content)
    jobs = list(get_iterator_from_grid_dict(content["benchmark"]))
    assert len(jobs) >= 5
    columns = set()
    for job in jobs:
        for package, part in (("anomalib.models", job["model"]), ("anomalib.data", job["data"])):
            found = getattr(importlib.import_module(package), part["class_path"])
            inspect.signature(found).bind(**part.get("init_args", {}))
        columns.add(frozenset(job["model"].get("init_args", {})))
    assert len(columns) == 1  # anomalib puts the arguments into its table, which needs equal columns
    assert any(job["model"]["class_path"] == "Npgmf" for job in jobs)
    if any(job["model"]["class_path"] != "Npgmf" for job in jobs):
        assert "LOCO" not in jobs[0]["data"]["class_path"]  # there Npgmf has columns that the others lack
