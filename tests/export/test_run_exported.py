"""The documentation's program that runs exported files, in processes that can import neither torch nor anomalib."""

import csv
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from _exported import Exported
from anomalib.data import ImageBatch
from anomalib.data.utils import read_image
from PIL import Image

from anomalib_npgmf import Npgmf
from anomalib_npgmf.host.compat import restore_pictures

SCRIPT = Path(__file__).parents[2] / "docs" / "run_exported.py"
small = pytest.mark.parametrize("exported", ["small"], indirect=True)


def run(folder: Path, *arguments: object, without: str) -> subprocess.CompletedProcess[str]:
    blocked = ["torch", "anomalib", "anomalib_npgmf", without]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked}));"
    code += "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@small
@pytest.mark.parametrize(("file", "other"), [("onnx", "openvino"), ("openvino", "onnxruntime")])
def test_files_and_folders(exported: Exported, tmp_path: Path, file: str, other: str) -> None:
    """Files, a folder with a folder in it, a table and maps; as the engine scores them."""
    folder = tmp_path / "line1" / "deeper"
    folder.mkdir(parents=True)
    for path in exported.images[3:]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "notes.txt").write_text("Buy milk.")
    given = [*exported.images[:3], tmp_path / "line1"]
    done = run(tmp_path, getattr(exported, file), *given, "--csv", "s.csv", "--maps", "maps", without=other)
    rows = table(tmp_path / "s.csv")
    expected = exported.expected
    assert done.returncode == (1 if expected["pred_label"].any() else 0), done.stderr
    assert done.stdout.splitlines() == [" ".join(row.values()) for row in rows]
    assert [Path(row["path"]).name for row in rows] == [path.name for path in exported.images]
    assert [row["label"] == "anomalous" for row in rows] == expected["pred_label"].astype(bool).tolist()
    assert [float(row["score"]) for row in rows] == pytest.approx(expected["pred_score"].tolist(), abs=2e-4)
    assert len(list((tmp_path / "maps").rglob("*_map.png"))) == len(rows)


@small
def test_16_bits_are_read_as_the_model_reads_them(exported: Exported, loaded: Npgmf, tmp_path: Path) -> None:
    grey = np.asarray(Image.open(exported.images[0]).convert("L")).astype(np.uint16)
    Image.fromarray(grey * 257).save(tmp_path / "grey.png")
    image = read_image(tmp_path / "grey.png", as_tensor=True)[None]
    assert image.min() == 1, "anomalib's reader"
    batch = restore_pictures(ImageBatch(image=image, image_path=[str(tmp_path / "grey.png")]))
    with torch.no_grad():
        expected = loaded(batch.image).pred_score.item()
    run(tmp_path, exported.onnx, "grey.png", "--csv", "s.csv", without="openvino")
    assert float(table(tmp_path / "s.csv")[0]["score"]) == pytest.approx(expected, abs=2e-4)


def test_turned_photographs_are_read_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10)
    turned = Image.Exif()
    turned[0x0112] = 6  # a viewer turns it clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=turned)
    program = runpy.run_path(str(SCRIPT))
    assert program["read"](tmp_path / "turned.png")[0].transpose(1, 2, 0) * 255 == pytest.approx(np.asarray(picture))


@small
def test_exit_status(exported: Exported, tmp_path: Path) -> None:
    labels = exported.expected["pred_label"].astype(bool)
    normal, anomalous = (exported.images[int(np.flatnonzero(labels == label)[0])] for label in (False, True))
    (tmp_path / "truncated.png").write_bytes(normal.read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    for given, status in (
        ([normal], 0),
        ([normal, anomalous], 1),
        (["truncated.png", normal], 2),
        (["truncated.png", anomalous], 1),
        (["empty"], 2),
    ):
        done = run(tmp_path, exported.onnx, *given, without="openvino")
        assert done.returncode == status, given
        assert all(str(path) in done.stderr for path in given if path in ("truncated.png", "empty"))


def test_every_example_asks_openvino_for_single_precision() -> None:
    """Its default on processors with bfloat16 units is bfloat16, which changes scores; see docs/export.md."""
    root = SCRIPT.parents[1]
    files = [root / "README.md", *(root / "docs").glob("*.md"), SCRIPT, *(root / "notebooks").glob("*.ipynb")]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    calls = [line for line in lines if re.search(r"compile_model\(|OpenVINOInferencer\(", line)]
    assert len(calls) >= 3
    assert all("INFERENCE_PRECISION_HINT" in call for call in calls)
    assert "INFERENCE_PRECISION_HINT: f32" in (root / "README.md").read_text(encoding="utf-8")
