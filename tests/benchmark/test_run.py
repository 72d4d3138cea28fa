"""The command: records, going on where it stopped, failures."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from anomalib_npgmf.benchmark.__main__ import main
from anomalib_npgmf.benchmark.plan import parse_plan
from anomalib_npgmf.benchmark.record import read_record, write_record

COUNTS = dict.fromkeys(("num_train", "num_validation", "num_test_good", "num_test_logical", "num_test_structural"), 2)


def write_plan(folder: Path, **models: Any) -> Path:
    data = {"root": str(folder / "images"), "category": "{category}", "seed": "{seed}", "image_size": 64, **COUNTS}
    plan = {
        "data": {"class_path": "SyntheticLOCO", "init_args": data},
        "categories": ["cable_pairs"],
        "seeds": [1],
        "trainer": {"max_epochs": 1},
        "models": models,
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return path


def read(folder: Path, model: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / model / "default/cable_pairs/seed1.json").read_text(encoding="utf-8"))
    return record


def test_run_records_goes_on_and_retries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"class_path": "Npgmf", "init_args": {"preset": "small", "logical_image_size": 128}}
    plan = write_plan(tmp_path, broken={"class_path": "Nothing"}, npgmf=small)
    output = tmp_path / "results"
    command = ["run", str(plan), "--output", str(output)]

    assert main(command) == 1
    assert "1 finished, 1 failed" in capsys.readouterr().out
    failed = read(output, "broken")
    assert failed["status"] == "failed"
    assert "There is no class Nothing in anomalib.models" in failed["error"]
    assert (output / "broken/default/cable_pairs/seed1.log").is_file()

    record = read(output, "npgmf")
    assert record["status"] == "finished"
    assert record["cell"]["seed"] == 1
    assert record["cell"]["trainer"] == {"max_epochs": 1}
    assert record["command"].endswith("--only npgmf/default/cable_pairs/seed1")
    assert {"python", "torch", "anomalib"} <= set(record["versions"])
    assert record["hardware"]["cores"] >= 1
    maps = {"merged", "logical", "structural", "1:3", "3:1", "1:1", "maximum"}
    assert set(record["metrics"]) == maps
    for metrics in record["metrics"].values():
        assert {"loco_auroc", "spro", "image_auroc", "pixel_auroc"} <= set(metrics)
    assert len(record["images"]) == 6
    assert set(record["images"]["cable_pairs/test/good/000.png"]) == maps
    roles = {
        "best_logical",
        "best_structural",
        "worst_good",
        "worst_anomalous",
        "borderline_good",
        "borderline_anomalous",
    }
    assert set(record["gallery"]) == roles
    for name in record["gallery"].values():
        assert 0 < (output / "npgmf/default/cable_pairs" / name).stat().st_size < 40_000
    assert {"train_loss", "epochs"} <= set(record["training"])
    assert any(name.startswith("perplexity") for name in record["training"])
    assert record["model"]["bank_patches"] > 0
    assert record["model"]["settings"]["logical_image_size"] == [128, 128]
    assert 0 < record["seconds"]["fit"] < 600
    assert record["peak_memory"].get("resident_mib", 100) >= 100
    assert not (output / "npgmf/default/cable_pairs/seed1.log").exists()
    assert str(tmp_path) not in json.dumps(record)

    files = [output / model / "default/cable_pairs/seed1.json" for model in ("npgmf", "broken")]
    before = [file.stat().st_mtime_ns for file in files]
    assert main(command) == 1
    assert [file.stat().st_mtime_ns for file in files] == before

    assert main([*command, "--retry-failed"]) == 1
    after = [file.stat().st_mtime_ns for file in files]
    assert after[0] == before[0]
    assert after[1] > before[1]

    assert main([*command, "--epochs", "2"]) == 1
    assert "another trainer" in capsys.readouterr().err
    assert files[0].stat().st_mtime_ns == before[0]


def test_a_killed_process_is_a_failed_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
    import os, signal
    def model(**arguments):
        os.kill(os.getpid(), signal.SIGKILL)
    """
    (tmp_path / "killer.py").write_text(textwrap.dedent(code), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    plan = write_plan(tmp_path, killer={"class_path": "killer.model"})
    assert main(["run", str(plan), "--output", str(tmp_path / "results")]) == 1
    record = read(tmp_path / "results", "killer")
    assert record["status"] == "failed"
    assert "status -9" in record["error"]


def test_missing_weights_stop_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = {"class_path": "Npgmf", "init_args": {"backbone_weights": "weights:resnet18"}}
    plan = write_plan(tmp_path, fine={"class_path": "Padim"}, npgmf=model)
    assert main(["run", str(plan), "--output", str(tmp_path / "results")]) == 1
    assert "add --weights resnet18=PATH" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_records(tmp_path: Path) -> None:
    def cell(**changes: Any) -> Any:
        data = {"class_path": "LOCO", "init_args": {"root": "a", "category": "{category}"} | changes}
        models = {"m": {"class_path": "Npgmf"}}
        return parse_plan("p", {"data": data, "categories": ["c"], "seeds": [0], "models": models}).cells[0]

    assert read_record(tmp_path, cell()) is None
    write_record(tmp_path, cell(), {"status": "finished", "text": "[\n1,\n 2]", "curve": [[0.5, -1e-7], []]})
    for same in (cell(), cell(root="b")):
        record = read_record(tmp_path, same)
        assert record is not None
        assert (record["text"], record["curve"]) == ("[\n1,\n 2]", [[0.5, -1e-7], []])
    with pytest.raises(ValueError, match="another data_args"):
        read_record(tmp_path, cell(num_workers=1))
    write_record(tmp_path, cell(), {"status": "failed"})
    assert read_record(tmp_path, cell(num_workers=1)) is None
