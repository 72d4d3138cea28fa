"""The gallery: which images are shown, what the pictures hold, and where the report puts them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomalib_npgmf.benchmark.__main__ import main
from anomalib_npgmf.benchmark.evaluate import Prediction, TestPass
from anomalib_npgmf.benchmark.gallery import choose, write_gallery
from anomalib_npgmf.benchmark.plan import Cell
from anomalib_npgmf.benchmark.record import path_of, write_record

KINDS = {"good": (1.0, 2.0, 6.5), "logical_anomalies": (3.0, 9.0, 7.5), "structural_anomalies": (12.0, 8.0)}
SIDE = 64


@pytest.fixture
def test_pass(tmp_path: Path) -> TestPass:
    """Grey images; the map of an anomalous one peaks in the lower right quarter, the ground truth is that quarter."""
    found = TestPass()
    for kind, scores in KINDS.items():
        for number, score in enumerate(scores):
            path = tmp_path / "images" / "vials" / "test" / kind / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((SIDE, 2 * SIDE, 3), 128, np.uint8))
            quarter = np.zeros((32, 32), np.float32)
            quarter[16:, 16:] = 1
            found.labels[path] = kind != "good"
            found.masks[path] = (quarter > 0) & (kind != "good")
            for name, factor in (("merged", 1.0), ("logical", 0.5), ("1:3", 1.0)):
                kept = found.predictions.setdefault(name, {})
                kept[path] = Prediction(factor * score, factor * score * quarter)
            found.reconstructions[path] = np.full((16, 16, 3), 200, np.uint8)
    return found


def test_choice(test_pass: TestPass) -> None:
    scores = {path: p.score for path, p in test_pass.predictions["merged"].items()}
    chosen = choose(scores, test_pass.labels)
    # medians 2 and 8, cut 5
    assert {role: f"{path.parent.name}/{path.stem}" for role, path in chosen.items()} == {
        "best_logical": "logical_anomalies/001",
        "best_structural": "structural_anomalies/000",
        "worst_good": "good/002",
        "worst_anomalous": "logical_anomalies/000",
        "borderline_good": "good/001",
        "borderline_anomalous": "logical_anomalies/002",
    }
    assert choose(scores, dict.fromkeys(scores, True)) == {}
    assert choose({Path("a"): 0.0, Path("b"): 1.0}, {Path("a"): False, Path("b"): True}) == {
        "best_anomalous": Path("b"),
        "worst_good": Path("a"),
    }


def test_pictures(test_pass: TestPass, tmp_path: Path) -> None:
    stem = tmp_path / "out" / "seed1"
    stem.parent.mkdir()
    other, stale = stem.with_name("seed10_best_logical.jpg"), stem.with_name("seed1_best_anomalous.jpg")
    other.touch()
    stale.touch()
    files = write_gallery(test_pass, stem)
    assert files["best_structural"] == "seed1_best_structural.jpg"
    assert len(files) == 6
    assert other.exists()
    assert not stale.exists()
    for name in files.values():
        assert 0 < stem.with_name(name).stat().st_size < 40_000

    picture = cv2.imread(str(stem.with_name(files["best_structural"])))
    assert picture is not None
    panels = picture.shape[1] // 226
    assert panels == 5  # image, ground truth, two maps, normal version; not "1:3"
    colours = [picture[-112:, 4 + i * 228 : 228 + i * 228].astype(int) for i in range(panels)]  # BGR
    image, truth, merged, logical, normal = colours
    assert abs(image - 128).max() < 12
    redness = truth[..., 2] - truth[..., 0]
    assert redness[50:62, 118:210].max(axis=0).min() > 50  # the outline's upper edge
    assert abs(redness[:45]).max() < 12
    for plane in (merged, logical):  # beyond the median of the peaks: red; zero lies below the mean: clear
        assert plane[80:, 150:, 2].mean() > plane[80:, 150:, 0].mean() + 40
        assert abs(plane[:40, :80] - image[:40, :80]).max() < 24
    assert abs(normal - 200).max() < 12


def test_without_maps_masks_and_reconstruction(test_pass: TestPass, tmp_path: Path) -> None:
    bare = TestPass()
    bare.labels = test_pass.labels
    bare.predictions["merged"] = {
        path: Prediction(p.score, None) for path, p in test_pass.predictions["merged"].items()
    }
    files = write_gallery(bare, tmp_path / "seed0")
    picture = cv2.imread(str(tmp_path / files["worst_good"]))
    assert picture is not None
    assert picture.shape[1] < 2 * 224  # the image alone, under a title that may be wider


def test_report(test_pass: TestPass, tmp_path: Path) -> None:
    records, output = tmp_path / "records", tmp_path / "docs" / "report.md"
    for seed in (0, 1):
        cell = Cell("npgmf", "default", "vials", seed, "Npgmf", {}, "LOCO", {}, {})
        gallery = {} if seed == 0 else write_gallery(test_pass, path_of(records, cell).with_suffix(""))
        record = {
            "status": "finished",
            "command": "run",
            "started": "2026-01-02T03:04:05Z",
            "versions": {},
            "hardware": {},
            "metrics": {"merged": {"image_auroc": 0.5}},
            "images": {},
            "gallery": gallery,
            "training": {},
            "model": {},
            "seconds": {"fit": 1.0, "test": 1.0},
            "weights": {},
            "peak_memory": {},
        }
        write_record(records, cell, record)
    output.parent.mkdir()
    assert main(["report", str(records), "--output", str(output)]) == 0
    text = output.read_text(encoding="utf-8")
    assert "## Gallery" in text
    # the anomalous images of the first seed that has pictures, as they lie beside its record
    roles = ["best_logical", "best_structural", "worst_anomalous", "borderline_anomalous"]
    shown = [output.parent / "images" / f"report_gallery_npgmf_vials_{role}.jpg" for role in roles]
    assert sorted(output.parent.glob("images/*.jpg")) == sorted(shown)
    for role, picture in zip(roles, shown, strict=True):
        assert text.count(f"(images/{picture.name})") == 1
        assert picture.read_bytes() == (records / f"npgmf/default/vials/seed1_{role}.jpg").read_bytes()

    # records without pictures, as older ones or those that were moved alone
    for path in records.rglob("*.jpg"):
        path.unlink()
    assert main(["report", str(records), "--output", str(output)]) == 0
    assert "Gallery" not in output.read_text(encoding="utf-8")
    assert not any(picture.exists() for picture in shown)
    path = records / "npgmf/default/vials/seed1.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["gallery"]
    path.write_text(json.dumps(record), encoding="utf-8")
    assert main(["report", str(records), "--output", str(output)]) == 0
