import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from anomalib.data import MVTecLOCO

from anomalib_npgmf.data import SyntheticLOCO
from anomalib_npgmf.data.synthetic import writer
from anomalib_npgmf.data.synthetic.writer import SCENES, DrawingPlan, ensure_drawn

TYPES = ("logical_anomalies", "structural_anomalies")


def plan(category: str = "cable_pairs", **changes: object) -> DrawingPlan:
    counts = {f"num_{part}": 1 for part in ("train", "validation", "test_good", "test_logical", "test_structural")}
    return DrawingPlan(**{"category": category, "image_size": (64, 64), "seed": 0, **counts, **changes})  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All categories, every defect once, images wider than high."""
    root = tmp_path_factory.mktemp("drawn")
    for category, scene in SCENES.items():
        kinds = [kind.anomaly_type for kind in scene().defect_kinds()]
        counts = {"num_test_logical": kinds.count(TYPES[0]), "num_test_structural": kinds.count(TYPES[1])}
        ensure_drawn(root, plan(category, image_size=(96, 128), **counts))
    return root


@pytest.mark.parametrize("category", SCENES)
def test_layout_is_that_of_mvtec_loco(drawn: Path, category: str) -> None:
    folder = drawn / category
    config = {entry["pixel_value"]: entry for entry in json.loads((folder / "defects_config.json").read_text())}
    assert all(0 < value < 256 for value in config)
    shown = []
    for anomaly_type in TYPES:
        names = {kind.name for kind in SCENES[category]().defect_kinds() if kind.anomaly_type == anomaly_type}
        images = sorted((folder / "test" / anomaly_type).glob("*.png"))
        for image in images:
            masks = sorted((folder / "ground_truth" / anomaly_type / image.stem).glob("*.png"))
            assert masks
            for path in masks:
                mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
                assert mask.shape == (96, 128)
                background, value = np.unique(mask)
                assert background == 0
                entry = config[int(value)]
                assert set(entry) == {"defect_name", "pixel_value", "saturation_threshold", "relative_saturation"}
                assert entry["defect_name"] in names
                if entry["relative_saturation"]:
                    assert 0 < entry["saturation_threshold"] <= 1
                else:  # an area in pixels that the mask, which may shrink with the zoom, nearly always holds
                    assert 1 < entry["saturation_threshold"] <= 1.15 * np.count_nonzero(mask)
                shown.append(entry["defect_name"])
    assert set(shown) == {entry["defect_name"] for entry in config.values()}


def test_both_saturations_and_several_masks_occur(drawn: Path) -> None:
    config = [entry for path in drawn.glob("*/defects_config.json") for entry in json.loads(path.read_text())]
    assert {entry["relative_saturation"] for entry in config} == {True, False}
    assert list(drawn.glob("*/ground_truth/*/*/001.png"))


@pytest.mark.parametrize("category", SCENES)
def test_anomalib_reads_the_same_images(drawn: Path, category: str) -> None:
    theirs = MVTecLOCO(drawn, category, num_workers=0)
    theirs.setup()
    record = json.loads((drawn / category / "drawing.json").read_text())
    counts = {name: record[name] for name in record if name.startswith("num_")}
    ours = SyntheticLOCO(drawn, category, image_size=(96, 128), **counts)
    ours.setup()
    assert len(ours.train_data) == len(ours.val_data) == 1
    for split in ("train_data", "val_data", "test_data"):
        a, b = getattr(ours, split), getattr(theirs, split)
        assert list(a.samples.image_path) == list(b.samples.image_path)
    for a, b in zip(ours.test_data, theirs.test_data, strict=True):
        assert (a.image == b.image).all()
        assert (a.gt_mask == b.gt_mask).all()
        assert bool(a.gt_mask.any()) == bool(a.gt_label) == ("good" not in a.image_path)


def test_equal_plans_draw_equal_files_and_seeds_differ(tmp_path: Path) -> None:
    first = files(ensure_drawn(tmp_path / "a", plan()))
    assert files(ensure_drawn(tmp_path / "b", plan())) == first
    other = files(ensure_drawn(tmp_path / "c", plan(seed=1)))
    assert other["train/good/000.png"] != first["train/good/000.png"]
    assert first["train/good/000.png"] != first["test/good/000.png"]


def test_more_images_leave_the_others_alone(tmp_path: Path) -> None:
    few, more = (files(ensure_drawn(tmp_path / str(n), plan(num_train=n))) for n in (1, 2))
    assert more["train/good/000.png"] == few["train/good/000.png"]
    assert more["test/good/000.png"] == few["test/good/000.png"]


def test_draws_once(tmp_path: Path) -> None:
    datamodule = SyntheticLOCO(tmp_path, "cable_pairs", 64, 1, 1, 1, 1, 1)
    datamodule.prepare_data()
    image = tmp_path / "cable_pairs/train/good/000.png"
    before = image.stat().st_mtime_ns
    datamodule.prepare_data()
    datamodule.setup()
    assert image.stat().st_mtime_ns == before


def test_other_arguments_are_refused(tmp_path: Path) -> None:
    before = files(ensure_drawn(tmp_path, plan()))
    with pytest.raises(ValueError, match="drawn with seed 0 instead of 3"):
        ensure_drawn(tmp_path, plan(seed=3))
    assert files(tmp_path / "cable_pairs") == before


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cable_pairs").mkdir()
    with pytest.raises(ValueError, match="was not drawn by SyntheticLOCO"):
        ensure_drawn(tmp_path, plan())


@pytest.mark.parametrize("content", [b"", b"{", b"5", b"[1]", b"null", b"\xff", b"[" * 100_000])
def test_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    (ensure_drawn(tmp_path, plan()) / "drawing.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"drawing\.json is damaged, so what was drawn is unknown"):
        ensure_drawn(tmp_path, plan())


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    """Some editors begin a file with it."""
    record = ensure_drawn(tmp_path, plan()) / "drawing.json"
    record.write_text(record.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert ensure_drawn(tmp_path, plan()) == record.parent


def test_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = writer._write, []

    def stop_at_third(path: Path, image: np.ndarray) -> None:
        assert not (tmp_path / "cable_pairs").exists()  # a killed process cleans nothing up
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, image)

    monkeypatch.setattr(writer, "_write", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        ensure_drawn(tmp_path, plan())
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_but_not_what_another_draws(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from anomalib_npgmf.data.synthetic import writer; "
        "draw = writer._draw; "
        "writer._draw = lambda *given: (draw(*given), print('drawn', flush=True), sys.stdin.readline()); "
        "writer.ensure_drawn(pathlib.Path(sys.argv[1]), writer.DrawingPlan('cable_pairs', (64, 64), 1, 1, 1, 1, 1, 0))"
    )
    processes = []
    for _ in range(2):
        call = [sys.executable, "-c", code, tmp_path]
        processes.append(subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout is not None
        assert processes[-1].stdout.readline() == "drawn\n"
    killed, alive = processes
    left = set(tmp_path.iterdir())
    assert len(left) == 2
    killed.kill()
    killed.communicate()
    ensure_drawn(tmp_path, plan())
    (kept,) = left & set(tmp_path.iterdir())
    assert files(kept) == files(tmp_path / "cable_pairs")
    alive.communicate("\n", timeout=60)
    assert alive.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cable_pairs"]


def test_two_processes_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from anomalib_npgmf.data.synthetic.writer import DrawingPlan, ensure_drawn; "
        "print('ready', flush=True); sys.stdin.readline(); "
        "ensure_drawn(pathlib.Path(sys.argv[1]), DrawingPlan('cable_pairs', (64, 64), 1, 1, 1, 1, 1, 0)); "
        "assert 'anomalib' not in sys.modules"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # start at once: both find nothing there
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cable_pairs"]


def test_the_slower_process_keeps_the_faster_ones_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = writer._draw

    def overtaken(folder: Path, drawing: DrawingPlan) -> None:
        monkeypatch.setattr(writer, "_draw", draw)
        ensure_drawn(tmp_path, plan())
        draw(folder, drawing)

    monkeypatch.setattr(writer, "_draw", overtaken)
    ensure_drawn(tmp_path, plan())
    assert [path.name for path in tmp_path.iterdir()] == ["cable_pairs"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"category": "teapots"}, "choose one of loose_screws, tablet_dish, cable_pairs, sorting_tray, filled_vials"),
        ({"num_train": 0}, "num_train must be a whole number from 1 .*, not 0"),
        ({"num_test_logical": -1}, "num_test_logical must be .*, not -1"),
        ({"image_size": 32}, "image_size must be a whole number from 64 "),
        ({"image_size": (256, 63)}, "image_size must be a whole number from 64 "),
        ({"image_size": (256, 256, 3)}, "or a list of 2"),
        ({"seed": -1}, "seed must be a whole number from 0 on, not -1"),
        ({"category": ["cable_pairs"]}, "category must be a text"),
    ],
)
def test_bad_input_gets_a_sentence(tmp_path: Path, arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        SyntheticLOCO(root=tmp_path, **arguments)  # type: ignore[arg-type]
